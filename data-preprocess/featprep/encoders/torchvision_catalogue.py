"""The names of torchvision's five families by heart: specs and recipes. Loads no torch.

ID: torchvision's own name, for its DEFAULT weights of today, or NAME/WEIGHTS for others. That the
rows are torchvision's is held by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from featprep.encoders.base import EncoderSpec, Recipe, Stage, Terms

_V1, _V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
_QUARTERS = (4, 8, 16, 32)  # strides
_E2E, _LINEAR = "IMAGENET1K_SWAG_E2E_V1", "IMAGENET1K_SWAG_LINEAR_V1"


@dataclass(frozen=True, slots=True)
class Weights:
    """One published set: `resize` of the short side, then the centre crop to `side`."""

    tag: str
    resize: int
    side: int = 224
    kernel: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True, slots=True)
class Architecture:
    """`depth`: blocks of a ViT, stages of a CNN, which are `stages`. `unit`: see EncoderSpec.
    `published`: the first is what the name alone means. `is_normed`: whether a norm follows the
    last layer. `is_half`: mean and standard deviation are 0.5, else ImageNet's."""

    width: int
    depth: int
    published: tuple[Weights, ...]
    patch: int = 32
    unit: int | None = 1
    stages: tuple[Stage, ...] = ()
    is_normed: bool = False
    is_half: bool = False


def _cnn(
    strides: tuple[int, ...],
    widths: tuple[int, ...],
    published: tuple[Weights, ...],
    unit: int,
    *,
    is_normed: bool = False,
    is_half: bool = False,
) -> Architecture:
    stages = tuple(map(Stage, strides, widths))
    return Architecture(widths[-1], len(stages), published, 32, unit, stages, is_normed, is_half)


def _doubling(width: int) -> tuple[int, ...]:
    """Of four stages, the last of this width."""
    return width // 8, width // 4, width // 2, width


def _resnet(width: int, *, has_v2: bool = True, resize: int = 256) -> Architecture:
    both = (Weights(_V2, 232), Weights(_V1, 256)) if has_v2 else (Weights(_V1, resize),)
    return _cnn(_QUARTERS, _doubling(width), both, 1)


def _efficientnet(
    widths: tuple[int, ...],
    resize: int,
    side: int,
    *,
    kernel: Literal["bilinear", "bicubic"] = "bicubic",
    tag: str = _V1,
    others: tuple[Weights, ...] = (),
    is_half: bool = False,
) -> Architecture:
    """Seven stages (v2_s: six), and the 1 × 1 convolution before the pooling as the last."""
    own = Weights(tag, resize, side, kernel)
    strides = (2, 4, 8, 16, 16, *[32] * (len(widths) - 5))
    return _cnn(strides, widths, (own, *others), 1, is_half=is_half)


def _vit(width: int, depth: int, patch: int, *published: Weights) -> Architecture:
    return Architecture(width, depth, published, patch, None, is_normed=True)


def _swin(width: int, resize: int, side: int = 224) -> Architecture:
    published = (Weights(_V1, resize, side, "bicubic"),)
    return _cnn(_QUARTERS, _doubling(width), published, 4, is_normed=True)


def _convnext(width: int, resize: int) -> Architecture:
    return _cnn(_QUARTERS, _doubling(width), (Weights(_V1, resize),), 32)


