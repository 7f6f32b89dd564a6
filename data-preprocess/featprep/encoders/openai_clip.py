"""OpenAI CLIP's vision towers, run by `clip` itself: its transformers here, its ResNets by
openai_clip_resnet. Knows no network and no digest rule."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import digests, downloads, wants, weights
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName
from featprep.encoders.block_encoder import BlockEncoder
from featprep.encoders.clip_precision import cast
from featprep.encoders.openai_clip_cards import KNOWN, MEAN, PUBLISHED, STD, spec_of
from featprep.encoders.openai_clip_resnet import OpenAIResNetEncoder
from featprep.encoders.positions import Grid, PositionCache, call_with, of_square
from featprep.encoders.torch_encoder import TorchEncoder, place
from featprep.encoders.unfilled import unfilled
from featprep.encoders.weights import Found
from featprep.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

CACHE = Path("~/.cache/clip")  # fixed in clip.load
# Under which a training state keeps its weights; the second is what openai/CLIP's issue 83 saves.
_INSIDE = ("state_dict", "model_state_dict", "model")
_ARCHIVE_EXTRAS = ("input_resolution", "context_length", "vocab_size")  # beside its parameters


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec without torch; None for a local file, unless it bears a known name."""
    return KNOWN.get(name.id)


def load(name: ModelName, options: LoadOptions) -> TorchEncoder:
    found = find(name)
    spec, tensors = read(name, found, options)
    wants.check(spec, options.want)
    visual = _build(tensors, name, found.path)
    kind = "openai-clip-resnet" if spec.stages else "openai-clip-vit"
    settings = {"architecture": kind, "mean": MEAN, "std": STD}
    digest = digests.digest(visual.state_dict(), settings, found.weights)
    encoder = OpenAIResNetEncoder if spec.stages else OpenAIClipEncoder
    return encoder(spec, visual, options, digest, found)


def read(
    name: ModelName, found: Found, options: LoadOptions
) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """What a file holds: the spec, and the tensors of both towers."""
    published = {url.split("/")[-2] for url in PUBLISHED.values()}
    tensors = weights.unwrapped(
        weights.read_tensors(found.path, name, published, options.trust_weights, inside=_INSIDE)
    )
    kept = {key: item for key, item in tensors.items() if key not in _ARCHIVE_EXTRAS}
    return spec_of(tensors, name, found.path), kept


def find(name: ModelName) -> Found:
    """Its file: local, in clip's cache, or downloaded by clip."""
    if name.path is not None:
        return weights.local_file(name.path)
    url = PUBLISHED[name.id]
    sha256 = url.split("/")[-2]
    return downloads.published_file(name, url, sha256, CACHE.expanduser(), _download)


def _download(url: str, folder: str) -> str:
    path: str = import_clip()._download(url, folder)
    return path


def import_clip() -> Any:
    """The module clip.clip, of clip-anytorch or of the GitHub version."""
    try:
        with warnings.catch_warnings():  # it imports pkg_resources, which announces its own end
            warnings.simplefilter("ignore")
            clip = importlib.import_module("clip.clip")
    except ImportError as error:
        raise _lacking(error) from error
    return clip


@functools.cache
def model_room() -> Any:
    """The module clip.model, which needs torch alone.

    Read from its file: importing it by its name runs the package's own __init__ first, which brings
    torchvision for the preprocessing, and with that torch's compiler: 1.7 s of every start.
    """
    try:
        package = importlib.util.find_spec("clip")
        if package is None or not package.submodule_search_locations:
            raise ImportError("No module named 'clip'")
        path = Path(package.submodule_search_locations[0], "model.py")
        spec: Any = importlib.util.spec_from_file_location("clip.model", path)
        room = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(room)
    except (ImportError, OSError) as error:
        raise _lacking(error) from error
    return room


def _lacking(error: BaseException) -> UsageError:
    return UsageError(
        f"clip: models need OpenAI's clip ({weights.one_line(error)}); type: "
        "pip install clip-anytorch 'setuptools<81'"
    )


def _build(tensors: Mapping[str, Tensor], name: ModelName, path: Path) -> Any:
    """The vision tower in float32, every value as the file has it.

    clip's build_model casts to float16 on its way, so it fills nothing; the numbers are put in
    afterwards, strictly. The text tower is let go.
    """
    room = model_room()
    weights.of_tower(name, path, ((k, t) for k, t in tensors.items() if k.startswith("visual.")))
    try:
        with unfilled():
            model = room.build_model(dict(tensors))
        model.load_state_dict(
            {key: item.float() for key, item in tensors.items()}, strict=True, assign=True
        )
    except BUILD_ERRORS as error:
        raise unfit(name, path, error) from error
    return model.visual


# load_state_dict's: lacking, unexpected and misshapen tensors; build_model's: no square of
# positions, no such stage
BUILD_ERRORS = (RuntimeError, AssertionError, KeyError)


def unfit(name: ModelName, path: Path, error: BaseException) -> WeightsError:
    return WeightsError(
        f"{name}: {path} does not fit clip, get a whole copy: {weights.one_line(error)}"
    )


class OpenAIClipEncoder(BlockEncoder):
    """`visual` is clip's own module; hooks read its blocks, there is no other way."""

    def __init__(
        self, spec: EncoderSpec, visual: Any, options: LoadOptions, digest: str, found: Found
    ) -> None:
        super().__init__(spec, visual.conv1, options, digest, found)
        cast(visual, self._compute)
        self.visual: Any = place(visual, spec, options.device)
        self._positions = PositionCache(self._resampled)

    def _resampled(self, grid: Grid) -> Tensor:
        return of_square(self.visual.positional_embedding, grid)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        blocks: Sequence[nn.Module] = self.visual.transformer.resblocks
        return blocks

    def _run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(the image embedding, CLS after the last norm, which it is the projection of)."""
        positions = self._positions.at(self.grid(*pixels.shape[-2:]))
        normed: list[Tensor] = []
        handle = self.visual.ln_post.register_forward_hook(lambda _m, _i, out: normed.append(out))
        try:
            image: Tensor = call_with(self.visual, "positional_embedding", positions, pixels)
        finally:
            handle.remove()
        return image, normed[0]

    def _tokens_of(self, output: Tensor) -> Tensor:
        return output.transpose(0, 1)  # clip's blocks work on (tokens, B, C)

    def _norm(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.visual.ln_post(tokens)
        return normed

    def _project(self, tokens: Tensor) -> Tensor:
        projected: Tensor = tokens @ self.visual.proj
        return projected

    def _pool(self, result: tuple[Tensor, Tensor]) -> Tensor:
        return result[0]

    def _pool_before_projection(self, result: tuple[Tensor, Tensor]) -> Tensor:
        return result[1]
