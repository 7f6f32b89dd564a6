"""timm's forward_features, its features_only networks, hooks on blocks, and the model itself.

A ViT is built anew for each size, its positions made by transformers' ViTEmbeddings, or for hub by
timm's resample_abs_pos_embed.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import Facet, ModelName, Norm, PosEmbed
from featprep.references.base import FACETS, Reference, transformers_positions

if TYPE_CHECKING:
    from torch import Tensor


def open_reference(name: ModelName, pos_embed: PosEmbed) -> Reference:
    model = build(name, num_classes=0)
    is_vit = hasattr(model, "blocks") and hasattr(getattr(model, "patch_embed", 0), "grid_size")
    if is_vit and hasattr(model, "norm"):
        return TimmViT(name, model, pos_embed)
    return TimmStages(name, model)


def build(name: ModelName, pretrained: bool = True, **more: Any) -> Any:
    """Never strict: that every tensor counts is for our own loading to see to."""
    library: Any = importlib.import_module("timm")
    path = Path(name.path) if name.path else None
    if path and not path.is_dir():
        more["pretrained_cfg_overlay"] = {"file": str(path)}
    source = f"local-dir:{path}" if path and path.is_dir() else name.id
    log = logging.getLogger("timm")  # it tells of a head that is left out
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return library.create_model(source, pretrained=pretrained, **more).eval()
    finally:
        log.setLevel(level)


class _OfTimm(Reference):
    def __init__(self, name: ModelName, model: Any) -> None:
        super().__init__()
        self.name, self.model = name, model
        self.mean, self.std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        self.depth = len(model.feature_info)
        self.patch = int(model.feature_info[-1]["reduction"])

    def bare(self, dtype: str) -> Callable[[Tensor], Any]:
        import torch

        self.alone = build(self.name, num_classes=0).to(getattr(torch, dtype))
        forward: Callable[[Tensor], Any] = self.alone.forward_features
        return forward

    def _pooled(self) -> Tensor:
        image: Tensor = self._kept["image", 0]
        return image


class TimmViT(_OfTimm):
    def __init__(self, name: ModelName, model: Any, pos_embed: PosEmbed) -> None:
        super().__init__(name, model)
        self._native, self._pos_embed = model, pos_embed
        self._grid_made = tuple(model.patch_embed.grid_size)

    def _look(self, pixels: Tensor) -> None:
        rows, columns = self._grid(-1)
        self.model = self._at((rows, columns))
        for layer, block in enumerate(self.model.blocks):
            self._keep_output(block, "block", layer)
            self._keep_input(block.attn, "attended", layer)
        whole = pixels[..., : rows * self.patch, : columns * self.patch]
        self._kept["tokens", 0] = self.model.forward_features(whole)
        self._kept["image", 0] = self.model(whole)

    def _at(self, grid: tuple[int, int]) -> Any:
        size = (grid[0] * self.patch, grid[1] * self.patch)
        model = build(self.name, pretrained=False, num_classes=0, img_size=size)
        state = self._native.state_dict()
        if getattr(self._native, "pos_embed", None) is not None:
            state["pos_embed"] = self._placed(state["pos_embed"], grid)
        model.load_state_dict(state)
        return model

    def _placed(self, table: Tensor, grid: tuple[int, int]) -> Tensor:
        prefix = table.shape[1] - math.prod(self._grid_made)
        native = (int(self._grid_made[0]), int(self._grid_made[1]))
        if self._pos_embed == "transformers":
            return transformers_positions(table, native, grid, prefix)
        layers: Any = importlib.import_module("timm.layers")
        placed: Tensor = layers.resample_abs_pos_embed(
            table, list(grid), list(native), num_prefix_tokens=prefix
        )
        return placed

    def _layer(self, layer: int, norm: Norm) -> Tensor:
        if norm == "auto" and layer == self.depth - 1:
            own: Tensor = self._kept["tokens", 0]
            return own
        tokens: Tensor = self._kept["block", layer]
        return self.model.norm(tokens) if norm == "final" else tokens

    def _facet(self, layer: int, facet: Facet) -> Tensor:
        """As timm's attentions split theirs, heads side by side; EVA's biases are kept apart."""
        from torch.nn.functional import linear

        attention, tokens = self.model.blocks[layer].attn, self._kept["attended", layer]
        if getattr(attention, "qkv", None) is None:
            part: Tensor = getattr(attention, f"{facet[0]}_proj")(tokens)
            return part
        heads, place = attention.num_heads, FACETS.index(facet)
        rows = linear(tokens, attention.qkv.weight, attention.qkv.bias)
        split = rows.reshape(*tokens.shape[:2], 3, heads, -1)
        plain = split[:, :, place].reshape(*tokens.shape[:2], -1)
        bias: Tensor | None = getattr(attention, f"{facet[0]}_bias", None)
        return plain if bias is None else plain + bias


class TimmStages(_OfTimm):
    """`features`: timm's features_only network. EfficientNet's 1 × 1 convolution before the pooling
    is no part of the last map, so forward_features is asked without it."""

    def __init__(self, name: ModelName, model: Any) -> None:
        from torch import nn

        super().__init__(name, model)
        self.features = build(name, features_only=True)
        self.headless = build(name, num_classes=0)
        if hasattr(self.headless, "conv_head"):
            self.headless.conv_head, self.headless.bn2 = nn.Identity(), nn.Identity()

    def _look(self, pixels: Tensor) -> None:
        for layer, stage in enumerate(self.features(pixels)):
            self._kept["stage", layer] = self._as_nchw(stage, layer)
        last = self.headless.forward_features(pixels)
        if last.ndim == 3:  # Hiera knows no grid, and takes squares alone
            last = last.mT.unflatten(2, (math.isqrt(last.shape[1]),) * 2)
        self._kept["last", 0] = self._as_nchw(last, self.depth - 1)
        self._kept["image", 0] = self.model(pixels)

    def _as_nchw(self, out: Tensor, layer: int) -> Tensor:
        channels = self.model.feature_info[layer]["num_chs"]
        return out if out.shape[1] == channels else out.movedim(-1, 1)

    def _layer(self, layer: int, norm: Norm) -> Tensor:
        is_last = layer == self.depth - 1 and norm != "none"
        cells: Tensor = self._kept["last", 0] if is_last else self._kept["stage", layer]
        return cells.flatten(2).mT

    def _grid(self, layer: int) -> tuple[int, int]:
        rows, columns = self._kept["stage", layer % self.depth].shape[-2:]
        return rows, columns
