"""The models of timm that `featprep models` lists, by heart; what pretrained_cfg says of pixels.

timm has 1,800 more, which are taken by name all the same. Loads no torch or timm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from featprep.encoders.base import EncoderSpec, ModelName, Recipe, Stage, Terms
from featprep.errors import WeightsError

_Triple = tuple[float, float, float]
_IMAGENET: tuple[_Triple, _Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: tuple[_Triple, _Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP: tuple[_Triple, _Triple] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)


def is_spelled(id: str) -> bool:
    """Whether an ID may be a name of timm's, NAME or NAME.TAG: only timm knows whether it is."""
    return re.fullmatch(r"[a-z]\w*(\.\w+)?", id) is not None


def make_recipe(name: ModelName, config: Mapping[str, Any], size: tuple[int, int]) -> Recipe:
    """timm.data's transforms_imagenet_eval of a pretrained_cfg: crop_pct, crop_mode, interpolation.

    center: the short side to floor(side / crop_pct); squash: stretched to it. Then centre crop.
    """
    share, mode = float(config.get("crop_pct") or 0.875), config.get("crop_mode") or "center"
    kernel: Any = config.get("interpolation") or "bicubic"
    scaled = (math.floor(size[0] / share), math.floor(size[1] / share))
    if mode == "squash":
        return Recipe(resize=scaled, crop=size, kernel=kernel)
    if mode != "center" or scaled[0] != scaled[1]:
        raise WeightsError(
            f"{name}: its own recipe (crop_mode {mode}, {size[0]}×{size[1]}) cannot be followed; "
            "allowed are squash, and center on squares"
        )
    return Recipe(resize=scaled[0], crop=size, kernel=kernel)


def _vit(
    id: str,
    width: int,
    depth: int,
    side: int = 224,
    patch: int = 16,
    *,
    pixels: tuple[_Triple, _Triple] = _IMAGENET,
    crop_pct: float = 0.9,
    crop_mode: Literal["center", "squash"] = "center",
    cls: bool = True,
    registers: int = 0,
    is_normed: bool = True,
) -> EncoderSpec:
    """`is_normed`: unless the model norms the mean of the cells, and not the cells."""
    config = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": "bicubic"}
    return EncoderSpec(
        name=f"timm:{id}",
        family="timm",
        patch=patch,
        hidden_dim=width,
        depth=depth,
        native_size=(side, side),
        recipe=make_recipe(ModelName("timm", id), config, (side, side)),
        mean=pixels[0],
        std=pixels[1],
        pooled=True,
        cls=cls,
        registers=registers,
        final_norm=is_normed,
        has_layers=True,
        norms=("auto", "final", "none") if is_normed else ("auto", "none"),
        has_facets=True,
        pos_embeds=("transformers", "hub"),
    )


def _cnn(
    id: str,
    widths: tuple[int, ...],
    side: int = 224,
    *,
    unit: int | None = 1,
    pixels: tuple[_Triple, _Triple] = _IMAGENET,
    crop_pct: float = 0.875,
    is_normed: bool = False,
) -> EncoderSpec:
    """`widths`: of its stages. `unit`: see EncoderSpec; None for what takes its own size alone."""
    config = {"crop_pct": crop_pct, "interpolation": "bicubic"}
    strides = (2, 4, 8, 16, 32)[-len(widths) :]
    return EncoderSpec(
        name=f"timm:{id}",
        family="timm",
        patch=32,
        hidden_dim=widths[-1],
        depth=len(widths),
        native_size=(side, side),
        recipe=make_recipe(ModelName("timm", id), config, (side, side)),
        mean=pixels[0],
        std=pixels[1],
        pooled=True,
        cls=False,
        final_norm=is_normed,
        has_layers=True,
        stages=tuple(map(Stage, strides, widths)),
        norms=("auto", "final", "none") if is_normed else ("auto", "none"),
        fixed_size=unit is None,
        unit=unit,
    )


