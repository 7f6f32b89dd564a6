"""One set of weights in three libraries: OpenAI's CLIP as checkpoints of open_clip, transformers.

The formulas are those of open_clip's load_openai_model and transformers' convert_clip_original_
pytorch_to_hf. Vision towers alone; of ResNets, which transformers has not, to open_clip.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import ModelName
from featprep.references.openai_clip import MEAN, STD, load_model

if TYPE_CHECKING:
    from torch import Tensor

# openai/CLIP's part of a name → transformers', in this order.
_RENAMES = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.": "pre_layrnorm.",
    "ln_post.": "post_layernorm.",
    "transformer.resblocks.": "encoder.layers.",
    "attn.out_proj.": "self_attn.out_proj.",
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "c_fc.": "fc1.",
    "c_proj.": "fc2.",
}


def to_transformers(
    state: Mapping[str, Tensor], folder: Path, hidden_act: str = "quick_gelu"
) -> Path:
    """A CLIPModel's folder of openai/CLIP's state dict, or of its `visual.` part."""
    visual, shape = _visual(state), _shape(state)
    tensors = {"visual_projection.weight": visual.pop("proj").T}
    for key, item in visual.items():
        for old, new in _RENAMES.items():
            key = key.replace(old, new)
        if "in_proj_" in key:
            for part, third in zip("qkv", item.chunk(3), strict=True):
                place = key.replace("attn.in_proj_", f"self_attn.{part}_proj.")
                tensors[f"vision_model.{place}"] = third
        else:
            tensors[f"vision_model.{key}"] = item
    tower = {
        "model_type": "clip_vision_model",
        "hidden_size": shape["width"],
        "intermediate_size": 4 * shape["width"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["width"] // 64,
        "image_size": shape["image_size"],
        "patch_size": shape["patch_size"],
        "projection_dim": shape["embed_dim"],
        "hidden_act": hidden_act,
    }
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": shape["embed_dim"],
        "vision_config": tower,
    }
    side = shape["image_size"]
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "image_mean": MEAN,
        "image_std": STD,
    }
    content = {"config.json": config, "preprocessor_config.json": processor}
    return _write(folder, content, "model.safetensors", tensors)


def to_open_clip(state: Mapping[str, Tensor], folder: Path) -> Path:
    """A folder in open_clip's hub format: it keeps OpenAI's names, and QuickGELU is said."""
    tensors = {f"visual.{key}": item for key, item in _visual(state).items()}
    shape = _shape(state)
    embed_dim = shape.pop("embed_dim")
    config = {
        "model_cfg": {
            "embed_dim": embed_dim,
            "quick_gelu": True,
            "vision_cfg": shape,
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "layers": 1},
        },
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }
    return _write(folder, {"open_clip_config.json": config}, "open_clip_model.safetensors", tensors)


# family → how a checkpoint of it is made
CONVERSIONS: dict[str, Callable[[Mapping[str, Tensor], Path], Path]] = {
    "hf": to_transformers,
    "openclip": to_open_clip,
}


def conversions_of(name: ModelName) -> list[str]:
    """The other families that can run these weights."""
    if name.family != "clip":
        return []
    return ["openclip"] if _is_resnet(openai_state(name)) else list(CONVERSIONS)


def openai_state(name: ModelName) -> dict[str, Tensor]:
    """openai/CLIP's state dict of a model, as clip.load gives it."""
    state: dict[str, Tensor] = load_model(name).state_dict()
    return state


def _is_resnet(state: Mapping[str, Tensor]) -> bool:
    return "visual.layer1.0.conv1.weight" in state


def _visual(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.removeprefix("visual."): item.float()
        for key, item in state.items()
        if key.startswith("visual.")
    }


def _shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """As open_clip's vision_cfg has it, and embed_dim."""
    if _is_resnet(state):
        return _resnet_shape(state)
    conv, positions = state["visual.conv1.weight"], state["visual.positional_embedding"]
    patch = conv.shape[-1]
    return {
        "image_size": patch * round((len(positions) - 1) ** 0.5),
        "patch_size": patch,
        "width": conv.shape[0],
        "layers": sum(
            key.startswith("visual.transformer") and key.endswith("in_proj_weight") for key in state
        ),
        "embed_dim": state["visual.proj"].shape[1],
    }


def _resnet_shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    positions, out = state["visual.attnpool.positional_embedding"], "visual.attnpool.c_proj.weight"
    blocks = {tuple(key.split(".")[1:3]) for key in state if key.startswith("visual.layer")}
    return {
        "image_size": 32 * round((len(positions) - 1) ** 0.5),
        "width": positions.shape[1] // 32,
        "head_width": 64,
        "layers": [sum(stage == f"layer{n}" for stage, _ in blocks) for n in range(1, 5)],
        "embed_dim": state[out].shape[0],
    }


def _write(
    folder: Path, files: Mapping[str, Any], weights: str, tensors: Mapping[str, Tensor]
) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    plain = {key: item.contiguous() for key, item in tensors.items()}
    save_file(plain, folder / weights, {"format": "pt"})
    return folder
