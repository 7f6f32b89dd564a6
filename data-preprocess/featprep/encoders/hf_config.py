"""What a Hugging Face folder says of its model: its two config files → EncoderSpec.

Knows the model types there are; loads no torch or transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featprep.encoders import hf_processor, weights
from featprep.encoders.base import EncoderSpec, ModelName, Stage
from featprep.errors import UsageError, WeightsError


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer from a cell to where texts live. `tensor`: its name in the files. `size`: the
    key of config.json that holds its outputs, `default` where it does not."""

    tensor: str
    size: str
    default: int


@dataclass(frozen=True, slots=True)
class ModelType:
    """What the adapter must know of a model type that its config.json need not say.

    `defaults`: of transformers' config class, which config.json may leave out. `used`: how the
    names of the tensors begin that the map depends on, `root` taken off, which larger models put
    before them; `unused`: those among them that it does not depend on.
    """

    class_name: str
    defaults: Mapping[str, Any]
    root: str
    used: tuple[str, ...]
    processor: str  # its class, where preprocessor_config.json names none
    unused: tuple[str, ...] = ()
    with_text: tuple[str, ...] = ()  # the architectures that have a text tower beside it
    section: str = ""  # of config.json, where the model is a tower of a larger one
    cls: bool = True  # DINOv3 ConvNeXt has its pooled vector there
    pooler: tuple[str, ...] = ()  # how tensors begin that the pooled vector alone depends on
    pooled_in: tuple[str, ...] = ()  # the architectures whose files have them; empty: all
    final_norm: bool = True  # whether last_hidden_state is after the last LayerNorm
    is_flagged: bool = True  # other sizes only with interpolate_pos_encoding=True
    is_patchified: bool = False  # NaFlex takes patches and their grid, not images
    headless: Mapping[str, Any] = field(default_factory=dict)  # config that leaves the pooler out
    renamed: tuple[str, str] | None = None  # (as some files have it, as the module has it)
    projections: Mapping[str, Projection] = field(default_factory=dict)  # by architecture
    # How facebookresearch/dinov2, hub/backbones.py, resamples position embeddings.
    hub_offset: float | None = None
    hub_antialias: bool = False


def _vit(patch: int, side: int = 224) -> dict[str, Any]:
    return {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "image_size": side,
        "patch_size": patch,
        "num_channels": 3,
    }


_TOWER: dict[str, Any] = {
    "root": "vision_model.",
    "used": ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm."),
    "unused": ("embeddings.position_ids",),  # a counter that older files hold
}
_CLIP: dict[str, Any] = {
    **_TOWER,
    "class_name": "CLIPVisionModel",
    "defaults": _vit(32),
    "processor": "CLIP",
    "final_norm": False,
}
_ALTCLIP: dict[str, Any] = {
    **_CLIP,
    "class_name": "AltCLIPVisionModel",
    "renamed": ("encoder.layer.", "encoder.layers."),  # transformers 5 writes the former
}
_SIGLIP: dict[str, Any] = {
    **_TOWER,
    "class_name": "SiglipVisionModel",
    "defaults": _vit(16),
    "processor": "Siglip",
    "cls": False,
    "pooler": ("head.",),
    "headless": {"vision_use_head": False},
}
_NAFLEX: dict[str, Any] = {
    **_SIGLIP,
    "class_name": "Siglip2VisionModel",
    "defaults": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_patches": 256,
        "patch_size": 16,
        "num_channels": 3,
    },
    "processor": "Siglip2",
    "is_flagged": False,
    "is_patchified": True,
}
_BLIP: dict[str, Any] = {
    **_TOWER,
    "class_name": "BlipVisionModel",
    "defaults": _vit(16, 384),
    "processor": "Blip",
}
_VISUAL = Projection("visual_projection", "projection_dim", 512)
_ALT_VISUAL = Projection("visual_projection", "projection_dim", 768)
_RETRIEVAL = Projection("vision_proj", "image_text_hidden_size", 256)
_PARENT: dict[str, Any] = {
    "section": "vision_config"
}  # of texts and images; else of the tower alone

