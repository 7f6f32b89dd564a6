"""OpenAI's CLIP by `clip` itself: clip.load, encode_image and its modules.

`value` is F3RM's reading of MaskCLIP (f3rm/features/clip/model.py, forward_v): out_proj(v_proj(
ln_1(x))) of the last block, without residual and MLP. Its positions off the native size are
transformers': openai/CLIP has none.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import Facet, ModelName, Norm, PosEmbed
from featprep.references.base import FACETS, Reference, transformers_positions

if TYPE_CHECKING:
    from torch import Tensor

# The numbers of clip.clip._transform.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def open_reference(name: ModelName, pos_embed: PosEmbed) -> Reference:
    model = load_model(name)
    return ClipResNet(model) if hasattr(model.visual, "attnpool") else ClipViT(model)


def load_model(name: ModelName) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library: Any = importlib.import_module("clip.clip")
        model, _ = library.load(name.path or name.id, device="cpu")
    return model


class ClipViT(Reference):
    mean, std = MEAN, STD

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.visual = model, model.visual
        self.patch = self.visual.conv1.kernel_size[0]
        self.blocks = self.visual.transformer.resblocks
        self.depth = len(self.blocks)
        self._native = self.visual.positional_embedding.detach().clone()
        for layer, block in enumerate(self.blocks):
            self._keep_output(block, "block", layer)
            self._keep_output(block.ln_1, "ln_1", layer)

    def bare(self, dtype: str) -> Callable[[Tensor], Any]:
        """encode_image; in reduced precision cast as clip.model.convert_weights does for half."""
        import torch
        from torch import nn

        target = getattr(torch, dtype)
        for module in self.visual.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
                module.to(target)
        self.visual.proj.data = self.visual.proj.data.to(target)
        forward: Callable[[Tensor], Any] = self.model.encode_image
        return forward

    def _look(self, pixels: Tensor) -> None:
        side = self.visual.input_resolution // self.patch
        self.visual.positional_embedding.data = transformers_positions(
            self._native, (side, side), self._grid(-1), prefix=1
        )
        self._kept["image", 0] = self.model.encode_image(pixels)

    def _layer(self, layer: int, norm: Norm) -> Tensor:
        tokens: Tensor = self._kept["block", layer].permute(1, 0, 2)
        return self.visual.ln_post(tokens) if norm == "final" else tokens

    def _projected(self) -> Tensor:
        """Its ln_post and proj on every token, of which CLS must be what encode_image returns."""
        import torch

        tokens: Tensor = self._layer(self.depth - 1, "final") @ self.visual.proj
        torch.testing.assert_close(tokens[:, 0], self._pooled(), rtol=1e-4, atol=1e-4)
        return tokens

    def _value(self) -> Tensor:
        out = self.blocks[-1].attn.out_proj(self._facet(self.depth - 1, "value"))
        tokens: Tensor = self.visual.ln_post(out) @ self.visual.proj
        return tokens

    def _facet(self, layer: int, facet: Facet) -> Tensor:
        from torch.nn.functional import linear

        attention = self.blocks[layer].attn
        every = linear(
            self._kept["ln_1", layer].permute(1, 0, 2),
            attention.in_proj_weight,
            attention.in_proj_bias,
        )
        return every.chunk(3, dim=-1)[FACETS.index(facet)]

    def _pooled(self) -> Tensor:
        image: Tensor = self._kept["image", 0]
        return image


class ClipResNet(Reference):
    """Its stages; `projected` and `value` are MaskCLIP's formula for ResNets, c_proj(v_proj(x)) of
    each cell of the last one, without position embedding."""

    mean, std = MEAN, STD
    patch, depth = 32, 4

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.visual = model, model.visual
        self._native = self.visual.attnpool.positional_embedding.detach().clone()
        for layer in range(self.depth):
            self._keep_output(getattr(self.visual, f"layer{layer + 1}"), "stage", layer)

    def bare(self, dtype: str) -> Callable[[Tensor], Any]:
        """Up to the attention pooling, which a map does without."""
        import torch
        from torch import nn

        self.visual.attnpool = nn.Identity()
        for module in self.visual.modules():
            if isinstance(module, nn.Conv2d):
                module.to(getattr(torch, dtype))
        forward: Callable[[Tensor], Any] = self.visual
        return forward

    def _look(self, pixels: Tensor) -> None:
        side = self.visual.input_resolution // self.patch
        self.visual.attnpool.positional_embedding.data = transformers_positions(
            self._native, (side, side), self._grid(-1), prefix=1
        )
        self._kept["image", 0] = self.model.encode_image(pixels)

    def _grid(self, layer: int) -> tuple[int, int]:
        stride = 4 << (layer % self.depth)
        return self._size[0] // stride, self._size[1] // stride

    def _layer(self, layer: int, norm: Norm) -> Tensor:
        cells: Tensor = self._kept["stage", layer].flatten(2).mT
        return cells

    def _projected(self) -> Tensor:
        pool = self.visual.attnpool
        cells: Tensor = pool.c_proj(pool.v_proj(self._layer(self.depth - 1, "none")))
        return cells

    def _value(self) -> Tensor:
        return self._projected()

    def _pooled(self) -> Tensor:
        image: Tensor = self._kept["image", 0]
        return image
