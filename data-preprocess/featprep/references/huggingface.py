"""transformers' own class that config.json names, whole: from_pretrained, output_hidden_states,
and what its query, key and value layers returned in the pass.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import Facet, ModelName, Norm, PosEmbed
from featprep.references.base import FACETS, Reference, quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor

_QUERIES = ("q_proj", "query")  # transformers has renamed them between releases
_KEYS = ("k_proj", "key")
_VALUES = ("v_proj", "value")
_OUTPUTS = ("out_proj", "o_proj", "projection", "dense")


def open_reference(name: ModelName, pos_embed: PosEmbed) -> Reference:
    import torch
    import transformers

    library: Any = transformers
    source = name.path or name.id
    with quiet_transformers():
        processor = library.AutoImageProcessor.from_pretrained(source)
        architecture = library.AutoConfig.from_pretrained(source).architectures[0]
        model = getattr(library, architecture).from_pretrained(source, dtype=torch.float32).eval()
    reference = TransformersModel(model, processor)
    if pos_embed == "hub":
        has_registers = "registers" in type(model).__name__.lower()
        reference.vision.embeddings.interpolate_pos_encoding = hub_positions(
            reference.vision.embeddings.position_embeddings, reference.patch, has_registers
        )
    return reference


class TransformersModel(Reference):
    """`model`: of images and texts, or of images alone; `vision`: its part that sees."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model = model
        self.vision = getattr(model, "vision_model", None) or getattr(model, "vit", model)
        self.mean, self.std = processor.image_mean, processor.image_std
        config = self.vision.config
        self.is_cnn = not hasattr(config, "patch_size")  # DINOv3's ConvNeXt
        self.is_naflex = hasattr(config, "num_patches")
        self.depth = len(config.depths) if self.is_cnn else config.num_hidden_layers
        self.patch = 2 ** (self.depth + 1) if self.is_cnn else config.patch_size
        flagged = "interpolate_pos_encoding" in inspect.signature(self.vision.forward).parameters
        self._flags = {"interpolate_pos_encoding": True} if flagged else {}
        self.norm = _last_norm(self.vision)
        self._keep_input(self.norm, "before the norm")
        for facet, names in zip(FACETS, (_QUERIES, _KEYS, _VALUES), strict=True):
            for layer, part in enumerate(self._parts(names)):
                self._keep_output(part, facet, layer)
        for layer, part in enumerate(self._parts(("qkv",))):  # BLIP's
            self._keep_output(part, "qkv", layer)

    def bare(self, dtype: str) -> Callable[[Tensor], Any]:
        import torch

        vision = self.vision.to(getattr(torch, dtype))
        if self.is_naflex:
            return lambda pixels: vision(
                **{k: part.to(pixels.device) for k, part in self._patches(pixels.float()).items()}
            )
        return lambda pixels: vision(pixel_values=pixels, **self._flags)

    def _parts(self, names: tuple[str, ...]) -> list[Any]:
        """Linear layers of these names, one a block, in the order of the blocks."""
        from torch import nn

        found = [
            module
            for name, module in self.vision.named_modules()
            if name.rpartition(".")[2] in names
            and isinstance(module, nn.Linear)
            and "attention" in name.replace("attn", "attention")
            and not name.startswith("head.")
        ]
        return found if len(found) == self.depth else []

    def _look(self, pixels: Tensor) -> None:
        self._pixels = pixels
        given = self._patches(pixels) if self.is_naflex else {"pixel_values": pixels}
        self._out = self.vision(**given, output_hidden_states=True, **self._flags)

    def _patches(self, pixels: Tensor) -> dict[str, Tensor]:
        """What Siglip2ImageProcessor makes of images that are not to be resized."""
        import numpy as np
        import torch
        from transformers.models.siglip2 import image_processing_pil_siglip2 as processing

        library: Any = processing
        cut = [
            library.convert_image_to_patches(image, self.patch) for image in pixels.cpu().numpy()
        ]
        patches = torch.from_numpy(np.stack(cut))
        return {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int32),
            "spatial_shapes": torch.tensor([self._grid(-1)] * len(pixels)),
        }

    def _layer(self, layer: int, norm: Norm) -> Tensor:
        if self.is_cnn:
            return self._stage(layer, norm)
        is_last = layer == self.depth - 1
        if is_last and norm == "auto":
            tokens: Tensor = self._out.last_hidden_state
            return tokens
        before: Tensor = self._out.hidden_states[layer + 1]
        if is_last and self._kept["before the norm", 0].ndim == 3:  # of CLIP's: the CLS alone
            before = self._kept["before the norm", 0]
        return self.norm(before) if norm == "final" else before

    def _stage(self, layer: int, norm: Norm) -> Tensor:
        """DINOv3 ConvNeXt's: the mean in the place of a CLS; its norm sees the last stage."""
        import torch

        if layer == self.depth - 1:
            before: Tensor = self._kept["before the norm", 0]
            return before if norm == "none" else self._out.last_hidden_state
        cells = self._out.hidden_states[layer + 1].flatten(2).mT
        return torch.cat((cells.mean(1, keepdim=True), cells), dim=1)

    def _grid(self, layer: int) -> tuple[int, int]:
        stride = 2 ** (layer % self.depth + 2) if self.is_cnn else self.patch
        return self._size[0] // stride, self._size[1] // stride

    def _head(self, tokens: Tensor) -> Tensor:
        """Of normed tokens: BlipForImageTextRetrieval's layer, or CLIP's."""
        layer = getattr(self.model, "vision_proj", None) or self.model.visual_projection
        projected: Tensor = layer(tokens)
        return projected

    def _projected(self) -> Tensor:
        """Its own norm and layer on every token; the CLS must be what get_image_features gives."""
        import torch

        tokens = self._head(self._layer(self.depth - 1, "final"))
        torch.testing.assert_close(tokens[:, 0], self._pooled(), rtol=1e-4, atol=1e-4)
        return tokens

    def _value(self) -> Tensor:
        """F3RM's formula in these modules: no residual, no MLP, then norm and projection."""
        out = self._parts(_OUTPUTS)[-1](self._facet(self.depth - 1, "value"))
        return self._head(self.norm(out))

    def _facet(self, layer: int, facet: Facet) -> Tensor:
        if ("qkv", layer) in self._kept:
            part: Tensor = self._kept["qkv", layer].chunk(3, dim=-1)[FACETS.index(facet)]
            return part
        kept: Tensor = self._kept[facet, layer]
        return kept

    def _pooled(self) -> Tensor:
        if hasattr(self.model, "vision_proj"):  # as its forward does for image_embeds
            return self._head(self._out.last_hidden_state[:, 0])
        if hasattr(self.model, "visual_projection"):
            kept = dict(self._kept)
            out = self.model.get_image_features(self._pixels, **self._flags)
            self._kept = kept
            projected: Tensor = getattr(out, "pooler_output", out)
            return projected
        pooled: Tensor = self._out.pooler_output
        return pooled