MODEL_TYPES = {
    "dinov2": ModelType(
        class_name="Dinov2Model",
        defaults=_vit(14),
        root="dinov2.",
        used=("embeddings.", "encoder.", "layernorm."),
        unused=("embeddings.mask_token",),
        processor="Bit",
        is_flagged=False,
        hub_offset=0.1,
    ),
    "dinov2_with_registers": ModelType(
        class_name="Dinov2WithRegistersModel",
        defaults={**_vit(16), "num_register_tokens": 4},
        root="dinov2_with_registers.",
        used=("embeddings.", "encoder.", "layernorm."),
        unused=("embeddings.mask_token",),
        processor="Bit",
        is_flagged=False,
        hub_offset=0.0,
        hub_antialias=True,
    ),
    "dinov3_vit": ModelType(
        class_name="DINOv3ViTModel",
        defaults={**_vit(16), "hidden_size": 384, "num_register_tokens": 0},
        root="model.",
        used=("embeddings.", "layer.", "norm."),
        unused=("embeddings.mask_token",),
        processor="DINOv3ViT",
        is_flagged=False,
    ),
    "dinov3_convnext": ModelType(
        class_name="DINOv3ConvNextModel",
        defaults={
            "hidden_sizes": [96, 192, 384, 768],
            "depths": [3, 3, 9, 3],
            "image_size": 224,
            "num_channels": 3,
        },
        root="model.",
        used=("stages.", "layer_norm."),
        processor="DINOv3ViT",
        is_flagged=False,
    ),
    "vit": ModelType(
        class_name="ViTModel",
        defaults=_vit(16),
        root="vit.",
        used=("embeddings.", "encoder.", "layernorm."),
        unused=("embeddings.mask_token",),
        processor="ViT",
        pooler=("pooler.",),
        pooled_in=("ViTModel",),
    ),
    "clip": ModelType(
        **_CLIP, **_PARENT, projections={"CLIPModel": _VISUAL}, with_text=("CLIPModel",)
    ),
    "clip_vision_model": ModelType(**_CLIP, projections={"CLIPVisionModelWithProjection": _VISUAL}),
    "altclip": ModelType(
        **_ALTCLIP,
        **_PARENT,
        projections={"AltCLIPModel": _ALT_VISUAL},
        with_text=("AltCLIPModel",),
    ),
    "altclip_vision_model": ModelType(**_ALTCLIP),
    "siglip": ModelType(**_SIGLIP, **_PARENT, with_text=("SiglipModel",)),
    "siglip_vision_model": ModelType(**_SIGLIP),
    "siglip2": ModelType(**_NAFLEX, **_PARENT, with_text=("Siglip2Model",)),
    "siglip2_vision_model": ModelType(**_NAFLEX),
    "blip": ModelType(
        **_BLIP,
        **_PARENT,
        projections={"BlipForImageTextRetrieval": _RETRIEVAL},
        with_text=("BlipForImageTextRetrieval",),
    ),
    "blip_vision_model": ModelType(**_BLIP),
}
DINO = ("dinov2", "dinov2_with_registers", "dinov3_vit", "dinov3_convnext")


def read_config(name: ModelName, folder: Path) -> dict[str, Any]:
    """config.json of a model type that `name` may be. Raises WeightsError and UsageError."""
    if not folder.is_dir():
        raise WeightsError(
            f"{name}: no folder {folder}; give one that holds {weights.CONFIG}, "
            f"{weights.PROCESSOR} and model.safetensors"
        )
    config = weights.read_json(folder / weights.CONFIG, name)
    model_type = str(config.get("model_type"))
    if model_type not in MODEL_TYPES:
        raise WeightsError(
            f"{name}: {folder / weights.CONFIG} is of model type "
            f"{model_type}; allowed is "
            f"{' or '.join(MODEL_TYPES)}, such as hf:facebook/dinov2-base"
        )
    if name.kinds and model_type not in name.kinds:
        raise UsageError(
            f"--model {name.path or name.id}: {folder / weights.CONFIG} is of model type "
            f"{model_type}; this command takes {', '.join(name.kinds)}; for this one use "
            f"featprep encode --model {name.typed}"
        )
    return config


