"""Which kind of tower a module of open_clip is, and its shape as its parts tell it."""

from __future__ import annotations

from typing import Any

from featprep.encoders.base import PosEmbed, Stage
from featprep.encoders.openclip_base import Tower
from featprep.encoders.openclip_cnns import ConvTower, OwnResNet
from featprep.encoders.openclip_shapes import Shape, doubling
from featprep.encoders.openclip_vits import FixedTower, OwnViT, TimmViT, UnpositionedViT

_CNNS = ("ConvNeXt", "FastVit", "ResNet")
_VITS = ("VisionTransformer", "Eva")


def module_shape(visual: Any) -> Shape:
    """The shape of a tower that was built: what its modules say."""
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        return _trunk_shape(visual, trunk)
    if hasattr(visual, "attnpool"):
        width = visual.attnpool.c_proj.in_features
        return Shape(32, width, 4, visual.image_size, stages=doubling(32, width, 4))
    return Shape(
        visual.patch_size[0],
        visual.conv1.out_channels,
        len(visual.transformer.resblocks),
        visual.image_size[0],
        cls=True,
        has_norm=getattr(visual, "attn_pool", None) is None,
    )


def _trunk_shape(visual: Any, trunk: Any) -> Shape:
    infos, kind = trunk.feature_info, type(trunk).__name__
    own = getattr(getattr(trunk, "patch_embed", None), "img_size", None) or visual.image_size
    stages = tuple(Stage(info["reduction"], info["num_chs"]) for info in infos)
    has_cls = getattr(trunk, "cls_token", None) is not None
    return Shape(
        infos[-1]["reduction"],
        infos[-1]["num_chs"],
        len(infos),
        own[0],
        stages=stages if kind in _CNNS else (),
        cls=has_cls,
        registers=getattr(trunk, "num_prefix_tokens", 0) - has_cls,
        has_norm=kind in _VITS or kind == "ConvNeXt",
    )


def make_tower(visual: Any, blank: Any, convention: PosEmbed) -> Tower:
    """`visual` with its weights, `blank` the same on the meta device."""
    shape = module_shape(visual)
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        if hasattr(visual, "attnpool"):
            return OwnResNet(visual, blank, shape)
        return OwnViT(visual, shape, convention)
    kind = type(trunk).__name__
    if kind in _CNNS:
        return ConvTower(visual, blank, shape)
    if kind not in _VITS:
        return FixedTower(visual, shape)
    if trunk.pos_embed is None:
        return UnpositionedViT(visual, shape)
    return TimmViT(visual, shape, convention)
