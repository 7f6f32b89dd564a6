"""One vector an image, of one model or of several put together.

A model's vector is what it makes of the whole image: of CLIP and its like encode_image's, not
normalised; of classifiers what their last layer gets; of DINOv2 the pooler output. Where a model
has none it is the CLS token, else the mean over the patches. Knows no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from featprep.batching import BatchEncoder
from featprep.encoders.base import EncoderSpec, Want
from featprep.encoders.thread_copies import ThreadCopies
from featprep.errors import ImageError, UsageError
from featprep.records import AnyArray, Features
from featprep.resolve import fingerprint
from featprep.session import Session

Normalize = Literal["none", "each", "all"]

FORMAT = 1  # of the rows; a change that alters a vector raises it
TASK = "image_vectorizer.py"


@dataclass(frozen=True, slots=True)
class Member:
    """One model of an ensemble. `name`: FAMILY:ID, as it was asked for. `kind`: what its vector is,
    pooled, cls or mean. `dim`: values of it, learnt from a trial image of zeros."""

    name: str
    session: Session
    kind: str
    dim: int
    gflop: float  # of the trial image; 0 where nothing was counted

    def batch_encoder(
        self, size: int, on_halved: Callable[[int], None], hands: int = 1
    ) -> BatchEncoder:
        """`hands`: from how many threads it will be called."""
        session, want = self.session, want_of(self.session.encoder.spec)
        encoder = session.encoder if hands == 1 else ThreadCopies(session.encoder, hands)
        exact, compute = session.exact, session.precision.compute
        return BatchEncoder(encoder, want, size, exact, compute, on_halved)


def want_of(spec: EncoderSpec) -> Want:
    """In float32: an ensemble is rounded once, when all of it is together."""
    return Want(pooled=spec.pooled, prefix=not spec.pooled and spec.cls)


def kind_of(spec: EncoderSpec) -> str:
    return "pooled" if spec.pooled else "cls" if spec.cls else "mean"


def vector_of(kind: str, features: Features) -> AnyArray:
    """(D,) float32."""
    if kind == "pooled":
        vector = features.vectors["pooled"]
    elif kind == "cls":
        vector = features.vectors["prefix"][0]
    else:
        vector = features.map.mean(axis=(1, 2), dtype=np.float64)
    single: AnyArray = vector.astype(np.float32)  # a copy, which keeps no batch alive
    return single


def join_member(name: str, session: Session) -> Member:
    """Try the model on one image of zeros: how long its vector is, and what it costs."""
    geometry, spec = session.resolved.geometry, session.encoder.spec
    pixels = np.zeros((1, 3, *(geometry.size or spec.native_size)), np.uint8)
    maps, gflop = count_gflop(partial(session.encoder.encode, pixels, want_of(spec)))
    vectors = {"pooled": maps.pooled, "prefix": maps.prefix}
    row = Features(
        {layer: map_[0] for layer, map_ in maps.maps.items()},
        {name: array[0] for name, array in vectors.items() if array is not None},
    )
    kind = kind_of(spec)
    return Member(name, session, kind, len(vector_of(kind, row)), gflop)


def count_gflop(forward: Callable[[], Any]) -> tuple[Any, float]:
    """What a forward pass gives, and the GFLOP of its matrix products and convolutions (a
    multiplication and an addition are two)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    mha: Any = torch.backends.mha
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)  # one fused operation that the counter does not know
    try:
        with FlopCounterMode(display=False) as counter:
            given = forward()
    finally:
        mha.set_fastpath_enabled(before)
    return given, counter.get_total_flops() / 1e9


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The vectors of its members, one after the other in the order given."""

    members: Sequence[Member]
    normalize: Normalize = "none"

    def __post_init__(self) -> None:
        names = [member.name for member in self.members]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UsageError(
                f"--models: {twice} stands there twice; name each once, of weights of your own "
                "each as FAMILY:ID=PATH with an ID of its own"
            )

    @property
    def dim(self) -> int:
        return sum(member.dim for member in self.members)

    @property
    def title(self) -> str:
        return title_of([member.name for member in self.members])

    @property
    def dtype(self) -> str:
        return self.members[0].session.precision.storage

    def join(self, vectors: Sequence[AnyArray]) -> AnyArray:
        """(D,) of the storage precision, of each member's (D_i,) float32. Raises ImageError where
        it does not fit float16."""
        if self.normalize == "each":
            vectors = [unit(vector) for vector in vectors]
        whole = np.concatenate(vectors)
        if self.normalize == "all":
            whole = unit(whole)
        with np.errstate(over="ignore"):
            stored: AnyArray = whole.astype(self.dtype)
        if not np.isfinite(stored).all():
            reach = f"{float(np.abs(whole).max()):.4g}"
            raise ImageError(
                f"its vector reaches {reach} and does not fit float16; run without --fp16", "encode"
            )
        return stored

    def fingerprint(self, names: str) -> dict[str, Any]:
        """Everything that shapes a row, flat: of each member what `featprep encode` compares."""
        whole: dict[str, Any] = {
            "vectors": FORMAT,
            "models": [member.name for member in self.members],
            "normalize": self.normalize,
            "names": names,
        }
        for member in self.members:
            own = _fingerprint(member.session)
            whole |= {f"{member.name} {field}": value for field, value in own.items()}
            whole[f"{member.name} vector"] = member.kind
        return whole

    def about(self) -> dict[str, Any]:
        """What a table says of itself."""
        return {
            "format": FORMAT,
            "model": self.title,
            "models": [
                {
                    "model": member.name,
                    "dim": member.dim,
                    "vector": member.kind,
                    "weights": member.session.encoder.digest,
                }
                for member in self.members
            ],
            "dim": self.dim,
            "dtype": self.dtype,
            "normalize": self.normalize,
        }


def title_of(models: Sequence[str]) -> str:
    """The value of the model column."""
    return "+".join(models)


def unit(vector: AnyArray) -> AnyArray:
    """Divided by its length, which is taken in float64; zeros stay zeros."""
    length = np.linalg.norm(vector.astype(np.float64))
    return vector if not length else (vector / length).astype(vector.dtype)


def _fingerprint(session: Session) -> dict[str, Any]:
    spec, digest = session.encoder.spec, session.encoder.digest
    whole = fingerprint(session.config, spec, digest, session.resolved, session.precision)
    return shaping(whole)


# Of an encoder's fingerprint: what every member has alike, or what concerns maps alone.
_OF_MAPS = {
    *("format", "encoder", "names", "mask", "alpha_threshold", "mask_dir", "layer", "feature"),
    *("norm", "facet", "prefix", "pooled", "masked_pool", "grid", "cells", "tile", "overlap"),
    *("deterministic", "threads", "batch_size"),
}


def shaping(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes an encoder's vector, of the fingerprint of a run of it."""
    return {field: value for field, value in fingerprint.items() if field not in _OF_MAPS}
