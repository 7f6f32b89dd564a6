"""Names that the integration guide taught, and what they stand for. The long name is recorded."""

from __future__ import annotations

ALIASES = {
    "openai_clip_vit_b32": "clip:ViT-B/32",
    "openai_clip_vit_b16": "clip:ViT-B/16",
    "openai_clip_vit_l14": "clip:ViT-L/14",
    "openai_clip_rn50": "clip:RN50",
    "openai_clip_rn101": "clip:RN101",
    "open_clip_vit_b32_openai": "openclip:ViT-B-32/openai",
    "open_clip_vit_b32_laion400m": "openclip:ViT-B-32/laion400m_e32",
    "open_clip_vit_b16_laion400m": "openclip:ViT-B-16/laion400m_e32",
    "open_clip_vit_l14_laion2b": "openclip:ViT-L-14/laion2b_s32b_b82k",
    "open_clip_vit_h14_laion2b": "openclip:ViT-H-14/laion2b_s32b_b79k",
    "open_clip_convnext_base": "openclip:convnext_base/laion400m_s13b_b51k",
    "open_clip_convnext_large": "openclip:convnext_large_d_320/laion2b_s29b_b131k_ft_soup",
}
