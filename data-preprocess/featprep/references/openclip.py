"""open_clip's create_model and encode_image, and hooks on its blocks or stages.

Positions off the native size are transformers' where asked, else what open_clip (resize_pos_embed)
and timm (set_input_size) make of them. `value` is F3RM's formula; of timm's attentions, what they
give if every token attends to itself alone.
"""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from featprep.encoders.base import Facet, ModelName, Norm, PosEmbed
from featprep.references.base import FACETS, Reference, transformers_positions

if TYPE_CHECKING:
    from torch import Tensor


def open_reference(
    name: ModelName, pos_embed: PosEmbed, quick_gelu: bool | None = None
) -> Reference:
    log = logging.getLogger()  # open_clip's words on weights that are put in afterwards
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library: Any = importlib.import_module("open_clip")
            model = _model(library, name, quick_gelu).eval()
            said = library.get_model_preprocess_cfg(model)
    finally:
        log.setLevel(level)
    return OpenClipTower(model, said, pos_embed)


def _model(library: Any, name: ModelName, quick_gelu: bool | None) -> Any:
    path, (arch, _, tag) = Path(name.path or ""), name.id.partition("/")
    if name.path is None and name.id.startswith("hf-hub:"):
        return library.create_model(name.id)
    if name.path and path.is_dir():
        return library.create_model(f"local-dir:{path}")
    said = library.get_pretrained_cfg(arch, tag) if tag else _agreed(library, arch)
    model = library.create_model(
        arch,
        pretrained=None if name.path else tag,
        force_quick_gelu=said.get("quick_gelu", False) if quick_gelu is None else quick_gelu,
        force_preprocess_cfg=said,
        pretrained_text=False,
    )
    if name.path:
        state = library.factory.load_state_dict(name.path)
        own = {key[7:]: item for key, item in state.items() if key.startswith("visual.")}
        model.visual.load_state_dict(own)
    return model


def _agreed(library: Any, arch: str) -> dict[str, Any]:
    """Without a tag: the pixel statistics on which all tags of the architecture agree."""
    tags = library.list_pretrained_tags_by_model(arch)
    rows = [library.get_pretrained_cfg(arch, tag) for tag in tags]
    return {
        key: rows[0][key]
        for key in ("mean", "std")
        if rows and all(row[key] == rows[0][key] for row in rows)
    }


