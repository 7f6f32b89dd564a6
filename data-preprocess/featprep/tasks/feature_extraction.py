"""`featprep.pipeline("image-feature-extraction", model)`: tokens or one vector of each image.

What `pool` means follows transformers' ImageFeatureExtractionPipeline and transformers.js:

    pool         vision model                 model of images and texts
    None         all tokens                   its image embedding
    False        all tokens                   all tokens
    True         pooler output                pooler output of its image tower
    "mean"       average over the patches     the same
    "cls"        the CLS token                the same

All tokens are CLS and registers, where there are some, then the patches row by row: transformers'
last_hidden_state, which of CLIP is before the final norm. The image embedding is encode_image's and
get_image_features', not normalised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from featprep.encoders.base import EncoderSpec, Want
from featprep.errors import UsageError
from featprep.records import AnyArray, Features
from featprep.session import Session
from featprep.settings import nearest
from featprep.tasks.calls import Call, refuse_unknown
from featprep.tasks.rows import RowEncoder

Pool = bool | Literal["mean", "cls"] | None
Tensors = Literal["np", "pt", "list"]

TASK = "image-feature-extraction"
DEFAULT_MODEL = "hf:google/vit-base-patch16-224-in21k"
_KEYWORDS = ("pool", "batch_size", "return_tensors", "timeout")
_TENSORS = ("np", "pt", "list")


class FeatureExtraction:
    """A loaded encoder that is called with images, from any number of threads."""

    def __init__(self, session: Session) -> None:
        self.spec = session.encoder.spec
        self._encoder = RowEncoder(session)

    def __call__(
        self,
        images: Any,
        pool: Pool = None,
        *,
        batch_size: int | None = None,
        return_tensors: Tensors = "np",
        timeout: float | None = None,
        **unknown: Any,
    ) -> Any:
        """Features of one image, (1, tokens, C) or (1, D); of a list, a list of these; of a
        generator, an iterator or a dataset, an iterator of these that works as it is read.

        images: see featprep.tasks.inputs. `batch_size`: images a forward pass, by default as
        `pipeline` was told, else chosen by the device; a stream is read that far ahead.
        `return_tensors`: NumPy arrays, torch tensors or nested lists. `timeout`: seconds for each
        address, 30 if not given. Raises UsageError, before any image is read, and ImageError with
        position and name of the first image that cannot be read or encoded.
        """
        refuse_unknown(TASK, unknown, _KEYWORDS)
        way, convert = _way(self.spec, pool), _converter(return_tensors)
        call = Call(images, batch_size, timeout)
        rows = self._encoder.rows(call.given, way.want, batch_size, call.limits)
        return call.answer(convert(way.finish(row)) for row in rows)

    def __repr__(self) -> str:
        return f"<{TASK} with {self.spec.name}>"


@dataclass(frozen=True, slots=True)
class _Way:
    """`meaning`: for a message. `finish`: what was taken of one image → its result."""

    meaning: str
    want: Want
    finish: Callable[[Features], AnyArray]


def _ways(spec: EncoderSpec) -> dict[Any, _Way]:
    """What `pool` may be for this encoder."""
    is_paired = spec.text or spec.projected_dim is not None  # with a model of texts
    has_prefix = spec.cls or spec.registers > 0
    tokens = _Way("all tokens", Want(prefix=has_prefix), partial(_tokens, spec))
    ways: dict[Any, _Way] = {} if is_paired else {None: tokens}
    if is_paired and spec.pooled:
        ways[None] = _Way("the image embedding", Want(pooled=True), _pooled)
    ways[False] = tokens
    if spec.pooled and (spec.pooler or not is_paired):
        want = Want(pooled=True, before_projection=is_paired)
        ways[True] = _Way("the pooler output", want, _pooled)
    ways["mean"] = _Way("the mean of its patches", Want(), _mean)
    if spec.cls:
        ways["cls"] = _Way("its CLS token", Want(prefix=True), partial(_cls, spec))
    return ways


def _way(spec: EncoderSpec, pool: Pool) -> _Way:
    ways = _ways(spec)
    try:
        return ways[pool]
    except TypeError:  # a list, say, which no dict can look up
        lacking = None
    except KeyError:
        lacking = _LACKING.get(pool)
    if lacking is None:
        raise UsageError(f"pool={pool!r}: allowed is None, False, True, 'mean' or 'cls'")
    there = ", ".join(f"{key!r} ({way.meaning})" for key, way in ways.items())
    raise UsageError(f"pool={pool!r}: {spec.name} {lacking}; there is {there}")


_LACKING: dict[Any, str] = {
    None: "gives no image embedding",
    True: "has no pooler output",
    "cls": "has no CLS token",
}


def _tokens(spec: EncoderSpec, features: Features) -> AnyArray:
    """(1, tokens, C): CLS, registers, patches row by row."""
    patches = features.map.reshape(len(features.map), -1).T
    has_prefix = "prefix" in features.vectors
    parts = [_prefix(spec, features), patches] if has_prefix else [patches]
    return np.concatenate(parts)[None]


def _pooled(features: Features) -> AnyArray:
    return features.vectors["pooled"][None].copy()  # not a view that keeps the batch


def _mean(features: Features) -> AnyArray:
    mean: AnyArray = features.map.mean(axis=(1, 2), dtype=np.float32)
    return mean.astype(features.map.dtype)[None]


def _cls(spec: EncoderSpec, features: Features) -> AnyArray:
    return _prefix(spec, features)[:1].copy()


def _prefix(spec: EncoderSpec, features: Features) -> AnyArray:
    """(P, C). Patches alone must never pass for all tokens."""
    prefix = features.vectors["prefix"]
    if len(prefix) != spec.cls + spec.registers:
        raise UsageError(f"{spec.name} gives its patches alone; there is pool='mean'")
    return prefix


def _converter(kind: str) -> Callable[[AnyArray], Any]:
    if kind == "np":
        return np.ascontiguousarray
    if kind == "list":
        return lambda array: array.tolist()
    if kind == "pt":
        return _as_tensor
    raise UsageError(
        f"return_tensors={kind!r}: allowed is 'np', 'pt' or 'list'.{nearest(str(kind), _TENSORS)}"
    )


def _as_tensor(array: AnyArray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))
