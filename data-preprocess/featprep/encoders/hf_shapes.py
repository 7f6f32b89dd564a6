"""The tensors of transformers' vision models as published: names and shapes, from config.json.

For checkpoints of random weights. Every release of transformers reads these names, whatever it
calls its own modules. Of text towers there is a token, for files that hold one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from featprep.encoders import hf_config

Shapes = dict[str, tuple[int, ...]]
TEXT_WIDTH, VOCABULARY = 64, 1000


def shapes_of(config: Mapping[str, Any]) -> Shapes:
    """Every tensor of the vision model that config.json describes."""
    return _SHAPES[config["model_type"]](config, hf_config.tower_of(config))


def _pair(module: str, outputs: int, *inputs: int) -> Shapes:
    return {f"{module}.weight": (outputs, *inputs), f"{module}.bias": (outputs,)}


def _cells(tower: Mapping[str, Any]) -> int:
    return int((tower["image_size"] // tower["patch_size"]) ** 2)


def _dinov2(_: Mapping[str, Any], tower: Mapping[str, Any]) -> Shapes:
    width, patch = tower["hidden_size"], tower["patch_size"]
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, _cells(tower) + 1, width),
        **_pair("embeddings.patch_embeddings.projection", width, 3, patch, patch),
        **_pair("layernorm", width),
    }
    if tower.get("num_register_tokens"):
        shapes["embeddings.register_tokens"] = (1, tower["num_register_tokens"], width)
    hidden = (int(width * 4 * 2 / 3) + 7) // 8 * 8
    for block in (f"encoder.layer.{index}" for index in range(tower["num_hidden_layers"])):
        shapes |= _pair(f"{block}.norm1", width) | _pair(f"{block}.norm2", width)
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= _pair(f"{block}.attention.{part}", width, width)
        shapes |= {f"{block}.layer_scale{number}.lambda1": (width,) for number in (1, 2)}
        if tower.get("use_swiglu_ffn"):
            shapes |= _pair(f"{block}.mlp.weights_in", 2 * hidden, width)
            shapes |= _pair(f"{block}.mlp.weights_out", width, hidden)
        else:
            shapes |= _pair(f"{block}.mlp.fc1", 4 * width, width)
            shapes |= _pair(f"{block}.mlp.fc2", width, 4 * width)
    return shapes


def _dinov3(_: Mapping[str, Any], tower: Mapping[str, Any]) -> Shapes:
    width, patch, hidden = tower["hidden_size"], tower["patch_size"], tower["intermediate_size"]
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, 1, width),
        "embeddings.register_tokens": (1, tower["num_register_tokens"], width),
        **_pair("embeddings.patch_embeddings", width, 3, patch, patch),
        **_pair("norm", width),
    }
    has_bias = {"q": tower["query_bias"], "k": False, "v": tower["value_bias"], "o": True}
    for block in (f"layer.{index}" for index in range(tower["num_hidden_layers"])):
        shapes |= _pair(f"{block}.norm1", width) | _pair(f"{block}.norm2", width)
        for part, bias in has_bias.items():
            linear = _pair(f"{block}.attention.{part}_proj", width, width)
            shapes |= linear if bias else dict([next(iter(linear.items()))])
        shapes |= {f"{block}.layer_scale{number}.lambda1": (width,) for number in (1, 2)}
        for part in ("gate_proj", "up_proj") if tower["use_gated_mlp"] else ("up_proj",):
            shapes |= _pair(f"{block}.mlp.{part}", hidden, width)
        shapes |= _pair(f"{block}.mlp.down_proj", width, hidden)
    return shapes


def _convnext(_: Mapping[str, Any], tower: Mapping[str, Any]) -> Shapes:
    widths, before = tower["hidden_sizes"], 3
    shapes = _pair("layer_norm", widths[-1])
    for index, (width, depth) in enumerate(zip(widths, tower["depths"], strict=True)):
        down = f"stages.{index}.downsample_layers"
        if index == 0:
            shapes |= _pair(f"{down}.0", width, before, 4, 4) | _pair(f"{down}.1", width)
        else:
            shapes |= _pair(f"{down}.0", before) | _pair(f"{down}.1", width, before, 2, 2)
        for layer in (f"stages.{index}.layers.{number}" for number in range(depth)):
            shapes |= _pair(f"{layer}.depthwise_conv", width, 1, 7, 7)
            shapes |= _pair(f"{layer}.layer_norm", width)
            shapes |= _pair(f"{layer}.pointwise_conv1", 4 * width, width)
            shapes |= _pair(f"{layer}.pointwise_conv2", width, 4 * width)
            shapes[f"{layer}.gamma"] = (width,)
        before = width
    return shapes


def _vit(config: Mapping[str, Any], tower: Mapping[str, Any]) -> Shapes:
    """A classifier's file has its trunk under `vit.` and no pooler."""
    width, patch, hidden = tower["hidden_size"], tower["patch_size"], tower["intermediate_size"]
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, _cells(tower) + 1, width),
        **_pair("embeddings.patch_embeddings.projection", width, 3, patch, patch),
        **_pair("layernorm", width),
    }
    for block in (f"encoder.layer.{index}" for index in range(tower["num_hidden_layers"])):
        shapes |= _pair(f"{block}.layernorm_before", width)
        shapes |= _pair(f"{block}.layernorm_after", width)
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= _pair(f"{block}.attention.{part}", width, width)
        shapes |= _pair(f"{block}.intermediate.dense", hidden, width)
        shapes |= _pair(f"{block}.output.dense", width, hidden)
    if config["architectures"] == ["ViTModel"]:
        return shapes | _pair("pooler.dense", width, width)
    return {f"vit.{key}": shape for key, shape in shapes.items()} | _pair("classifier", 2, width)