_SPECS = (
    _vit("vit_tiny_patch16_224.augreg_in21k", 192, 12, pixels=_HALF),
    _vit("vit_small_patch16_224.augreg_in21k", 384, 12, pixels=_HALF),
    _vit("vit_base_patch16_224.augreg_in21k", 768, 12, pixels=_HALF),
    _vit("vit_large_patch16_224.augreg_in21k", 1024, 24, pixels=_HALF),
    _vit("vit_base_patch16_224.dino", 768, 12),
    _vit("vit_base_patch16_224.mae", 768, 12),
    _vit("vit_base_patch16_clip_224.openai", 768, 12, pixels=_CLIP),
    _vit("deit3_base_patch16_224.fb_in22k_ft_in1k", 768, 12, crop_pct=1.0),
    _vit("vit_small_patch14_dinov2.lvd142m", 384, 12, 518, 14, crop_pct=1.0),
    _vit("vit_base_patch14_dinov2.lvd142m", 768, 12, 518, 14, crop_pct=1.0),
    _vit("vit_large_patch14_dinov2.lvd142m", 1024, 24, 518, 14, crop_pct=1.0),
    _vit("vit_base_patch14_reg4_dinov2.lvd142m", 768, 12, 518, 14, crop_pct=1.0, registers=4),
    _vit("vit_base_patch16_dinov3.lvd1689m", 768, 12, 256, crop_pct=1.0, registers=4),
    _vit("vit_large_patch16_dinov3.lvd1689m", 1024, 24, 256, crop_pct=1.0, registers=4),
    _vit("vit_base_patch16_siglip_224.v2_webli", 768, 12, pixels=_HALF, cls=False),
    _vit("vit_so400m_patch14_siglip_384.webli", 1152, 27, 384, 14, pixels=_HALF, cls=False),
    _vit(
        "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k",
        768, 12, 448, 14, pixels=_CLIP, crop_pct=1.0, crop_mode="squash", is_normed=False,
    ),
    _cnn("resnet50.a1_in1k", (64, 256, 512, 1024, 2048), crop_pct=0.95),
    _cnn("efficientnet_b0.ra_in1k", (16, 24, 40, 112, 320)),
    _cnn("tf_efficientnetv2_s.in21k", (24, 48, 64, 160, 256), 300, pixels=_HALF, crop_pct=1.0),
    _cnn("convnext_base.fb_in22k", (128, 256, 512, 1024), unit=32),
    _cnn("convnext_tiny.dinov3_lvd1689m", (96, 192, 384, 768), unit=32, crop_pct=1.0),
    _cnn("convnextv2_base.fcmae_ft_in22k_in1k", (128, 256, 512, 1024), unit=32),
    _cnn(
        "swin_base_patch4_window7_224.ms_in22k", (128, 256, 512, 1024), unit=None, crop_pct=0.9,
        is_normed=True,
    ),
    _cnn("maxvit_tiny_tf_224.in1k", (64, 64, 128, 256, 512), unit=None, crop_pct=0.95),
    _cnn("hiera_base_224.mae", (96, 192, 384, 768), unit=None, crop_pct=0.9),
)  # fmt: skip
KNOWN = {spec.name.partition(":")[2]: spec for spec in _SPECS}

# `license` of timm's pretrained_cfg, where it is not _USUAL.
_USUAL = "apache-2.0"
_LICENCES = {
    "vit_base_patch16_224.mae": "cc-by-nc-4.0",
    "vit_base_patch16_dinov3.lvd1689m": "dinov3-license",
    "vit_large_patch16_dinov3.lvd1689m": "dinov3-license",
    "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k": "mit",
    "convnext_tiny.dinov3_lvd1689m": "dinov3-license",
    "convnextv2_base.fcmae_ft_in22k_in1k": "cc-by-nc-4.0",
    "swin_base_patch4_window7_224.ms_in22k": "mit",
    "hiera_base_224.mae": "cc-by-nc-4.0",
}


def terms(id: str) -> Terms:
    """What timm states of a known id: a licence, and nothing of gating."""
    return Terms(_LICENCES.get(id, _USUAL)) if id in KNOWN else Terms()


def tiny_spec(width: int, depth: int) -> EncoderSpec:
    return _vit("tiny", width, depth, patch=14, pixels=_HALF)