class OpenClipTower(Reference):
    """`trunk`: timm's module inside, or None where the tower is open_clip's own."""

    def __init__(self, model: Any, said: dict[str, Any], pos_embed: PosEmbed) -> None:
        super().__init__()
        self.model, self.visual = model, model.visual
        self.trunk = getattr(self.visual, "trunk", None)
        self.mean, self.std = said["mean"], said["std"]
        self._pos_embed = pos_embed
        self._attention_pool = getattr(self.visual, "attnpool", None)
        self.stages = _stages(self.visual)
        self.depth = len(self.stages)
        self.patch = self._stride(self.depth - 1)
        table = getattr(*self._owner(), None)
        self._native = None if table is None else table.detach().clone()
        self._native_size = _sides(self.visual.image_size)
        for layer, stage in enumerate(self.stages):
            self._keep_output(stage, "stage", layer)
            if hasattr(stage, "attn"):
                self._keep_output(stage.norm1 if self.trunk else stage.ln_1, "ln_1", layer)

    def bare(self, dtype: str) -> Callable[[Tensor], Any]:
        """The tower; a ResNet up to its attention pooling, which a map does without."""
        import torch
        from torch import nn

        if self._attention_pool is not None:
            self.visual.attnpool = nn.Identity()
        if dtype != "float32" and self.trunk is None:
            library: Any = importlib.import_module("open_clip")
            library.convert_weights_to_lp(self.visual, getattr(torch, dtype))
            if (pool := getattr(self.visual, "attn_pool", None)) is not None:  # left in float32
                pool.query.data = pool.query.data.to(getattr(torch, dtype))
        else:
            self.visual.to(getattr(torch, dtype))
        forward: Callable[[Tensor], Any] = self.visual
        return forward

    def _stride(self, layer: int) -> int:
        if self.trunk is not None:
            return int(self.trunk.feature_info[layer]["reduction"])
        own: tuple[int, int] | None = getattr(self.visual, "patch_size", None)
        return int(own[0]) if own else 4 * 2**layer  # a ResNet's

    def _grid(self, layer: int) -> tuple[int, int]:
        stride = self._stride(layer)
        return self._size[0] // stride, self._size[1] // stride

    def _look(self, pixels: Tensor) -> None:
        self._place_positions()
        image = self.model.encode_image(pixels)
        self._kept["image", 0] = image[0] if isinstance(image, tuple) else image  # CoCa's

    def _owner(self) -> tuple[Any, str]:
        """Where the table of positions is."""
        if self.trunk is not None:
            return self.trunk, "pos_embed"
        return self._attention_pool or self.visual, "positional_embedding"

    def _place_positions(self) -> None:
        """For hub: timm's set_input_size resamples by itself, from the native size."""
        owner, key = self._owner()
        if hasattr(self.trunk, "set_input_size"):
            if self._pos_embed == "hub" and self._native is not None:
                self.visual.set_input_size(self._native_size)
                getattr(owner, key).data = self._native.clone()
            self.visual.set_input_size(self._size)
        if self._native is not None and (self._pos_embed == "transformers" or not self.trunk):
            getattr(owner, key).data = self._resampled(self._native)

    def _resampled(self, table: Tensor) -> Tensor:
        side = math.isqrt(table.shape[-2])
        prefix = table.shape[-2] - side**2
        # open_clip has no way to resample those of a ResNet's attention pooling
        if self._pos_embed == "transformers" or self._attention_pool is not None:
            return transformers_positions(table, (side, side), self._grid(self.depth - 1), prefix)
        state = {"visual.positional_embedding": table}
        grid = self._grid(self.depth - 1)
        shape = SimpleNamespace(visual=SimpleNamespace(grid_size=grid))
        resize: Any = importlib.import_module("open_clip.model").resize_pos_embed
        resize(state, shape)
        return state["visual.positional_embedding"]

    def _layer(self, layer: int, norm: Norm) -> Tensor:
        out: Tensor = self._kept["stage", layer]
        if out.ndim == 4:
            is_last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"
            out = out.flatten(1, 2) if is_last else out.flatten(2).mT
        if norm == "final" or (norm == "auto" and layer == self.depth - 1 and self._attends()):
            return self._normed(out)
        return out

    def _attends(self) -> bool:
        """Whether the head attends over normed tokens (SigLIP, PE): then they are the map."""
        return getattr(self.trunk, "global_pool", "") == "map"

    def _normed(self, tokens: Tensor) -> Tensor:
        import torch

        if self.trunk is None:
            normed: Tensor = self.visual.ln_post(tokens)
        elif hasattr(self.trunk, "blocks"):  # the second of one that averages its tokens
            normed = self.trunk.fc_norm(self.trunk.norm(tokens))
        else:  # ConvNeXt's, over channels
            norm = self.trunk.head.norm
            normed = torch.layer_norm(tokens, tokens.shape[-1:], norm.weight, norm.bias, norm.eps)
        return normed

    def _projected(self) -> Tensor:
        """The head on every token; on the pooled one it must be what encode_image returns."""
        import torch

        tokens = self._layer(self.depth - 1, "none")
        if self._attention_pool is not None:
            return self._value()
        averages = (
            self.visual.pool_type == "avg"
            if self.trunk is None
            else getattr(self.trunk, "global_pool", None) != "token"
        )
        prefix = 1 if self.trunk is None else getattr(self.trunk, "num_prefix_tokens", 0)
        pooled = tokens[:, prefix:].mean(1) if averages else tokens[:, 0]
        torch.testing.assert_close(self._head(pooled), self._pooled(), rtol=1e-4, atol=1e-4)
        return self._head(tokens)

    def _head(self, rows: Tensor) -> Tensor:
        normed = self._normed(rows)
        if self.trunk is not None and hasattr(self.trunk, "blocks"):
            normed = self.trunk.head(normed)
        own = self.trunk is None
        projected: Tensor = normed @ self.visual.proj if own else self.visual.head(normed)
        return projected

    def _value(self) -> Tensor:
        from torch.nn.functional import linear

        if self._attention_pool is not None:  # a ResNet's, without position embedding
            value, out = self._attention_pool.v_proj, self._attention_pool.c_proj
            tokens = self._layer(self.depth - 1, "none")
            return linear(linear(tokens, value.weight, value.bias), out.weight, out.bias)
        attention, value = self.stages[-1].attn, self._facet(self.depth - 1, "value")
        if self.trunk is None:
            return self._head(attention.out_proj(value))
        with mock.patch("torch.nn.functional.scaled_dot_product_attention", _to_itself):
            return self._head(attention(self._kept["ln_1", self.depth - 1]))

    def _facet(self, layer: int, facet: Facet) -> Tensor:
        import torch
        from torch.nn.functional import linear

        given, attention = self._kept["ln_1", layer], self.stages[layer].attn
        if self.trunk is None:
            weight, bias = attention.in_proj_weight, attention.in_proj_bias
        elif attention.qkv is None:  # EVA02's are apart
            part: Tensor = getattr(attention, f"{facet[0]}_proj")(given)
            return part
        else:
            weight, bias = attention.qkv.weight, attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:  # EVA's; keys have none
            bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        return linear(given, weight, bias).chunk(3, dim=-1)[FACETS.index(facet)]

    def _pooled(self) -> Tensor:
        image: Tensor = self._kept["image", 0]
        return image


def _to_itself(_query: Tensor, _key: Tensor, value: Tensor, **_: Any) -> Tensor:
    return value


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _stages(visual: Any) -> list[Any]:
    """timm's table of its features; open_clip's own blocks or stages."""
    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        return [trunk.get_submodule(row["module"]) for row in trunk.feature_info]
    if hasattr(visual, "layer4"):
        return [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    return list(visual.transformer.resblocks)
