"""What our encoders are certified against: each family's upstream, one file a family.

Nothing here imports torch, or anything of our encoders but the plain data of encoders.base.
"""

from __future__ import annotations

import importlib

from featprep.encoders.base import ModelName, PosEmbed
from featprep.references.base import Reference

# family → its module, which has `open_reference(name, pos_embed)`
REFERENCES = {
    "clip": "featprep.references.openai_clip",
    "hf": "featprep.references.huggingface",
    "openclip": "featprep.references.openclip",
    "timm": "featprep.references.timm_models",
    "torchvision": "featprep.references.torchvision_models",
}
# One model of every architecture that a family has, of those that are not large.
EXAMPLES = {
    "clip": ("ViT-B/32", "RN50"),
    "hf": (
        "facebook/dinov2-base",
        "facebook/dinov2-with-registers-base",
        "facebook/dinov3-vitb16-pretrain-lvd1689m",
        "facebook/dinov3-vits16plus-pretrain-lvd1689m",
        "facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
        "openai/clip-vit-base-patch32",
        "BAAI/AltCLIP",
        "google/siglip-base-patch16-224",
        "google/siglip2-base-patch32-256",
        "google/siglip2-base-patch16-naflex",
        "Salesforce/blip-itm-base-coco",
        "Salesforce/blip-image-captioning-base",
        "google/vit-base-patch16-224-in21k",
    ),
    "openclip": (
        "ViT-B-32/openai",
        "RN50/openai",
        "convnext_base/laion400m_s13b_b51k",
        "coca_ViT-B-32/laion2b_s13b_b90k",
        "ViT-L-14-CLIPA/datacomp1b",
        "EVA02-B-16/merged2b_s8b_b131k",
        "ViT-B-16-SigLIP/webli",
        "ViT-B-32-SigLIP2-256/webli",
        "MobileCLIP-S1/datacompdr",
        "MobileCLIP-B/datacompdr",
        "ViTamin-S/datacomp1b",
        "PE-Core-B-16/meta",
    ),
    "timm": (
        "vit_small_patch16_224.augreg_in21k",
        "vit_base_patch14_reg4_dinov2.lvd142m",
        "vit_base_patch16_dinov3.lvd1689m",
        "vit_base_patch16_siglip_224.v2_webli",
        "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k",
        "resnet50.a1_in1k",
        "efficientnet_b0.ra_in1k",
        "convnext_tiny.dinov3_lvd1689m",
        "swin_base_patch4_window7_224.ms_in22k",
        "maxvit_tiny_tf_224.in1k",
        "hiera_base_224.mae",
    ),
    "torchvision": ("resnet18", "efficientnet_b0", "convnext_tiny", "vit_b_32", "swin_t"),
}


def open_reference(
    name: ModelName, pos_embed: PosEmbed = "transformers", quick_gelu: bool | None = None
) -> Reference:
    """Upstream's own model of an encoder, in float32 on the CPU. `quick_gelu`: of an openclip: name
    without a tag, which nothing else tells."""
    module = importlib.import_module(REFERENCES[name.family])
    told = {} if quick_gelu is None else {"quick_gelu": quick_gelu}
    reference: Reference = module.open_reference(name, pos_embed, **told)
    return reference