def _clip(config: Mapping[str, Any], tower: Mapping[str, Any]) -> Shapes:
    width, patch = tower["hidden_size"], tower["patch_size"]
    return {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (_cells(tower) + 1, width),
        **_pair("vision_model.pre_layrnorm", width),
        **_blocks(tower),
        **_pair("vision_model.post_layernorm", width),
        "visual_projection.weight": (config["projection_dim"], width),
        "logit_scale": (),
        **_text(),
    }


def _siglip(_: Mapping[str, Any], tower: Mapping[str, Any]) -> Shapes:
    """NaFlex has `num_patches`, and a linear layer over patches in place of the convolution."""
    width, patch = tower["hidden_size"], tower["patch_size"]
    positions = tower.get("num_patches") or _cells(tower)
    inputs = (3 * patch * patch,) if "num_patches" in tower else (3, patch, patch)
    head = "vision_model.head"
    return {
        **_pair("vision_model.embeddings.patch_embedding", width, *inputs),
        "vision_model.embeddings.position_embedding.weight": (positions, width),
        **_blocks(tower),
        **_pair("vision_model.post_layernorm", width),
        f"{head}.probe": (1, 1, width),
        f"{head}.attention.in_proj_weight": (3 * width, width),
        f"{head}.attention.in_proj_bias": (3 * width,),
        **_pair(f"{head}.attention.out_proj", width, width),
        **_pair(f"{head}.layernorm", width),
        **_pair(f"{head}.mlp.fc1", tower["intermediate_size"], width),
        **_pair(f"{head}.mlp.fc2", width, tower["intermediate_size"]),
        "logit_scale": (1,),
        "logit_bias": (1,),
        **_text(),
    }


def _blip(config: Mapping[str, Any], tower: Mapping[str, Any]) -> Shapes:
    width, patch = tower["hidden_size"], tower["patch_size"]
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.position_embedding": (1, _cells(tower) + 1, width),
        **_pair("vision_model.embeddings.patch_embedding", width, 3, patch, patch),
        **_blocks(tower, is_fused=True),
        **_pair("vision_model.post_layernorm", width),
    }
    if config["architectures"] == ["BlipForImageTextRetrieval"]:
        shapes |= _pair("vision_proj", config["image_text_hidden_size"], width)
    return shapes


def _blocks(tower: Mapping[str, Any], is_fused: bool = False) -> Shapes:
    """Of CLIP and those after it; BLIP has query, key and value in one."""
    width, hidden, shapes = tower["hidden_size"], tower["intermediate_size"], Shapes()
    for index in range(tower["num_hidden_layers"]):
        block = f"vision_model.encoder.layers.{index}"
        shapes |= _pair(f"{block}.layer_norm1", width) | _pair(f"{block}.layer_norm2", width)
        if is_fused:
            shapes |= _pair(f"{block}.self_attn.qkv", 3 * width, width)
            shapes |= _pair(f"{block}.self_attn.projection", width, width)
        else:
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= _pair(f"{block}.self_attn.{part}", width, width)
        shapes |= _pair(f"{block}.mlp.fc1", hidden, width)
        shapes |= _pair(f"{block}.mlp.fc2", width, hidden)
    return shapes


def _text() -> Shapes:
    return {"text_model.embeddings.token_embedding.weight": (VOCABULARY, TEXT_WIDTH)}


_SHAPES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Shapes]] = {
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "dinov3_vit": _dinov3,
    "dinov3_convnext": _convnext,
    "vit": _vit,
    "clip": _clip,
    "altclip": _clip,
    "siglip": _siglip,
    "siglip2": _siglip,
    "blip": _blip,
}
