"""Small towers of every kind that open_clip builds, as cards from which weights can be written."""

from __future__ import annotations

from typing import Any

from featprep.encoders.openclip_cards import Card
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

SIGLIP_STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def _small(settings: dict[str, Any]) -> dict[str, Any]:
    """What timm's builder passes to an entry point, less what is no argument of the module."""
    aside = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    own = {"img_size": 80, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}
    return own | {key: item for key, item in settings.items() if key not in aside}


@register_model  # as vit_base_patch16_siglip_224: no class token, a head that attends
def featprep_siglip(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    return VisionTransformer(class_token=False, **_small(settings))


@register_model  # as eva_giant_patch14_224, but with rotary positions
def featprep_eva(pretrained: bool = False, **settings: Any) -> Eva:
    return Eva(use_rot_pos_emb=True, ref_feat_shape=(4, 4), **_small(settings))


@register_model  # as eva02_base_patch16_clip_224: queries, keys, values apart, a norm inside
def featprep_eva02(pretrained: bool = False, **settings: Any) -> Eva:
    inside = {"qkv_fused": False, "scale_attn_inner": True, "scale_mlp": True}
    return Eva(use_rot_pos_emb=True, ref_feat_shape=(4, 4), **inside, **_small(settings))


@register_model  # as vit_pe_core_base_patch16_224
def featprep_pe(pretrained: bool = False, **settings: Any) -> Eva:
    own = {"attn_type": "rope", "use_pre_transformer_norm": True, "rope_grid_indexing": "xy"}
    return Eva(use_rot_pos_emb=True, ref_feat_shape=(4, 4), **own, **_small(settings))


@register_model  # as vitamin_xlarge_256: no position embeddings at all
def featprep_bare(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    return VisionTransformer(class_token=False, pos_embed="none", **_small(settings))


def card(vision: dict[str, Any], embed: int = 32, quick: bool = False, **said: Any) -> Card:
    return Card({"embed_dim": embed, "vision_cfg": vision}, said, quick)


def trunk(name: str, pool: str, proj: str | None, side: int = 80) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": side}


_OWN = {"image_size": 80, "patch_size": 16, "width": 64, "head_width": 32, "layers": 2}
_AVERAGED = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
TOWERS = {
    "openclip:small/vit": card(_OWN, quick=True),
    "openclip:small/clipa": card(_OWN | _AVERAGED, mean=(0.485, 0.456, 0.406)),
    "openclip:small/coca": card(
        _OWN | {"attentional_pool": True, "attn_pooler_heads": 8, "output_tokens": True}, 64
    ),
    "openclip:small/resnet": card(
        {"image_size": 96, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}
    ),
    "openclip:small/convnext": card(trunk("test_convnext", "", "mlp", 96)),
    "openclip:small/siglip": card(
        trunk("featprep_siglip", "map", "none"), 64, resize_mode="squash", **SIGLIP_STATISTICS
    ),
    "openclip:small/eva": card(trunk("featprep_eva", "token", None)),
    "openclip:small/eva02": card(trunk("featprep_eva02", "token", None)),
    "openclip:small/pe": card(trunk("featprep_pe", "map", None)),
    "openclip:small/bare": card(trunk("featprep_bare", "avg", None)),
    "openclip:small/relpos": card(trunk("test_vit_relpos", "", "linear", 160)),
}
