"""Checkpoints with seeded random weights, in each family's published format: stand-ins.

`tiny` is three blocks in a temporary folder; tests and benchmarks write any architecture. Knows
the names and shapes of the published tensors; loading is the families' own code.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import (
    hf_known,
    hf_shapes,
    huggingface,
    openai_clip,
    openclip,
    openclip_cards,
    weights,
)
from featprep.encoders.base import Encoder, EncoderSpec, LoadOptions, ModelName
from featprep.encoders.hf_config import spec_of
from featprep.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

TINY = {
    "clip": replace(
        openai_clip.make_spec("tiny", patch=14, width=64, depth=3, side=224, projected=32),
        meaningless=True,
    ),
    "hf": replace(spec_of("hf:tiny", *hf_known.dinov2(64, 3)), meaningless=True),
    "openclip": replace(
        openai_clip.make_spec("tiny", patch=14, width=64, depth=3, side=224, projected=32),
        name="openclip:tiny",
        family="openclip",
        pos_embeds=("transformers", "hub"),
        pooled=False,
        pooler=False,
        has_layers=False,
        norms=("auto",),
        has_value=False,
        has_facets=False,
        meaningless=True,
    ),
}
_TEXT_WIDTH, _CONTEXT, _VOCABULARY = 64, 77, 49408
_GAINS = ("lambda1", "logit_scale", "gamma", "layer_scale", "running_var")


def load_tiny(name: ModelName, options: LoadOptions) -> Encoder:
    """The family's tiny encoder, written to a temporary folder and loaded as a real one is."""
    loaders = {"clip": openai_clip.load, "hf": huggingface.load, "openclip": openclip.load}
    with tempfile.TemporaryDirectory(prefix="featprep-tiny-") as folder:
        path = write_tiny(name.family, Path(folder))
        encoder: Encoder = loaders[name.family](replace(name, path=str(path)), options)
    encoder.spec = TINY[name.family]
    encoder.origin = "made here"
    return encoder


def write_tiny(family: str, folder: Path) -> Path:
    """Write the tiny checkpoint of a family; returns its folder, or file (clip)."""
    return write_checkpoint(TINY[family], folder)


def write_random(name: str, folder: Path, layers: int | None = None) -> Path:
    """Write random weights of a known encoder, FAMILY:ID: all of its blocks, or the first few."""
    family, _, id = name.partition(":")
    if family == "openclip":
        card = openclip_cards.card_of(ModelName(family, id))
        depth = {"layers": layers} if layers and card.has_activation else {}
        return write_openclip(card, folder, **depth)
    if family == "hf" and id in hf_known.FILES:
        config, processor = hf_known.FILES[id]
        return write_folder((shorten(config, layers), processor), folder)
    if family != "clip" or id not in openai_clip.KNOWN:
        raise UsageError(
            f"write_random {name}: allowed are the published names, such as clip:ViT-B/32"
        )
    spec = openai_clip.KNOWN[id]
    return write_checkpoint(replace(spec, depth=layers or spec.depth), folder)


def shorten(config: dict[str, Any], layers: int | None) -> dict[str, Any]:
    """config.json of a model with its first blocks alone; of a CNN, the first of each stage."""
    if layers is None:
        return config
    if "vision_config" in config:
        return {**config, "vision_config": shorten(config["vision_config"], layers)}
    if "depths" in config:
        return {**config, "depths": [min(depth, layers) for depth in config["depths"]]}
    return {**config, "num_hidden_layers": layers}


def write_checkpoint(spec: EncoderSpec, folder: Path) -> Path:
    """Write random weights of the architecture that `spec` describes: a ViT of clip's or
    open_clip's, or DINOv2's for hf. Same bytes every time."""
    if spec.family == "hf":
        files = hf_known.dinov2(
            spec.hidden_dim,
            spec.depth,
            registers=spec.registers,
            patch=spec.patch,
            side=spec.native_size[0],
        )
        return write_folder(files, folder)
    if spec.family == "openclip":
        vision = {
            "image_size": spec.native_size[0],
            "layers": spec.depth,
            "width": spec.hidden_dim,
            "patch_size": spec.patch,
        }
        said = {"mean": spec.mean, "std": spec.std}
        config = {"embed_dim": spec.projected_dim, "vision_cfg": vision}
        return write_openclip(openclip_cards.Card(config, said, quick_gelu=True), folder)
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{spec.name.partition(':')[2].replace('/', '-')}.pt"
    drawn = _draw(_clip_shapes(spec))
    # As OpenAI's: float16 holds every value, so that clip.load itself rounds nothing.
    torch.save({key: item.half().float() for key, item in drawn.items()}, path)
    return path


def write_folder(files: hf_known.Files, folder: Path) -> Path:
    """Write a transformers folder with random weights of what its config.json says.

    A text tower is one narrow block, whatever the published one is.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config, processor = files
    if "vision_config" in config:
        width = hf_shapes.TEXT_WIDTH
        text = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1}
        text |= {"num_attention_heads": 1, "vocab_size": hf_shapes.VOCABULARY}
        config = {**config, "text_config": text}
    for name, content in ((weights.CONFIG, config), (weights.PROCESSOR, processor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    save_file(_draw(hf_shapes.shapes_of(config)), folder / "model.safetensors", {"format": "pt"})
    return folder


def write_openclip(card: openclip_cards.Card, folder: Path, **vision: object) -> Path:
    """Write random weights in the hub's format: open_clip_config.json and open_clip_model.
    `vision`: replaces entries of vision_cfg. Every tower that open_clip can build."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "embed_dim": card.config["embed_dim"],
        "vision_cfg": {**card.vision, **vision},
        "text_cfg": openclip.NO_TEXT,
        "quick_gelu": bool(card.quick_gelu),
    }
    keys = ("mean", "std", "interpolation", "resize_mode")
    said = {key: card.preprocess[key] for key in keys if key in card.preprocess}
    content = {"model_cfg": config, "preprocess_cfg": said}
    (folder / openclip_cards.CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    name = ModelName("openclip", "random", str(folder))
    model, _ = openclip.build(
        openclip.import_open_clip(), name, openclip_cards.card_of(name, folder), False
    )
    state = model.state_dict()
    drawn = _draw({key: tuple(item.shape) for key, item in state.items()})
    kept = {key: item.to(state[key].dtype) for key, item in drawn.items()}
    save_file(kept, folder / openclip_cards.WEIGHTS[0], {"format": "pt"})
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
        is_gain = name.endswith(_GAINS) or (name.endswith("weight") and len(shape) == 1)
        inputs = shape[0] if name.endswith("proj") else int(np.prod(shape[1:]))
        small = len(shape) < 2 or "token" in name or "embed" in name.split(".")[-1]
        scale = 0.1 if is_gain or small else inputs**-0.5
        drawn[name] = torch.from_numpy(np.asarray(normal * np.float32(scale) + np.float32(is_gain)))
    return drawn


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
