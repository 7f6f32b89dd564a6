"""Checkpoints with seeded random weights, in each family's published format: stand-ins.

`tiny` is three blocks in a temporary folder; tests and benchmarks write any architecture. Knows
the names and shapes of the published tensors; loading is the families' own code.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from featprep.encoders import (
    hf_config,
    huggingface,
    openai_clip,
    random_modules,
    timm_catalogue,
    timm_models,
    torchvision_catalogue,
    weights,
)
from featprep.encoders.base import Encoder, EncoderSpec, LoadOptions, ModelName
from featprep.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

TINY = {
    "clip": replace(
        openai_clip.make_spec("tiny", patch=14, width=64, depth=3, side=224, projected=32),
        meaningless=True,
    ),
    "hf": replace(hf_config.dinov2_spec("tiny", width=64, depth=3), meaningless=True),
    "timm": replace(timm_catalogue.tiny_spec(width=64, depth=3), meaningless=True),
}
_STAGES = 5  # of timm's CNNs, at most; what is deeper is a ViT
_TEXT_WIDTH, _CONTEXT, _VOCABULARY = 64, 77, 49408
_HEAD_DIM = 64  # in OpenAI's CLIP and in DINOv2 alike


def load_tiny(name: ModelName, options: LoadOptions) -> Encoder:
    """The family's tiny encoder, written to a temporary folder and loaded as a real one is."""
    loaders = {"clip": openai_clip.load, "hf": huggingface.load, "timm": timm_models.load}
    with tempfile.TemporaryDirectory(prefix="featprep-tiny-") as folder:
        path = write_tiny(name.family, Path(folder))
        encoder: Encoder = loaders[name.family](replace(name, path=str(path)), options)
    encoder.spec = TINY[name.family]
    encoder.origin = "made here"
    return encoder


def write_tiny(family: str, folder: Path) -> Path:
    """Write the tiny checkpoint of a family; returns its folder (hf, timm) or file (clip)."""
    if family == "timm":
        shape = {"patch_size": 14, "embed_dim": 64, "depth": 3, "num_heads": 1}
        return random_modules.write_timm("vit_tiny_patch16_224.augreg_in21k", folder, **shape)
    return write_checkpoint(TINY[family], folder)


def write_random(name: str, folder: Path, layers: int | None = None) -> Path:
    """Write random weights of a known encoder, FAMILY:ID: all of its blocks, or the first few.

    A CNN, and what torchvision publishes, is always whole.
    """
    family, _, id = name.partition(":")
    if family == "timm" and id in timm_catalogue.KNOWN:
        cut = layers and timm_catalogue.KNOWN[id].depth > _STAGES
        return random_modules.write_timm(id, folder, **({"depth": layers} if cut else {}))
    if family == "torchvision" and id in torchvision_catalogue.KNOWN:
        return random_modules.write_torchvision(id, folder)
    known = {"clip": openai_clip.KNOWN, "hf": hf_config.KNOWN}.get(family, {})
    if id not in known:
        raise UsageError(
            f"write_random {name}: allowed are the published names, such as clip:ViT-B/32"
        )
    spec = known[id]
    return write_checkpoint(replace(spec, depth=layers or spec.depth), folder, "giant" in id)


def write_checkpoint(spec: EncoderSpec, folder: Path, swiglu: bool = False) -> Path:
    """Write random weights of the architecture that `spec` describes. Same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    if spec.family == "clip":
        import torch

        path = folder / f"{spec.name.partition(':')[2].replace('/', '-')}.pt"
        drawn = _draw(_clip_shapes(spec))
        # As OpenAI's: float16 holds every value, so that clip.load itself rounds nothing.
        torch.save({key: item.half().float() for key, item in drawn.items()}, path)
        return path
    from safetensors.torch import save_file

    for file, content in (
        (weights.CONFIG, _dinov2_config(spec, swiglu)),
        (weights.PROCESSOR, _dinov2_processor(spec)),
    ):
        (folder / file).write_text(json.dumps(content, indent=2) + "\n")
    save_file(_draw(_dinov2_shapes(spec, swiglu)), folder / "model.safetensors", {"format": "pt"})
    return folder


def _draw(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random float32 tensors that keep activations finite and varied at any depth.

    Matrices have variance 1 / inputs; gains lie around 1; what is added is small. Each is seeded by
    its own name, so that a checkpoint of fewer blocks is the beginning of a larger one.
    """
    import numpy as np
    import torch

    drawn = {}
    for name, shape in shapes.items():
        normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(
            shape, dtype=np.float32
        )
        is_gain = name.endswith(("lambda1", "logit_scale")) or _is_norm_gain(name)
        inputs = shape[0] if name.endswith("proj") else int(np.prod(shape[1:]))
        small = len(shape) < 2 or "token" in name or "embedding" in name.split(".")[-1]
        scale = 0.1 if is_gain or small else inputs**-0.5
        drawn[name] = torch.from_numpy(np.asarray(normal * np.float32(scale) + np.float32(is_gain)))
    return drawn


