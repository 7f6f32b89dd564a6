"""Vision models of transformers: one adapter for all of their model types (table: hf_config).

Of a model of images and texts it loads the vision tower alone. Knows no network; runs no remote
code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from featprep.encoders import digests, hf_building, hf_config, hub, wants, weights
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName
from featprep.encoders.block_encoder import BlockEncoder
from featprep.encoders.hf_config import MODEL_TYPES, ModelType, read_spec
from featprep.encoders.hf_known import KNOWN
from featprep.encoders.positions import keep_positions
from featprep.encoders.taps import has_attention
from featprep.encoders.torch_encoder import place
from featprep.encoders.weights import Found

if TYPE_CHECKING:
    from torch import Tensor, nn

# What shapes the outputs beside the tensors.
_ARCHITECTURE = (
    "model_type",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "qkv_bias",
    "use_swiglu_ffn",
    "num_register_tokens",
    "rope_theta",
)

_NORMS = ("layernorm", "norm", "post_layernorm", "layer_norm")  # the last one, in one or another


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec without torch or transformers; None if only the hub could tell."""
    if name.path is not None:
        return read_spec(name, Path(name.path))
    if name.id in KNOWN:
        return KNOWN[name.id]
    config = hub.cached(name.id, weights.CONFIG)
    if config is None or not (config.parent / weights.PROCESSOR).is_file():
        return None
    return read_spec(name, config.parent)


def load(name: ModelName, options: LoadOptions) -> HuggingFaceEncoder:
    found = find(name)
    folder = found.path
    spec = read_spec(name, folder)
    wants.check(spec, options.want)
    config = hf_config.read_config(name, folder)
    pooled = options.want.pooled or (options.pooled_if_any and spec.pooled)
    tensors, projection = _published_tensors(name, folder, config, pooled)
    model = _build(name, folder, config, tensors, pooled)
    linear = None
    if spec.projected_dim:
        sides = (spec.hidden_dim, spec.projected_dim)
        linear = hf_building.linear(name, folder, sides, projection)
    settings = {key: getattr(model.config, key, None) for key in _ARCHITECTURE}
    statistics = {"mean": spec.mean, "std": spec.std}
    digest = digests.digest({**tensors, **projection}, {**settings, **statistics}, found.weights)
    kind = MODEL_TYPES[config["model_type"]]
    return HuggingFaceEncoder(spec, kind, model, linear, options, digest, found)


def find(name: ModelName) -> Found:
    """Its folder: local, in the hub's cache, or downloaded."""
    if name.path is None:
        return hub.folder(name)
    return weights.local_folder(name.path)


