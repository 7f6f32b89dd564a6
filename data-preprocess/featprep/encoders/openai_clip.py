"""OpenAI CLIP's vision transformers, run by `clip` itself. Knows no network and no digest rule."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import digests, downloads, wants, weights
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName, Recipe
from featprep.encoders.block_encoder import BlockEncoder
from featprep.encoders.torch_encoder import place
from featprep.encoders.weights import Found
from featprep.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
CACHE = Path("~/.cache/clip")  # fixed in clip.load
_GRIDS_KEPT = 8  # --resize keep meets any number of grids, of up to 64 MB each
# What an archive holds beside parameters, and what build_model reads shapes from.
_ARCHIVE_EXTRAS = ("input_resolution", "context_length", "vocab_size")
_SHAPE_KEYS = (
    "visual.conv1.weight",
    "visual.positional_embedding",
    "visual.proj",
    "text_projection",
    "positional_embedding",
    "token_embedding.weight",
    "ln_final.weight",
)


def make_spec(
    id: str, *, patch: int, width: int, depth: int, side: int, projected: int
) -> EncoderSpec:
    return EncoderSpec(
        name=f"clip:{id}",
        family="clip",
        patch=patch,
        hidden_dim=width,
        depth=depth,
        native_size=(side, side),
        recipe=Recipe(resize=side, crop=(side, side)),
        mean=MEAN,
        std=STD,
        projected_dim=projected,
        text=True,
        pooled=True,
        pooler=True,
        final_norm=False,
        has_layers=True,
        norms=("auto", "final", "none"),
        has_value=True,
        has_facets=True,
    )


KNOWN = {
    "ViT-B/32": make_spec("ViT-B/32", patch=32, width=768, depth=12, side=224, projected=512),
    "ViT-B/16": make_spec("ViT-B/16", patch=16, width=768, depth=12, side=224, projected=512),
    "ViT-L/14": make_spec("ViT-L/14", patch=14, width=1024, depth=24, side=224, projected=768),
    "ViT-L/14@336px": make_spec(
        "ViT-L/14@336px", patch=14, width=1024, depth=24, side=336, projected=768
    ),
}


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec without torch; None for a local file, unless it bears a known name."""
    return KNOWN.get(name.id)


def load(name: ModelName, options: LoadOptions) -> OpenAIClipEncoder:
    found = find(name)
    path, urls = found.path, import_clip()._MODELS
    published = {url.split("/")[-2] for url in urls.values()}
    tensors = weights.read_tensors(path, name, published, options.trust_weights)
    spec = _spec_of(tensors, name, path)
    wants.check(spec, options.want)
    visual = _build(tensors, name, path)
    settings = {"architecture": "openai-clip-vit", "mean": MEAN, "std": STD}
    digest = digests.digest(visual.state_dict(), settings, found.weights)
    return OpenAIClipEncoder(spec, visual, options, digest, found)


def find(name: ModelName) -> Found:
    """Its file: local, in clip's cache, or downloaded by clip."""
    if name.path is not None:
        return weights.local_file(name.path)
    clip = import_clip()
    url: str = clip._MODELS[name.id]
    sha256 = url.split("/")[-2]
    return downloads.published_file(name, url, sha256, CACHE.expanduser(), clip._download)


def import_clip() -> Any:
    """The module clip.clip, of clip-anytorch or of the GitHub version."""
    try:
        with warnings.catch_warnings():  # it imports pkg_resources, which announces its own end
            warnings.simplefilter("ignore")
            clip = importlib.import_module("clip.clip")
            importlib.import_module("clip.model")
    except ImportError as error:
        raise UsageError(
            f"clip: models need OpenAI's clip ({weights.one_line(error)}); type: "
            "pip install clip-anytorch 'setuptools<81'"
        ) from error
    return clip