def _is_norm_gain(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    return kind == "weight" and ("norm" in module or ".ln_" in f".{module}")


def _dinov2_shapes(spec: EncoderSpec, swiglu: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of facebook/dinov2-* as published, which every transformers reads and writes."""
    width, patch = spec.hidden_dim, spec.patch
    cells = (spec.native_size[0] // patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, cells + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        **_pair("layernorm", width),
    }
    if spec.registers:
        shapes["embeddings.register_tokens"] = (1, spec.registers, width)
    hidden = (int(width * 4 * 2 / 3) + 7) // 8 * 8
    for block in (f"encoder.layer.{index}" for index in range(spec.depth)):
        shapes |= _pair(f"{block}.norm1", width) | _pair(f"{block}.norm2", width)
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= _pair(f"{block}.attention.{part}", width, width)
        shapes |= {f"{block}.layer_scale{number}.lambda1": (width,) for number in (1, 2)}
        if swiglu:
            shapes |= _pair(f"{block}.mlp.weights_in", 2 * hidden, width)
            shapes |= _pair(f"{block}.mlp.weights_out", width, hidden)
        else:
            shapes |= _pair(f"{block}.mlp.fc1", 4 * width, width)
            shapes |= _pair(f"{block}.mlp.fc2", width, 4 * width)
    return shapes


def _clip_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """The tensors of OpenAI's CLIP; the text tower is one narrow block whatever the other is."""
    width, patch, text, embed = spec.hidden_dim, spec.patch, _TEXT_WIDTH, spec.projected_dim or 0
    cells = (spec.native_size[0] // patch) ** 2
    return {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (cells + 1, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, patch, patch),
        **_pair("visual.ln_pre", width),
        **_clip_blocks("visual.transformer", spec.depth, width),
        **_pair("visual.ln_post", width),
        "positional_embedding": (_CONTEXT, text),
        "text_projection": (text, embed),
        "logit_scale": (),
        **_clip_blocks("transformer", 1, text),
        "token_embedding.weight": (_VOCABULARY, text),
        **_pair("ln_final", text),
    }


def _clip_blocks(tower: str, depth: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for block in (f"{tower}.resblocks.{index}" for index in range(depth)):
        shapes[f"{block}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{block}.attn.in_proj_bias"] = (3 * width,)
        shapes |= _pair(f"{block}.attn.out_proj", width, width)
        shapes |= _pair(f"{block}.ln_1", width) | _pair(f"{block}.ln_2", width)
        shapes |= _pair(f"{block}.mlp.c_fc", 4 * width, width)
        shapes |= _pair(f"{block}.mlp.c_proj", width, 4 * width)
    return shapes


def _pair(module: str, outputs: int, *inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{module}.weight": (outputs, *inputs), f"{module}.bias": (outputs,)}


def _dinov2_config(spec: EncoderSpec, swiglu: bool) -> dict[str, object]:
    config: dict[str, object] = {
        "architectures": ["Dinov2WithRegistersModel" if spec.registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if spec.registers else "dinov2",
        "hidden_size": spec.hidden_dim,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.hidden_dim // _HEAD_DIM,
        "image_size": spec.native_size[0],
        "patch_size": spec.patch,
        "mlp_ratio": 4,
        "use_swiglu_ffn": swiglu,
    }
    return config | ({"num_register_tokens": spec.registers} if spec.registers else {})


def _dinov2_processor(spec: EncoderSpec) -> dict[str, object]:
    recipe = asdict(spec.recipe)
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": recipe["resize"]},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": dict(zip(("height", "width"), recipe["crop"], strict=True)),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
