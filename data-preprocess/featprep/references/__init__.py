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
}


def open_reference(name: ModelName, pos_embed: PosEmbed = "transformers") -> Reference:
    """Upstream's own model of an encoder, in float32 on the CPU."""
    reference: Reference = importlib.import_module(REFERENCES[name.family]).open_reference(
        name, pos_embed
    )
    return reference
