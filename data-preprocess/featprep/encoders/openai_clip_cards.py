"""OpenAI's nine models by heart, and what the shapes of a state dict say of one. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from featprep.encoders.base import EncoderSpec, ModelName, Recipe, Stage, Terms
from featprep.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
RESNET_STRIDE = 32  # of the last stage
# What clip's build_model reads shapes from.
_TEXT_KEYS = (
    "text_projection",
    "positional_embedding",
    "token_embedding.weight",
    "ln_final.weight",
)
_VIT_KEYS = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj", *_TEXT_KEYS)
_RESNET_MARK = "visual.layer1.0.conv1.weight"
_RESNET_KEYS = (
    *(f"visual.layer{stage}.0.conv1.weight" for stage in (1, 2, 3, 4)),
    "visual.attnpool.positional_embedding",
    "visual.attnpool.c_proj.weight",
    *_TEXT_KEYS,
)


def make_spec(
    id: str, *, patch: int, width: int, depth: int, side: int, projected: int
) -> EncoderSpec:
    return EncoderSpec(
        name=f"clip:{id}",
        family="clip",
        patch=patch,
        hidden_dim=width,
        depth=depth,
        native_size=(side, side),
        recipe=Recipe(resize=side, crop=(side, side)),
        mean=MEAN,
        std=STD,
        projected_dim=projected,
        text=True,
        pooled=True,
        pooler=True,
        final_norm=False,
        has_layers=True,
        norms=("auto", "final", "none"),
        has_value=True,
        has_facets=True,
    )


def make_resnet_spec(id: str, *, width: int, side: int, projected: int) -> EncoderSpec:
    """`width`: of the stem. Four stages, each of twice the channels and the stride of the last."""
    return EncoderSpec(
        name=f"clip:{id}",
        family="clip",
        patch=RESNET_STRIDE,
        hidden_dim=width * 32,
        depth=4,
        native_size=(side, side),
        recipe=Recipe(resize=side, crop=(side, side)),
        mean=MEAN,
        std=STD,
        projected_dim=projected,
        text=True,
        pooled=True,
        cls=False,
        final_norm=False,
        has_layers=True,
        stages=tuple(Stage(4 << stage, width * 4 << stage) for stage in range(4)),
        norms=("auto", "none"),
        has_value=True,
    )


# Blocks of each stage: what a spec does not say, and random weights of these models need.
RESNET_BLOCKS = {
    "RN50": (3, 4, 6, 3),
    "RN101": (3, 4, 23, 3),
    "RN50x4": (4, 6, 10, 6),
    "RN50x16": (6, 8, 18, 8),
    "RN50x64": (3, 15, 36, 10),
}
KNOWN = {
    "ViT-B/32": make_spec("ViT-B/32", patch=32, width=768, depth=12, side=224, projected=512),
    "ViT-B/16": make_spec("ViT-B/16", patch=16, width=768, depth=12, side=224, projected=512),
    "ViT-L/14": make_spec("ViT-L/14", patch=14, width=1024, depth=24, side=224, projected=768),
    "ViT-L/14@336px": make_spec(
        "ViT-L/14@336px", patch=14, width=1024, depth=24, side=336, projected=768
    ),
    "RN50": make_resnet_spec("RN50", width=64, side=224, projected=1024),
    "RN101": make_resnet_spec("RN101", width=64, side=224, projected=512),
    "RN50x4": make_resnet_spec("RN50x4", width=80, side=288, projected=640),
    "RN50x16": make_resnet_spec("RN50x16", width=96, side=384, projected=768),
    "RN50x64": make_resnet_spec("RN50x64", width=128, side=448, projected=1024),
}


# clip._MODELS; its module imports torchvision and with it torch's compiler, 1.7 s of a start
_BASE = "https://openaipublic.azureedge.net/clip/models"
_SHA256 = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
PUBLISHED = {  # id → the address, which holds the sha256 of its file
    id: f"{_BASE}/{sha256}/{id.replace('/', '-').replace('@', '-')}.pt"
    for id, sha256 in _SHA256.items()
}


def terms(id: str) -> Terms:
    """clip states no licence of its weights; its addresses are open to all."""
    return Terms(is_gated=False)


def spec_of(tensors: Mapping[str, Tensor], name: ModelName, where: object) -> EncoderSpec:
    """The spec of a state dict, by its shapes. Raises WeightsError if it is no CLIP of OpenAI's, or
    not the one that its name says."""
    keys = _RESNET_KEYS if _RESNET_MARK in tensors else _VIT_KEYS
    if lacking := [key for key in keys if key not in tensors]:
        raise WeightsError(
            f"{name}: {where} is no OpenAI CLIP state dict, it lacks {', '.join(lacking)}; allowed "
            "is clip's model.state_dict()"
        )
    spec = (_resnet_of if keys is _RESNET_KEYS else _vit_of)(tensors, name)
    if name.id in KNOWN and spec != KNOWN[name.id]:
        unit = "stages" if spec.stages else "blocks"
        raise WeightsError(
            f"{name}: {where} holds another architecture (patch {spec.patch}, width "
            f"{spec.hidden_dim}, {spec.depth} {unit}, side {spec.native_size[0]}, projected to "
            f"{spec.projected_dim}); give it as clip:YOUR_NAME={where}"
        )
    return spec


def _vit_of(tensors: Mapping[str, Tensor], name: ModelName) -> EncoderSpec:
    conv, positions = tensors["visual.conv1.weight"], tensors["visual.positional_embedding"]
    patch = conv.shape[-1]
    return make_spec(
        name.id,
        patch=patch,
        width=conv.shape[0],
        depth=sum(key.startswith("visual.") and key.endswith("in_proj_weight") for key in tensors),
        side=patch * round((len(positions) - 1) ** 0.5),
        projected=tensors["visual.proj"].shape[1],
    )


def _resnet_of(tensors: Mapping[str, Tensor], name: ModelName) -> EncoderSpec:
    return make_resnet_spec(
        name.id,
        width=tensors[_RESNET_MARK].shape[0],
        side=RESNET_STRIDE * math.isqrt(len(tensors["visual.attnpool.positional_embedding"]) - 1),
        projected=tensors["visual.attnpool.c_proj.weight"].shape[0],
    )