def _spec_of(tensors: Mapping[str, Tensor], name: ModelName, path: Path) -> EncoderSpec:
    if "visual.layer1.0.conv1.weight" in tensors:
        raise WeightsError(
            f"{name}: {path} is a CLIP ResNet; allowed are vision transformers: {', '.join(KNOWN)}"
        )
    if lacking := [key for key in _SHAPE_KEYS if key not in tensors]:
        raise WeightsError(
            f"{name}: {path} is no OpenAI CLIP state dict, it lacks {', '.join(lacking)}; allowed "
            "is clip's model.state_dict()"
        )
    conv, positions = tensors["visual.conv1.weight"], tensors["visual.positional_embedding"]
    patch = conv.shape[-1]
    spec = make_spec(
        name.id,
        patch=patch,
        width=conv.shape[0],
        depth=sum(key.startswith("visual.") and key.endswith("in_proj_weight") for key in tensors),
        side=patch * round((len(positions) - 1) ** 0.5),
        projected=tensors["visual.proj"].shape[1],
    )
    if name.id in KNOWN and spec != KNOWN[name.id]:
        raise WeightsError(
            f"{name}: {path} holds another architecture (patch {patch}, width {spec.hidden_dim}, "
            f"{spec.depth} blocks, side {spec.native_size[0]}); give it as clip:YOUR_NAME={path}"
        )
    return spec


def _build(tensors: Mapping[str, Tensor], name: ModelName, path: Path) -> Any:
    """The vision tower in float32, every value as the file has it.

    clip's build_model casts to float16 on its way, so it sees shapes alone (the meta device); the
    numbers are put in afterwards, strictly. The text tower is let go.
    """
    import torch

    model_room = importlib.import_module("clip.model")
    kept = {key: item for key, item in tensors.items() if key not in _ARCHIVE_EXTRAS}
    try:
        with torch.device("meta"):
            model = model_room.build_model({key: item.to("meta") for key, item in kept.items()})
        model.float().load_state_dict(
            {key: item.float() for key, item in kept.items()}, strict=True, assign=True
        )
    except RuntimeError as error:  # load_state_dict's: lacking, unexpected and misshapen tensors
        raise WeightsError(
            f"{name}: {path} does not fit clip, get a whole copy: {weights.one_line(error)}"
        ) from error
    return model.visual


class OpenAIClipEncoder(BlockEncoder):
    """`visual` is clip's own module; hooks read its blocks, there is no other way."""

    def __init__(
        self, spec: EncoderSpec, visual: Any, options: LoadOptions, digest: str, found: Found
    ) -> None:
        super().__init__(spec, visual.conv1, options, digest, found)
        _cast(visual, self._compute)
        self.visual: Any = place(visual, spec, options.device)
        self._positions: dict[tuple[int, int], Tensor] = {}

    @property
    def blocks(self) -> Sequence[nn.Module]:
        blocks: Sequence[nn.Module] = self.visual.transformer.resblocks
        return blocks

    def _run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(the image embedding, CLS after the last norm, which it is the projection of)."""
        from torch.func import functional_call

        positions = {"positional_embedding": self._positions_at(self.grid(*pixels.shape[-2:]))}
        normed: list[Tensor] = []
        handle = self.visual.ln_post.register_forward_hook(lambda _m, _i, out: normed.append(out))
        try:
            image: Tensor = functional_call(self.visual, positions, (pixels,))
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

    def _positions_at(self, grid: tuple[int, int]) -> Tensor:
        if grid not in self._positions:
            if len(self._positions) == _GRIDS_KEPT:
                self._positions.pop(next(iter(self._positions)))
            self._positions[grid] = resample_positions(self.visual.positional_embedding, grid)
        return self._positions[grid]


def resample_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1 + side², C) → (1 + rows·columns, C), as transformers' CLIP does.

    CLIPVisionEmbeddings.interpolate_pos_encoding in models/clip/modeling_clip.py: bicubic,
    align_corners=False, no antialiasing, the CLS row as it is. openai/CLIP has no interpolation.
    """
    import torch
    from torch.nn.functional import interpolate

    side = round((len(positions) - 1) ** 0.5)
    if grid == (side, side):
        return positions
    square = positions[1:].T.reshape(1, -1, side, side).float()
    resampled = interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return torch.cat((positions[:1], resampled[0].flatten(1).T.to(positions.dtype)))


def _cast(visual: nn.Module, dtype: Any) -> None:
    """To compute precision as clip's convert_weights: LayerNorms and embeddings stay float32."""
    from torch import nn

    for module in visual.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            module.to(dtype)
    proj: Any = visual.proj
    proj.data = proj.data.to(dtype)