def tower_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the vision tower, its class's defaults filled in.

    Where a CLIP has both, vision_config_dict counts and vision_config does not, as in CLIPConfig.
    """
    kind = MODEL_TYPES[config["model_type"]]
    if not kind.section:
        return {**kind.defaults, **config}
    return {
        **kind.defaults,
        **(config.get(f"{kind.section}_dict") or config.get(kind.section) or {}),
    }


def projection_of(config: Mapping[str, Any]) -> Projection | None:
    """The projection that a model of its architecture has; None if it names none that has one."""
    kinds = MODEL_TYPES[config["model_type"]].projections
    return next((kinds[key] for key in config.get("architectures") or [] if key in kinds), None)


def read_spec(name: ModelName, folder: Path) -> EncoderSpec:
    config = read_config(name, folder)
    processor = weights.read_json(folder / weights.PROCESSOR, name)
    try:
        return spec_of(str(name), config, processor)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{name}: cannot use {folder / weights.CONFIG} with {weights.PROCESSOR}: "
            f"{weights.one_line(error)}; put the checkpoint's own there"
        ) from error


def spec_of(name: str, config: Mapping[str, Any], processor: Mapping[str, Any]) -> EncoderSpec:
    """The spec of a model by its two files. Raises KeyError, TypeError, ValueError."""
    kind, tower = MODEL_TYPES[config["model_type"]], tower_of(config)
    if tower["num_channels"] != 3:
        raise ValueError(f"{tower['num_channels']} channels; allowed is 3")
    if "depths" in tower:  # ConvNeXt: a stem of stride 4, then every stage halves
        depth, width = len(tower["depths"]), tower["hidden_sizes"][-1]
        patch = 4 * 2 ** (depth - 1)
    else:
        depth, width = tower["num_hidden_layers"], tower["hidden_size"]
        patch = _square(tower["patch_size"])
    side, projection = _side(tower, patch), projection_of(config)
    processor = hf_processor.complete(processor, kind.processor)
    mean, std = hf_processor.read_statistics(processor)
    architectures = set(config.get("architectures") or ())
    is_cnn = "depths" in tower
    pooled = not kind.pooled_in or bool(architectures & set(kind.pooled_in))
    pooled = pooled and bool(tower.get("vision_use_head", True))  # SigLIP's, which some leave out
    return EncoderSpec(
        name=name,
        family="hf",
        patch=patch,
        hidden_dim=int(width),
        depth=int(depth),
        native_size=(side, side),
        recipe=None if kind.is_patchified else hf_processor.read_recipe(processor, side),
        mean=mean,
        std=std,
        projected_dim=int(config.get(projection.size, projection.default)) if projection else None,
        cls=kind.cls,
        registers=int(tower.get("num_register_tokens", 0)),
        text=bool(architectures & set(kind.with_text)),
        pooled=pooled,
        pooler=pooled,
        final_norm=kind.final_norm,
        has_layers=True,
        stages=tuple(
            Stage(4 * 2**index, int(width)) for index, width in enumerate(tower["hidden_sizes"])
        )
        if is_cnn
        else (),
        norms=("auto", "final", "none"),
        has_value=projection is not None,
        has_facets=not is_cnn,
        pos_embeds=("transformers",) if kind.hub_offset is None else ("transformers", "hub"),
    )


def _side(tower: Mapping[str, Any], patch: int) -> int:
    """Of the square whose cells have a position each."""
    if "num_patches" in tower:
        return math.isqrt(int(tower["num_patches"])) * patch
    return _square(tower["image_size"])


def _square(size: Any) -> int:
    sides = set(size) if isinstance(size, list) else {size}
    if len(sides) != 1:
        raise ValueError(f"size {size}; allowed are squares")
    return int(sides.pop())
