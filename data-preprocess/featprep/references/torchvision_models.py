"""torchvision's create_feature_extractor; its ViTs' weights in transformers' ViTModel.

torchvision's own ViTs take one size; at that they must pool what transformers' do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import Facet, ModelName, Norm, PosEmbed
from featprep.references.base import FACETS, Reference, quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor

_HEADS = ("fc", "classifier", "head", "heads")


def open_reference(name: ModelName, pos_embed: PosEmbed) -> Reference:
    architecture = name.id.partition("/")[0]
    return VisionTransformer(name) if architecture.startswith("vit_") else Stages(name)


class _OfTorchvision(Reference):
    def __init__(self, name: ModelName) -> None:
        import torch
        from torch import nn
        from torchvision import models

        super().__init__()
        self.architecture, _, tag = name.id.partition("/")
        enum = models.get_model_weights(self.architecture)
        published = enum[tag] if tag else enum.DEFAULT
        recipe = published.transforms()
        self.mean, self.std, self.side = recipe.mean, recipe.std, recipe.crop_size[0]
        size = {"image_size": self.side} if self.architecture.startswith("vit_") else {}
        weights = None if name.path else published
        self.model: Any = models.get_model(self.architecture, weights=weights, **size)
        if name.path:
            self.model.load_state_dict(torch.load(name.path, weights_only=True))
        for head in _HEADS:
            if hasattr(self.model, head):
                setattr(self.model, head, nn.Identity())
        self.model.eval()

    def bare(self, dtype: str) -> Callable[[Tensor], Any]:
        import torch

        forward: Callable[[Tensor], Any] = self.model.to(getattr(torch, dtype))
        return forward


class Stages(_OfTorchvision):
    patch = 32

    def __init__(self, name: ModelName) -> None:
        from torchvision.models.feature_extraction import create_feature_extractor

        super().__init__(name)
        nodes = self._nodes()
        self.depth = len(nodes)
        last = "permute" if self.architecture.startswith("swin") else nodes[-1]
        wanted = {node: str(layer) for layer, node in enumerate(nodes)}
        self.is_normed = last not in wanted
        if self.is_normed:
            wanted[last] = "normed"
        self.extractor = create_feature_extractor(self.model, {**wanted, "avgpool": "pooled"})

    def _nodes(self) -> list[str]:
        if hasattr(self.model, "layer4"):
            return [f"layer{stage}" for stage in range(1, 5)]
        count = len(self.model.features)
        step = 1 if self.architecture.startswith("efficientnet") else 2
        return [f"features.{index}" for index in range(1, count, step)]

    def _look(self, pixels: Tensor) -> None:
        for key, out in self.extractor(pixels).items():
            is_last_order = self.is_normed and key.isdigit()  # Swin's (B, rows, columns, C)
            self._kept[key, 0] = out.movedim(-1, 1) if is_last_order else out

    def _layer(self, layer: int, norm: Norm) -> Tensor:
        is_normed = self.is_normed and layer == self.depth - 1 and norm != "none"
        cells: Tensor = self._kept["normed" if is_normed else str(layer), 0]
        return cells.flatten(2).mT

    def _grid(self, layer: int) -> tuple[int, int]:
        rows, columns = self._kept[str(layer % self.depth), 0].shape[-2:]
        return rows, columns

    def _pooled(self) -> Tensor:
        pooled: Tensor = self._kept["pooled", 0]
        return pooled.flatten(1)


class VisionTransformer(_OfTorchvision):
    def __init__(self, name: ModelName) -> None:
        super().__init__(name)
        self.patch, self.depth = self.model.patch_size, len(self.model.encoder.layers)
        self.vit = _in_transformers(self.model)

    def _look(self, pixels: Tensor) -> None:
        import torch

        out = self.vit(
            pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=True
        )
        for layer, hidden in enumerate(out.hidden_states):  # the input of each block, and the last
            self._kept["before", layer] = hidden
        self._kept["normed", 0] = out.last_hidden_state
        if self._size == (self.side, self.side):
            own = self.model(pixels)
            torch.testing.assert_close(own, self._pooled(), rtol=1e-4, atol=1e-4)

    def _layer(self, layer: int, norm: Norm) -> Tensor:
        is_last = layer == self.depth - 1
        if is_last and norm != "none":
            normed: Tensor = self._kept["normed", 0]
            return normed
        tokens: Tensor = self._kept["before", layer + 1]
        return self.model.encoder.ln(tokens) if norm == "final" else tokens

    def _facet(self, layer: int, facet: Facet) -> Tensor:
        from torch.nn.functional import linear

        block = self.model.encoder.layers[layer]
        attention, tokens = block.self_attention, block.ln_1(self._kept["before", layer])
        every = linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
        return every.chunk(3, dim=-1)[FACETS.index(facet)]

    def _pooled(self) -> Tensor:
        normed: Tensor = self._kept["normed", 0]
        return normed[:, 0]


def _in_transformers(model: Any) -> Any:
    """transformers' ViTModel with torchvision's weights."""
    from transformers import ViTConfig, ViTModel

    library: Any = ViTModel
    layers = model.encoder.layers
    config = ViTConfig(
        hidden_size=model.hidden_dim,
        num_hidden_layers=len(layers),
        num_attention_heads=layers[0].num_heads,
        intermediate_size=model.mlp_dim,
        image_size=model.image_size,
        patch_size=model.patch_size,
        layer_norm_eps=1e-6,
    )
    with quiet_transformers():
        vit, report = library.from_pretrained(
            None,
            config=config,
            state_dict=dict(_renamed(model.state_dict())),
            add_pooling_layer=False,
            output_loading_info=True,
        )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise ValueError(f"transformers' ViT takes the weights otherwise: {report}")
    return vit.eval()


def _renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """torchvision's names of a ViT's tensors → those of google/vit-base-patch16-224, which every
    transformers reads."""
    rooms = {
        "ln_1": "layernorm_before",
        "ln_2": "layernorm_after",
        "self_attention.out_proj": "attention.output.dense",
        "mlp.0": "intermediate.dense",
        "mlp.3": "output.dense",
    }
    outside = {
        "class_token": "embeddings.cls_token",
        "encoder.pos_embedding": "embeddings.position_embeddings",
        "conv_proj": "embeddings.patch_embeddings.projection",
        "encoder.ln": "layernorm",
    }
    for key, item in state.items():
        place, _, kind = key.rpartition(".")
        if key in outside or place in outside:
            yield (outside[key] if key in outside else f"{outside[place]}.{kind}"), item
            continue
        block, _, room = place.removeprefix("encoder.layers.encoder_layer_").partition(".")
        layer = f"encoder.layer.{block}"
        if kind.startswith("in_proj_"):
            for part, third in zip(("query", "key", "value"), item.chunk(3), strict=True):
                yield f"{layer}.attention.attention.{part}.{kind.removeprefix('in_proj_')}", third
        elif room in rooms:
            yield f"{layer}.{rooms[room]}.{kind}", item