ARCHITECTURES: Mapping[str, Architecture] = {
    "resnet18": _resnet(512, has_v2=False),
    "resnet34": _resnet(512, has_v2=False),
    "resnet50": _resnet(2048),
    "resnet101": _resnet(2048),
    "resnet152": _resnet(2048),
    "resnext50_32x4d": _resnet(2048),
    "resnext101_32x8d": _resnet(2048),
    "resnext101_64x4d": _resnet(2048, has_v2=False, resize=232),
    "wide_resnet50_2": _resnet(2048),
    "wide_resnet101_2": _resnet(2048),
    "efficientnet_b0": _efficientnet((16, 24, 40, 80, 112, 192, 320, 1280), 256, 224),
    "efficientnet_b1": _efficientnet(
        (16, 24, 40, 80, 112, 192, 320, 1280), 255, 240, kernel="bilinear", tag=_V2,
        others=(Weights(_V1, 256, 240, "bicubic"),),
    ),
    "efficientnet_b2": _efficientnet((16, 24, 48, 88, 120, 208, 352, 1408), 288, 288),
    "efficientnet_b3": _efficientnet((24, 32, 48, 96, 136, 232, 384, 1536), 320, 300),
    "efficientnet_b4": _efficientnet((24, 32, 56, 112, 160, 272, 448, 1792), 384, 380),
    "efficientnet_b5": _efficientnet((24, 40, 64, 128, 176, 304, 512, 2048), 456, 456),
    "efficientnet_b6": _efficientnet((32, 40, 72, 144, 200, 344, 576, 2304), 528, 528),
    "efficientnet_b7": _efficientnet((32, 48, 80, 160, 224, 384, 640, 2560), 600, 600),
    "efficientnet_v2_s": _efficientnet(
        (24, 48, 64, 128, 160, 256, 1280), 384, 384, kernel="bilinear"
    ),
    "efficientnet_v2_m": _efficientnet(
        (24, 48, 80, 160, 176, 304, 512, 1280), 480, 480, kernel="bilinear"
    ),
    "efficientnet_v2_l": _efficientnet(
        (32, 64, 96, 192, 224, 384, 640, 1280), 480, 480, is_half=True
    ),
    "convnext_tiny": _convnext(768, 236),
    "convnext_small": _convnext(768, 230),
    "convnext_base": _convnext(1024, 232),
    "convnext_large": _convnext(1536, 232),
    "vit_b_16": _vit(
        768, 12, 16,
        Weights(_V1, 256), Weights(_E2E, 384, 384, "bicubic"),
        Weights(_LINEAR, 224, 224, "bicubic"),
    ),
    "vit_b_32": _vit(768, 12, 32, Weights(_V1, 256)),
    "vit_l_16": _vit(
        1024, 24, 16,
        Weights(_V1, 242), Weights(_E2E, 512, 512, "bicubic"),
        Weights(_LINEAR, 224, 224, "bicubic"),
    ),
    "vit_l_32": _vit(1024, 24, 32, Weights(_V1, 256)),
    "vit_h_14": _vit(
        1280, 32, 14, Weights(_E2E, 518, 518, "bicubic"), Weights(_LINEAR, 224, 224, "bicubic")
    ),
    "swin_t": _swin(768, 232),
    "swin_s": _swin(768, 246),
    "swin_b": _swin(1024, 238),
    "swin_v2_t": _swin(768, 260, 256),
    "swin_v2_s": _swin(768, 260, 256),
    "swin_v2_b": _swin(1024, 272, 256),
}  # fmt: skip


def _spec(id: str, row: Architecture, weights: Weights) -> EncoderSpec:
    half, is_vit = (0.5, 0.5, 0.5), not row.stages
    return EncoderSpec(
        name=f"torchvision:{id}",
        family="torchvision",
        patch=row.patch,
        hidden_dim=row.width,
        depth=row.depth,
        native_size=(weights.side, weights.side),
        recipe=Recipe(weights.resize, (weights.side, weights.side), weights.kernel),
        mean=half if row.is_half else (0.485, 0.456, 0.406),
        std=half if row.is_half else (0.229, 0.224, 0.225),
        pooled=True,
        cls=is_vit,
        final_norm=row.is_normed,
        has_layers=True,
        stages=row.stages,
        norms=("auto", "final", "none") if row.is_normed else ("auto", "none"),
        has_facets=is_vit,
        unit=row.unit,
    )


KNOWN = {
    id: _spec(id, row, weights)
    for name, row in ARCHITECTURES.items()
    for number, weights in enumerate(row.published)
    for id in (f"{name}/{weights.tag}" if number else name,)
}

# What else torchvision calls the weights that a name alone means.
SAME = {
    f"{name}/{tag}": name
    for name, row in ARCHITECTURES.items()
    for tag in (row.published[0].tag, "DEFAULT")
}


def tag_of(id: str) -> tuple[str, str]:
    """(torchvision's name, the member of its weights enum) of an ID."""
    name, _, tag = id.partition("/")
    return name, tag or ARCHITECTURES[name].published[0].tag


# `license` in the meta of those weights; torchvision states none of the others.
_SWAG = "https://github.com/facebookresearch/SWAG/blob/main/LICENSE"


def terms(id: str) -> Terms:
    """What torchvision states of a known id. Its addresses are open to all."""
    is_swag = id in KNOWN and "_SWAG_" in tag_of(id)[1]
    return Terms(_SWAG if is_swag else "unknown", is_gated=False)