def _published_tensors(
    name: ModelName, folder: Path, config: Mapping[str, Any], pooled: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(tensors of the tower, of its projection), named as in the files less the tower's own name:
    transformers renames its own between releases."""
    kind, wanted = MODEL_TYPES[config["model_type"]], hf_config.projection_of(config)
    used = kind.used + kind.pooler * pooled
    tower: list[tuple[str, Tensor]] = []
    projection: list[tuple[str, Tensor]] = []
    for file in weights.need_weight_files(name, folder):
        for key, item in weights.read_tensors(file, name).items():
            plain = key.removeprefix(kind.root)
            if plain.startswith(used) and not plain.startswith(kind.unused):
                tower.append((plain.replace(*kind.renamed) if kind.renamed else plain, item))
            elif wanted and key.startswith(f"{wanted.tensor}."):
                projection.append((key, item))
    return weights.of_tower(name, folder, tower), weights.of_tower(name, folder, projection)


def _build(
    name: ModelName,
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    pooled: bool,
) -> Any:
    """The vision tower, every tensor that counts from the checkpoint."""
    import transformers

    kind = MODEL_TYPES[config["model_type"]]
    model_class = getattr(transformers, kind.class_name)
    headless = {} if pooled else kind.headless

    def make_config() -> Any:
        return model_class.config_class.from_dict({**hf_config.tower_of(config), **headless})

    unused = kind.unused + (() if pooled else kind.pooler)
    return hf_building.build(name, folder, model_class, make_config, tensors, unused)


class HuggingFaceEncoder(BlockEncoder):
    """`model` is transformers' own; the map is its last_hidden_state, normed or not as it has it.

    `projection`: of every cell, after the last norm, as the family does it to the CLS token.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        kind: ModelType,
        model: Any,
        projection: nn.Module | None,
        options: LoadOptions,
        digest: str,
        found: Found,
    ) -> None:
        super().__init__(spec, _patch_embedding(model, spec), options, digest, found)
        self._kind = kind
        self.model: Any = place(model.to(self._compute), spec, options.device)
        self.projection: Any = projection and place(
            projection.to(self._compute), spec, options.device
        )
        self._flags = {"interpolate_pos_encoding": True} if kind.is_flagged else {}
        if options.pos_embed == "hub" and kind.hub_offset is not None:
            use_hub_positions(model.embeddings, spec, kind)
        keep_positions(model)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The list of blocks, or stages, wherever this transformers keeps it."""
        from torch import nn

        lists = (part for part in self.model.modules() if isinstance(part, nn.ModuleList))
        found: Any = next(
            part
            for part in lists
            if len(part) == self.spec.depth and (self.spec.stages or has_attention(part[0]))
        )
        blocks: Sequence[nn.Module] = found
        return blocks

    def _run(self, pixels: Tensor) -> Any:
        if self._kind.is_patchified:
            return self.model(**cut_patches(pixels, self.spec.patch))
        return self.model(pixel_values=pixels, **self._flags)

    def _tokens_of(self, output: Any) -> Tensor:
        import torch

        if not self.spec.stages:
            return super()._tokens_of(output)
        mean = output.mean((2, 3), keepdim=True)  # DINOv3 ConvNeXt's pool, in front as its CLS
        return torch.cat((mean.flatten(2).mT, output.flatten(2).mT), dim=1)

    def _norm(self, tokens: Tensor) -> Tensor:
        norm = next(getattr(self.model, name) for name in _NORMS if hasattr(self.model, name))
        normed: Tensor = norm(tokens)
        return normed

    def _project(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.projection(tokens)
        return projected

    def _pool(self, result: Any) -> Tensor:
        """The image embedding as get_image_features has it, or pooler_output."""
        if self.projection is None:
            return self._pool_before_projection(result)
        # BLIP projects the CLS token that was normed once; its pooler_output was normed twice.
        is_normed = self.spec.final_norm
        return self._project(result.last_hidden_state[:, 0] if is_normed else result.pooler_output)

    def _pool_before_projection(self, result: Any) -> Tensor:
        pooled: Tensor = result.pooler_output
        return pooled


def cut_patches(pixels: Tensor, patch: int) -> dict[str, Tensor]:
    """(B, 3, H, W) → what NaFlex takes: patches row by row, (B, N, patch · patch · 3), channels
    last, as convert_image_to_patches of transformers' Siglip2ImageProcessor; what a patch does not
    fill is cut off."""
    import torch

    rows, columns = (side // patch for side in pixels.shape[-2:])
    whole = pixels[..., : rows * patch, : columns * patch]
    cut = whole.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, rows, columns, p, p)
    patches = cut.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    shapes = torch.tensor([[rows, columns]]).expand(len(pixels), 2)
    mask = torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _patch_embedding(model: nn.Module, spec: EncoderSpec) -> Any:
    """All strided convolutions as one: the only one of a ViT, or ConvNeXt's stem and downsampling.

    None of them pads or overlaps, so their strides multiply.
    """
    from torch import nn

    strides = [conv.stride for conv in model.modules() if isinstance(conv, nn.Conv2d)]
    # NaFlex has none: its patches come cut.
    stride = tuple(math.prod(axis) for axis in zip(*strides, strict=True)) or (spec.patch,) * 2
    return SimpleNamespace(kernel_size=stride, stride=stride, padding=(0, 0))


def use_hub_positions(embeddings: Any, spec: EncoderSpec, kind: ModelType) -> None:
    """Have an embedding module resample its positions as torch.hub's DINOv2 does.

    facebookresearch/dinov2, models/vision_transformer.py, interpolate_pos_encoding: bicubic in
    float32; without registers by the factor (cells + 0.1) / side, so that every position is read a
    little further to the upper left; with registers to the size itself, antialiased.
    """

    def interpolate_pos_encoding(tokens: Tensor, height: int, width: int) -> Tensor:
        import torch
        from torch.nn.functional import interpolate

        positions: Tensor = embeddings.position_embeddings
        if (height, width) == spec.native_size:
            return positions
        side = math.isqrt(positions.shape[1] - 1)
        grid = [height // spec.patch, width // spec.patch]
        factors = [(cells + (kind.hub_offset or 0.0)) / side for cells in grid]
        resampled = interpolate(
            positions[:, 1:].mT.reshape(1, -1, side, side).float(),
            size=None if kind.hub_offset else grid,
            scale_factor=factors if kind.hub_offset else None,
            mode="bicubic",
            antialias=kind.hub_antialias,
        )
        return torch.cat((positions[:, :1], resampled.flatten(2).mT.to(positions.dtype)), dim=1)

    embeddings.interpolate_pos_encoding = interpolate_pos_encoding
