"""What certify holds timm's and torchvision's maps against: each library's other way to the map.

Ours go through forward_intermediates and a hook; these through timm's forward_features,
torchvision's create_feature_extractor and, for its ViTs off their native size, transformers' ViT
with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import ModelName
from featprep.encoders.huggingface import quiet_transformers
from featprep.encoders.torchvision_catalogue import KNOWN, tag_of
from featprep.records import AnyArray, UInt8

if TYPE_CHECKING:
    from torch import Tensor

    from featprep.certify import Case

_NODES = {"resnet": "layer4", "efficientnet": "features", "convnext": "features", "swin": "permute"}


def timm_references(name: ModelName, cases: Sequence[Case]) -> Iterator[AnyArray]:
    """timm's forward_features. A ViT is built for each size, with transformers' positions."""
    import torch

    native = _timm_model(name, pretrained=True)
    is_vit = hasattr(native, "pos_embed") and not native.pretrained_cfg.get("window_size")
    for case in cases:
        model, size = native, tuple(native.pretrained_cfg["input_size"][1:])
        if is_vit and (case.height, case.width) != size:
            patch = native.feature_info[-1]["reduction"]
            sides = (case.height // patch * patch, case.width // patch * patch)
            model = _timm_model(name, pretrained=False, img_size=sides)
            state = native.state_dict()
            if native.pos_embed is not None:
                state["pos_embed"] = _positions(native.pos_embed, size, sides, patch)
            model.load_state_dict(state)
        config = model.pretrained_cfg
        with torch.inference_mode():
            yield _spatial(model, normalised(case.pixels, config["mean"], config["std"]))


def _timm_model(name: ModelName, **more: Any) -> Any:
    import timm
    from torch import nn

    library: Any = timm
    path = Path(name.path) if name.path else None
    source = f"local-dir:{path}" if path and path.is_dir() else name.id
    if path and not path.is_dir():
        more = {**more, "pretrained": False, "checkpoint_path": str(path)}
    model = library.create_model(source, **more).eval()
    if hasattr(model, "conv_head"):  # EfficientNet's: after the last stage, before the pooling
        model.conv_head, model.bn2 = nn.Identity(), nn.Identity()
    return model


def _spatial(model: Any, pixels: Tensor) -> AnyArray:
    """forward_features, which gives tokens, NHWC or NCHW, as (B, C, rows, columns)."""
    out: Tensor = model.forward_features(pixels)
    if out.ndim == 3:
        # Hiera knows no grid; it takes squares alone, and its tokens end up in rows.
        grid = getattr(model.patch_embed, "grid_size", (math.isqrt(out.shape[1]),) * 2)
        prefix = getattr(model, "num_prefix_tokens", 0)
        out = out[:, prefix:].unflatten(1, tuple(grid)).movedim(-1, 1)  # type: ignore[no-untyped-call]
    elif getattr(model, "output_fmt", "NCHW") == "NHWC":
        out = out.movedim(-1, 1)
    array: AnyArray = out.numpy()
    return array


def torchvision_references(name: ModelName, cases: Sequence[Case]) -> Iterator[AnyArray]:
    """create_feature_extractor; off the native size a ViT's weights in transformers' ViTModel."""
    import torch
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor

    architecture, tag = tag_of(name.id)
    published = models.get_model_weights(architecture)[tag]
    recipe, side = published.transforms(), KNOWN[name.id].native_size[0]
    is_vit = architecture.startswith("vit_")
    model = models.get_model(
        architecture,
        weights=None if name.path else published,
        **({"image_size": side} if is_vit else {}),
    ).eval()
    if name.path:
        model.load_state_dict(torch.load(name.path, weights_only=True))
    node = "encoder" if is_vit else _NODES[_family_of(architecture)]
    extractor = create_feature_extractor(model, {node: "map"})
    for case in cases:
        pixels = normalised(case.pixels, recipe.mean, recipe.std)
        with torch.inference_mode():
            if not is_vit:
                out = extractor(pixels)["map"]
            else:
                is_native = case.height == case.width == side
                tokens = extractor(pixels)["map"] if is_native else _by_transformers(model, pixels)
                grid = (case.height // model.patch_size, case.width // model.patch_size)
                out = tokens[:, 1:].unflatten(1, grid).movedim(-1, 1)
        yield out.numpy()


def _family_of(architecture: str) -> str:
    return next((kind for kind in _NODES if architecture.startswith(kind)), "resnet")


def _by_transformers(model: Any, pixels: Tensor) -> Tensor:
    """last_hidden_state of transformers' ViTModel with torchvision's weights."""
    import torch
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
    with torch.inference_mode():
        tokens: Tensor = vit(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    return tokens


def _renamed(state: Any) -> Iterator[tuple[str, Tensor]]:
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


def _positions(
    positions: Tensor, size: tuple[int, int], sides: tuple[int, int], patch: int
) -> Tensor:
    """Position embeddings of another size by transformers' own ViTEmbeddings, prefix untouched."""
    import torch
    from transformers import ViTConfig
    from transformers.models.vit.modeling_vit import ViTEmbeddings

    cells = (size[0] // patch) * (size[1] // patch)
    prefix = positions.shape[1] - cells
    config: Any = ViTConfig(
        hidden_size=positions.shape[2], image_size=size[0] // patch * patch, patch_size=patch
    )
    embeddings: Any = ViTEmbeddings(config)
    stand_in = torch.zeros(1, 1, positions.shape[2])  # its CLS
    embeddings.position_embeddings.data = torch.cat((stand_in, positions[:, prefix:].detach()), 1)
    tokens = torch.empty(1, 1 + (sides[0] // patch) * (sides[1] // patch), positions.shape[2])
    resampled: Tensor = embeddings.interpolate_pos_encoding(tokens, *sides)
    return torch.cat((positions[:, :prefix], resampled[:, 1:]), dim=1).detach()


def normalised(pixels: UInt8, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    import torch

    scaled = torch.from_numpy(pixels).float() / 255
    return (scaled - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
