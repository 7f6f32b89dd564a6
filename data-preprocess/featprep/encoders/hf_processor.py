"""preprocessor_config.json → mean, standard deviation and recipe, as transformers would read it.

What the file leaves out, its image processor's class decides. Loads no transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from featprep.encoders.base import Recipe

_KERNELS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers
_SUFFIXES = ("Pil", "Fast", "ImageProcessor", "FeatureExtractor")  # of one class, over the years
_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])


def _class(
    side: int, resample: int, statistics: tuple[list[float], list[float]], is_cropping: bool = False
) -> dict[str, Any]:
    square = {"height": side, "width": side}
    return {
        "size": {"shortest_edge": side} if is_cropping else square,
        "resample": resample,
        "do_center_crop": is_cropping,
        "crop_size": square,
        "image_mean": statistics[0],
        "image_std": statistics[1],
    }


# transformers' classes and their defaults: models/*/image_processing_*.py
PROCESSORS = {
    "Bit": _class(224, 3, _CLIP, is_cropping=True),
    "CLIP": _class(224, 3, _CLIP, is_cropping=True),
    "Siglip": _class(224, 3, _HALF),
    "Siglip2": _class(256, 2, _HALF),  # NaFlex: of its size nothing is read
    "Blip": _class(384, 3, _CLIP),
    "ViT": _class(224, 2, _HALF),
    "DINOv3ViT": _class(224, 2, _IMAGENET),
}
# Of these, `"size": 224` means the short side; of the others, a square.
_SHORT_SIDE = ("Bit", "CLIP", "Siglip")


def complete(processor: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The file with its class's defaults; `kind` where it names no class. Raises ValueError.

    null is no default but off, as it is in transformers.
    """
    named = processor.get("image_processor_type") or processor.get("feature_extractor_type") or kind
    for suffix in _SUFFIXES:
        named = str(named).removesuffix(suffix)
    if named not in PROCESSORS:
        raise ValueError(f"image processor {named}; allowed are {', '.join(PROCESSORS)}")
    whole = {**PROCESSORS[named], **processor}
    if isinstance(whole["size"], int) and named not in _SHORT_SIDE:
        whole["size"] = {"height": whole["size"], "width": whole["size"]}
    return whole


def read_statistics(
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


def read_recipe(processor: Mapping[str, Any], side: int) -> Recipe:
    """`side`: the model's own, for a processor that does not resize."""
    size: Any = processor["size"] if processor.get("do_resize", True) else side
    if isinstance(size, dict):
        size = size.get("shortest_edge") or (int(size["height"]), int(size["width"]))
    elif not isinstance(size, int):
        raise ValueError(f"size {size}; allowed is a number, height and width, or shortest_edge")
    crop: Any = processor["crop_size"] if processor["do_center_crop"] else size
    if isinstance(crop, dict):
        crop = (int(crop["height"]), int(crop["width"]))
    kernel: Any = _KERNELS[int(processor["resample"])]
    square = crop if isinstance(crop, tuple) else (int(crop), int(crop))
    return Recipe(resize=size, crop=square, kernel=kernel, rounding="transformers")
