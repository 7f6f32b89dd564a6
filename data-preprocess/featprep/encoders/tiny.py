"""Checkpoints with seeded random weights, in each family's published format: stand-ins.

`tiny` is three blocks in a temporary folder; tests and benchmarks write any architecture. Knows
the names and shapes of the published tensors; loading is the families' own code.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import (
    hf_known,
    hf_shapes,
    huggingface,
    openai_clip,
    openai_clip_cards,
    openai_clip_shapes,
    openclip,
    openclip_cards,
    openclip_text,
    random_modules,
    timm_catalogue,
    timm_models,
    torchvision_catalogue,
    weights,
)
from featprep.encoders.base import Encoder, EncoderSpec, LoadOptions, ModelName, TextEncoder
from featprep.encoders.hf_config import spec_of
from featprep.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

TINY = {
    "clip": replace(
        openai_clip_cards.make_spec("tiny", patch=14, width=64, depth=3, side=224, projected=32),
        meaningless=True,
    ),
    "hf": replace(spec_of("hf:tiny", *hf_known.dinov2(64, 3)), meaningless=True),
    "openclip": replace(
        openai_clip_cards.make_spec("tiny", patch=14, width=64, depth=3, side=224, projected=32),
        name="openclip:tiny",
        family="openclip",
        pos_embeds=("transformers", "hub"),
        pooler=False,
        meaningless=True,
    ),
    "timm": replace(timm_catalogue.tiny_spec(width=64, depth=3), meaningless=True),
}
_GAINS = ("lambda1", "logit_scale", "gamma", "layer_scale", "running_var")


def load_tiny(name: ModelName, options: LoadOptions) -> Encoder:
    """The family's tiny encoder, written to a temporary folder and loaded as a real one is."""
    loaders = {
        "clip": openai_clip.load,
        "hf": huggingface.load,
        "openclip": openclip.load,
        "timm": timm_models.load,
    }
    with tempfile.TemporaryDirectory(prefix="featprep-tiny-") as folder:
        path = write_tiny(name.family, Path(folder))
        encoder: Encoder = loaders[name.family](replace(name, path=str(path)), options)
    encoder.spec = TINY[name.family]
    encoder.origin = "made here"
    return encoder


def load_tiny_text(
    name: ModelName, options: LoadOptions, load: Callable[[ModelName, LoadOptions], TextEncoder]
) -> TextEncoder:
    """The text tower of the family's tiny encoder, by the family's own `load`."""
    with tempfile.TemporaryDirectory(prefix="featprep-tiny-") as folder:
        path = write_tiny(name.family, Path(folder))
        tower = load(replace(name, path=str(path)), options)
    tower.origin = "made here"
    return tower


def write_tiny(family: str, folder: Path) -> Path:
    """Write the tiny checkpoint of a family; returns its folder, or file (clip)."""
    if family == "timm":
        shape = {"patch_size": 14, "embed_dim": 64, "depth": 3, "num_heads": 1}
        return random_modules.write_timm("vit_tiny_patch16_224.augreg_in21k", folder, **shape)
    return write_checkpoint(TINY[family], folder)


def write_random(name: str, folder: Path, layers: int | None = None) -> Path:
    """Write random weights of a known encoder, FAMILY:ID: all of its blocks, or the first few.

    A CNN, and what torchvision publishes, is always whole.
    """
    family, _, id = name.partition(":")
    if family == "openclip":
        card = openclip_cards.card_of(ModelName(family, id))
        depth: dict[str, Any] = {}
        if layers and card.is_resnet:
            depth = {"layers": [min(count, layers) for count in card.vision["layers"]]}
        elif layers and card.has_activation:
            depth = {"layers": layers}
        return write_openclip(card, folder, **depth)
    if family == "hf" and id in hf_known.FILES:
        config, processor = hf_known.FILES[id]
        return write_folder((shorten(config, layers), processor), folder)
    if family == "timm" and id in timm_catalogue.KNOWN:
        cut = layers and not timm_catalogue.KNOWN[id].stages
        return random_modules.write_timm(id, folder, **({"depth": layers} if cut else {}))
    if family == "torchvision" and id in torchvision_catalogue.KNOWN:
        return random_modules.write_torchvision(id, folder)
    if family != "clip" or id not in openai_clip_cards.KNOWN:
        raise UsageError(
            f"write_random {name}: allowed are the published names, such as clip:ViT-B/32"
        )
    spec = openai_clip_cards.KNOWN[id]
    if spec.stages:
        blocks = openai_clip_cards.RESNET_BLOCKS[id]
        return write_resnet(spec, folder, [min(count, layers or count) for count in blocks])
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
        text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
        config = {"embed_dim": spec.projected_dim, "vision_cfg": vision, "text_cfg": text}
        card = openclip_cards.Card(config, said, quick_gelu=True)
        return write_openclip(card, folder, has_text=True)
    return write_clip(spec, openai_clip_shapes.vit_shapes(spec), folder)


def write_resnet(spec: EncoderSpec, folder: Path, blocks: Sequence[int] = (1, 1, 1, 1)) -> Path:
    """Write random weights of a CLIP ResNet with so many blocks a stage, as OpenAI's state dict."""
    return write_clip(spec, openai_clip_shapes.resnet_shapes(spec, blocks), folder)


def write_clip(spec: EncoderSpec, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> Path:
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{spec.name.partition(':')[2].replace('/', '-')}.pt"
    # As OpenAI's: float16 holds every value, so that clip.load itself rounds nothing.
    torch.save({key: item.half().float() for key, item in _draw(shapes).items()}, path)
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


def write_openclip(
    card: openclip_cards.Card, folder: Path, *, has_text: bool = False, **vision: object
) -> Path:
    """Write random weights in the hub's format: open_clip_config.json and open_clip_model.
    `vision`: replaces entries of vision_cfg. Every tower that open_clip can build. `has_text`: with
    the card's text tower, in place of a token of one."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "embed_dim": card.config["embed_dim"],
        "vision_cfg": {**card.vision, **vision},
        "text_cfg": openclip.NO_TEXT,
        "quick_gelu": bool(card.quick_gelu),
    }
    if has_text:
        config = {**card.config, **config, "text_cfg": card.config["text_cfg"]}
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
    settled = _settle(model, kept, int(config["vision_cfg"]["image_size"]))
    if has_text:
        visual = {key: item for key, item in settled.items() if key.startswith("visual.")}
        blank = openclip_text.blank(name, openclip_cards.card_of(name, folder))
        settled = visual | _draw({key: tuple(item.shape) for key, item in blank.items()})
    save_file(settled, folder / openclip_cards.WEIGHTS[0], {"format": "pt"})
    return folder


def _settle(model: Any, state: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """With every BatchNorm's mean and variance those of what reaches it on clouds under noise.

    Drawn ones let the signal of MobileCLIP-S1 grow to 1e6, where bfloat16 tells no map from
    another; those of noise alone let RN50's grow a hundredfold on anything smooth.
    """
    import torch
    from torch import nn

    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return state
    model.load_state_dict(state, assign=True)
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches, of which there is one
        norm.train()
    random = torch.Generator().manual_seed(0)
    clouds = torch.randn(4, 3, 8, 8, generator=random)
    clouds = nn.functional.interpolate(clouds, (side, side), mode="bilinear")
    with torch.no_grad():
        model.visual(clouds + torch.randn(4, 3, side, side, generator=random) / 2)
    return {key: item.contiguous() for key, item in model.state_dict().items()}


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