def hub_positions(
    table: Tensor, patch: int, has_registers: bool
) -> Callable[[Tensor, int, int], Tensor]:
    """facebookresearch/dinov2's interpolate_pos_encoding (models/vision_transformer.py) with the
    settings of its hub/backbones.py: interpolate_offset 0.1 and no antialiasing; for the models
    with registers 0.0 and antialiasing."""

    def interpolate_pos_encoding(tokens: Tensor, height: int, width: int) -> Tensor:
        import torch
        from torch import nn

        count = table.shape[1] - 1
        if tokens.shape[1] - 1 == count and height == width:
            return table
        side = math.isqrt(count)
        rows, columns = height // patch, width // patch
        sizes: dict[str, Any] = {"scale_factor": ((rows + 0.1) / side, (columns + 0.1) / side)}
        if has_registers:
            sizes = {"size": (rows, columns)}
        cells = nn.functional.interpolate(
            table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2),
            mode="bicubic",
            antialias=has_registers,
            **sizes,
        )
        if cells.shape[-2:] != (rows, columns):
            raise ValueError(f"torch.hub's formula gives {tuple(cells.shape[-2:])} cells")
        cells = cells.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)
        return torch.cat((table[:, :1], cells), dim=1)

    return interpolate_pos_encoding


def _last_norm(vision: Any) -> Any:
    """The model's last LayerNorm: upstream calls it by four names, always beside the blocks."""
    from torch import nn

    return [part for part in vision.children() if isinstance(part, nn.LayerNorm)][-1]
