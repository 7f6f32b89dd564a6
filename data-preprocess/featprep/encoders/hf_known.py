"""Published vision models of the hub, by heart: what their two config files say, abridged.

A selection; any other id of a model type in hf_config decides by its own files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featprep.encoders.base import Terms
from featprep.encoders.hf_config import spec_of

Files = tuple[dict[str, Any], dict[str, Any]]  # config.json, preprocessor_config.json

_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_SATELLITE = ([0.430, 0.411, 0.296], [0.213, 0.156, 0.143])  # DINOv3's SAT-493M
_OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
_BILINEAR, _BICUBIC = 2, 3


def _processor(
    kind: str,
    statistics: tuple[list[float], list[float]],
    resample: int,
    size: Mapping[str, int],
    crop: int | None = None,
) -> dict[str, Any]:
    mean, std = statistics
    cropped = {"do_center_crop": True, "crop_size": {"height": crop, "width": crop}} if crop else {}
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_resize": True,
        "size": dict(size),
        "resample": resample,
        **cropped,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _vit(patch: int, width: int, depth: int, side: int, heads: int = 0) -> dict[str, Any]:
    """The keys that every vision transformer has; heads are 64 wide where not said."""
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads or width // 64,
        "image_size": side,
        "patch_size": patch,
    }


def dinov2(
    width: int,
    depth: int,
    *,
    registers: int = 0,
    patch: int = 14,
    side: int = 518,
    is_gated: bool = False,
) -> Files:
    """facebook's eight: patch 14, made for 518, ImageNet's mean and standard deviation."""
    config = {
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        **_vit(patch, width, depth, side),
        "mlp_ratio": 4,
        "use_swiglu_ffn": is_gated,
        **({"num_register_tokens": registers} if registers else {}),
    }
    return config, _processor("Bit", _IMAGENET, _BICUBIC, {"shortest_edge": 256}, 224)


def dinov3(
    width: int,
    depth: int,
    hidden: int,
    *,
    is_gated: bool = False,
    heads: int = 0,
    biases: bool = True,
    statistics: tuple[list[float], list[float]] = _IMAGENET,
) -> Files:
    config = {
        "architectures": ["DINOv3ViTModel"],
        "model_type": "dinov3_vit",
        **_vit(16, width, depth, 224, heads),
        "intermediate_size": hidden,
        "use_gated_mlp": is_gated,
        "query_bias": biases,
        "value_bias": biases,
        "num_register_tokens": 4,
    }
    return config, _processor("DINOv3ViT", statistics, _BILINEAR, _square(224))


def dinov3_convnext(widths: list[int], depths: list[int]) -> Files:
    config = {
        "architectures": ["DINOv3ConvNextModel"],
        "model_type": "dinov3_convnext",
        "hidden_sizes": widths,
        "depths": depths,
        "image_size": 224,
    }
    return config, _processor("DINOv3ViT", _IMAGENET, _BILINEAR, _square(224))


def clip(patch: int, width: int, depth: int, projected: int, side: int = 224) -> Files:
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": projected,
        "vision_config": {
            "model_type": "clip_vision_model",
            **_vit(patch, width, depth, side),
            "intermediate_size": 4 * width,
            "projection_dim": projected,
            "hidden_act": "quick_gelu",
        },
    }
    return config, _processor("CLIP", _OPENAI, _BICUBIC, {"shortest_edge": side}, side)


def altclip(patch: int, width: int, depth: int, projected: int) -> Files:
    config, processor = clip(patch, width, depth, projected)
    tower = {**config["vision_config"], "model_type": "altclip_vision_model"}
    named = {"architectures": ["AltCLIPModel"], "model_type": "altclip", "vision_config": tower}
    return {**config, **named}, processor


def siglip(
    patch: int,
    width: int,
    depth: int,
    hidden: int,
    side: int,
    *,
    heads: int = 0,
    resample: int = _BICUBIC,
) -> Files:
    """SigLIP, and SigLIP2 with a fixed grid, whose files differ in `resample` alone."""
    config = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {
            "model_type": "siglip_vision_model",
            **_vit(patch, width, depth, side, heads),
            "intermediate_size": hidden,
        },
    }
    return config, _processor("Siglip", _HALF, resample, _square(side))


def naflex(width: int, depth: int, hidden: int, *, heads: int = 0) -> Files:
    """SigLIP2 whose grid follows each image: 256 patches of 16 in any shape."""
    tower = _vit(16, width, depth, 0, heads)
    del tower["image_size"]
    config = {
        "architectures": ["Siglip2Model"],
        "model_type": "siglip2",
        "vision_config": {
            "model_type": "siglip2_vision_model",
            **tower,
            "num_patches": 256,
            "intermediate_size": hidden,
        },
    }
    processor = _processor("Siglip2", _HALF, _BILINEAR, {})
    del processor["size"]
    return config, {**processor, "max_num_patches": 256, "patch_size": 16}


def blip(architecture: str, width: int, depth: int) -> Files:
    config = {
        "architectures": [architecture],
        "model_type": "blip",
        "image_text_hidden_size": 256,
        "vision_config": {
            "model_type": "blip_vision_model",
            **_vit(16, width, depth, 384),
            "intermediate_size": 4 * width,
        },
    }
    return config, _processor("Blip", _OPENAI, _BICUBIC, _square(384))


def vit(
    patch: int, width: int, depth: int, side: int = 224, architecture: str = "ViTModel"
) -> Files:
    config = {
        "architectures": [architecture],
        "model_type": "vit",
        **_vit(patch, width, depth, side, width // 80 if width == 1280 else 0),
        "intermediate_size": 4 * width,
    }
    return config, _processor("ViT", _HALF, _BILINEAR, _square(side))


_DINOV2 = {"small": (384, 12), "base": (768, 12), "large": (1024, 24), "giant": (1536, 40)}
_SIGLIP = {
    "base-patch16": (16, 768, 12, 3072, 0, (224, 256, 384, 512)),
    "large-patch16": (16, 1024, 24, 4096, 0, (256, 384)),
    "so400m-patch14": (14, 1152, 27, 4304, 16, (224, 384)),
}
_SIGLIP2 = {
    **_SIGLIP,
    "large-patch16": (16, 1024, 24, 4096, 0, (256, 384, 512)),
    "so400m-patch16": (16, 1152, 27, 4304, 16, (256, 384, 512)),
}
_CAPTION, _RETRIEVAL = "BlipForConditionalGeneration", "BlipForImageTextRetrieval"
_LVD, _SAT = "pretrain-lvd1689m", "pretrain-sat493m"
_CLASSIFIER = "ViTForImageClassification"

FILES: dict[str, Files] = {
    **{
        f"facebook/dinov2{suffix}-{size}": dinov2(
            width, depth, registers=registers, is_gated=size == "giant"
        )
        for suffix, registers in (("", 0), ("-with-registers", 4))
        for size, (width, depth) in _DINOV2.items()
    },
    f"facebook/dinov3-vits16-{_LVD}": dinov3(384, 12, 1536),
    f"facebook/dinov3-vits16plus-{_LVD}": dinov3(384, 12, 1536, is_gated=True),
    f"facebook/dinov3-vitb16-{_LVD}": dinov3(768, 12, 3072),
    f"facebook/dinov3-vitl16-{_LVD}": dinov3(1024, 24, 4096),
    f"facebook/dinov3-vith16plus-{_LVD}": dinov3(1280, 32, 5120, is_gated=True),
    f"facebook/dinov3-vit7b16-{_LVD}": dinov3(
        4096, 40, 8192, is_gated=True, heads=32, biases=False
    ),
    f"facebook/dinov3-vitl16-{_SAT}": dinov3(1024, 24, 4096, statistics=_SATELLITE),
    f"facebook/dinov3-vit7b16-{_SAT}": dinov3(
        4096, 40, 8192, is_gated=True, heads=32, biases=False, statistics=_SATELLITE
    ),
    f"facebook/dinov3-convnext-tiny-{_LVD}": dinov3_convnext([96, 192, 384, 768], [3, 3, 9, 3]),
    f"facebook/dinov3-convnext-small-{_LVD}": dinov3_convnext([96, 192, 384, 768], [3, 3, 27, 3]),
    f"facebook/dinov3-convnext-base-{_LVD}": dinov3_convnext([128, 256, 512, 1024], [3, 3, 27, 3]),
    f"facebook/dinov3-convnext-large-{_LVD}": dinov3_convnext([192, 384, 768, 1536], [3, 3, 27, 3]),
    "openai/clip-vit-base-patch32": clip(32, 768, 12, 512),
    "openai/clip-vit-base-patch16": clip(16, 768, 12, 512),
    "openai/clip-vit-large-patch14": clip(14, 1024, 24, 768),
    "openai/clip-vit-large-patch14-336": clip(14, 1024, 24, 768, 336),
    "BAAI/AltCLIP": altclip(14, 1024, 24, 768),
    **{
        f"google/{family}-{size}-{side}": siglip(
            patch, width, depth, hidden, side, heads=heads, resample=resample
        )
        for family, sizes, resample in (("siglip", _SIGLIP, 3), ("siglip2", _SIGLIP2, 2))
        for size, (patch, width, depth, hidden, heads, sides) in sizes.items()
        for side in sides
    },
    "google/siglip2-base-patch32-256": siglip(32, 768, 12, 3072, 256, resample=2),
    "google/siglip2-base-patch16-naflex": naflex(768, 12, 3072),
    "google/siglip2-so400m-patch16-naflex": naflex(1152, 27, 4304, heads=16),
    "Salesforce/blip-image-captioning-base": blip(_CAPTION, 768, 12),
    "Salesforce/blip-image-captioning-large": blip(_CAPTION, 1024, 24),
    **{
        f"Salesforce/blip-itm-{size}-{data}": blip(_RETRIEVAL, width, depth)
        for size, width, depth in (("base", 768, 12), ("large", 1024, 24))
        for data in ("coco", "flickr")
    },
    "google/vit-base-patch16-224-in21k": vit(16, 768, 12),
    "google/vit-base-patch32-224-in21k": vit(32, 768, 12),
    "google/vit-large-patch16-224-in21k": vit(16, 1024, 24),
    "google/vit-huge-patch14-224-in21k": vit(14, 1280, 32),
    "google/vit-base-patch16-224": vit(16, 768, 12, architecture=_CLASSIFIER),
    "google/vit-base-patch16-384": vit(16, 768, 12, 384, _CLASSIFIER),
    "google/vit-large-patch16-224": vit(16, 1024, 24, architecture=_CLASSIFIER),
    "google/vit-large-patch16-384": vit(16, 1024, 24, 384, _CLASSIFIER),
}
KNOWN = {id: spec_of(f"hf:{id}", *files) for id, files in FILES.items()}


# By the beginning of an id, from the model cards; OpenAI's name none.
_TERMS = {
    "facebook/dinov2-": Terms("apache-2.0", is_gated=False),
    "facebook/dinov3-": Terms("dinov3-license", is_gated=True),
    "google/siglip": Terms("apache-2.0", is_gated=False),
    "google/vit-": Terms("apache-2.0", is_gated=False),
    "Salesforce/blip-": Terms("bsd-3-clause", is_gated=False),
    "BAAI/AltCLIP": Terms("creativeml-openrail-m", is_gated=False),
    "openai/clip-": Terms(is_gated=False),
}


def terms(id: str) -> Terms:
    """What the publisher of a known id states."""
    return next((row for start, row in _TERMS.items() if id.startswith(start)), Terms())


def kind_of(id: str) -> str | None:
    """The model type of a known id."""
    return FILES[id][0]["model_type"] if id in FILES else None
