"""What a Hugging Face folder says of its model: its two config files → EncoderSpec.

Knows the model types there are and facebook's checkpoints by heart; loads no torch or transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featprep.encoders import weights
from featprep.encoders.base import EncoderSpec, ModelName, Recipe
from featprep.errors import WeightsError

_KERNELS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True, slots=True)
class ModelType:
    """What the adapter must know of a model type that its config.json need not say.

    `defaults`: of transformers' config class, which config.json may leave out. `hub_offset` and
    `hub_antialias`: how position embeddings are resampled by facebookresearch/dinov2,
    hub/backbones.py.
    """

    class_name: str
    defaults: Mapping[str, Any]
    hub_offset: float
    hub_antialias: bool


_DINOV2 = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
}
MODEL_TYPES = {
    "dinov2": ModelType("Dinov2Model", _DINOV2, hub_offset=0.1, hub_antialias=False),
    "dinov2_with_registers": ModelType(
        "Dinov2WithRegistersModel",
        {**_DINOV2, "patch_size": 16, "num_register_tokens": 4},
        hub_offset=0.0,
        hub_antialias=True,
    ),
}


def dinov2_spec(id: str, *, width: int, depth: int, registers: int = 0) -> EncoderSpec:
    """facebook's eight: patch 14, made for 518, ImageNet's mean and standard deviation."""
    return EncoderSpec(
        name=f"hf:{id}",
        family="hf",
        patch=14,
        hidden_dim=width,
        depth=depth,
        native_size=(518, 518),
        recipe=Recipe(resize=256, crop=(224, 224), kernel="bicubic", rounding="transformers"),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        registers=registers,
        pos_embeds=("transformers", "hub"),
    )


_SIZES = {"small": (384, 12), "base": (768, 12), "large": (1024, 24), "giant": (1536, 40)}
KNOWN = {
    id: dinov2_spec(id, width=width, depth=depth, registers=registers)
    for prefix, registers in (("facebook/dinov2", 0), ("facebook/dinov2-with-registers", 4))
    for size, (width, depth) in _SIZES.items()
    for id in (f"{prefix}-{size}",)
}


def read_config(name: ModelName, folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise WeightsError(
            f"{name}: no folder {folder}; give one that holds {weights.CONFIG}, "
            f"{weights.PROCESSOR} and model.safetensors"
        )
    config = weights.read_json(folder / weights.CONFIG, name)
    kind = MODEL_TYPES.get(str(config.get("model_type")))
    if kind is None:
        raise WeightsError(
            f"{name}: {folder / weights.CONFIG} is of model type {config.get('model_type')}; "
            f"allowed is {' or '.join(MODEL_TYPES)}, such as hf:facebook/dinov2-base"
        )
    return {**kind.defaults, **config}


def read_spec(name: ModelName, folder: Path) -> EncoderSpec:
    config = read_config(name, folder)
    processor = weights.read_json(folder / weights.PROCESSOR, name)
    try:
        patch, side = _square(config["patch_size"]), _square(config["image_size"])
        mean, std = _statistics(processor)
        if config["num_channels"] != 3:
            raise ValueError(f"{config['num_channels']} channels; allowed is 3")
        return EncoderSpec(
            name=str(name),
            family="hf",
            patch=patch,
            hidden_dim=int(config["hidden_size"]),
            depth=int(config["num_hidden_layers"]),
            native_size=(side, side),
            recipe=_recipe(processor, side),
            mean=mean,
            std=std,
            registers=int(config.get("num_register_tokens", 0)),
            pos_embeds=("transformers", "hub"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{name}: cannot use {folder / weights.CONFIG} with {weights.PROCESSOR}: "
            f"{weights.one_line(error)}; put the checkpoint's own there"
        ) from error


def _square(size: Any) -> int:
    sides = set(size) if isinstance(size, list) else {size}
    if len(sides) != 1:
        raise ValueError(f"size {size}; allowed are squares")
    return int(sides.pop())


def _statistics(
    processor: Mapping[str, Any],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of pixels in [0, 1]."""
    if not math.isclose(processor.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise ValueError(f"rescale_factor {processor['rescale_factor']}; allowed is 1/255")
    if not (processor.get("do_rescale", True) and processor.get("do_normalize", True)):
        raise ValueError("do_rescale or do_normalize is off; allowed is on")
    red, green, blue = (float(value) for value in processor["image_mean"])
    red_std, green_std, blue_std = (float(value) for value in processor["image_std"])
    return (red, green, blue), (red_std, green_std, blue_std)


def _recipe(processor: Mapping[str, Any], side: int) -> Recipe:
    size: Any = processor.get("size", side) if processor.get("do_resize", True) else side
    if isinstance(size, dict):
        size = size.get("shortest_edge") or (int(size["height"]), int(size["width"]))
    crop: Any = processor.get("crop_size", size) if processor.get("do_center_crop", True) else size
    if isinstance(crop, dict):
        crop = (int(crop["height"]), int(crop["width"]))
    kernel: Any = _KERNELS[int(processor.get("resample", 3))]
    square = crop if isinstance(crop, tuple) else (int(crop), int(crop))
    return Recipe(resize=size, crop=square, kernel=kernel, rounding="transformers")
