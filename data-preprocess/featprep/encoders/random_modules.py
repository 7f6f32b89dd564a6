"""Checkpoints with seeded random weights of timm's and torchvision's models, in their formats.

Stand-ins for tests and benchmarks; loading is the families' own code. What they are made of comes
from the libraries, so that every architecture there is can be written.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def write_timm(architecture: str, folder: Path, **arguments: Any) -> Path:
    """Write config.json and model.safetensors as timm's save_for_hf does; returns the folder.

    `arguments`: of the architecture, such as depth=2.
    """
    import timm
    from safetensors.torch import save_file

    library: Any = timm
    model = library.create_model(architecture, **arguments)
    folder.mkdir(parents=True, exist_ok=True)
    pretrained = {
        key: model.pretrained_cfg[key]
        for key in ("tag", "input_size", "fixed_input_size", "interpolation", "crop_pct",
                    "crop_mode", "mean", "std", "num_classes", "pool_size", "first_conv",
                    "classifier")
        if model.pretrained_cfg.get(key) is not None
    }  # fmt: skip
    if "img_size" in arguments:
        pretrained["input_size"] = (3, arguments["img_size"], arguments["img_size"])
    config = {
        "architecture": architecture.partition(".")[0],
        "num_classes": model.num_classes,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    is_fixed = model.pretrained_cfg.get("fixed_input_size")
    tensors = draw_weights(model, model.pretrained_cfg["input_size"][1] if is_fixed else 96)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_torchvision(id: str, folder: Path) -> Path:
    """Write a state dict, NAME.pth, as torchvision publishes them; returns the file."""
    import torch
    from torchvision import models

    model = models.get_model(id.partition("/")[0], weights=None, **image_size_of(id))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{id.replace('/', '-')}.pth"
    torch.save(draw_weights(model), path)
    return path


def image_size_of(id: str) -> dict[str, int]:
    """What torchvision's ViTs are to be told of the size that a name was made for."""
    from featprep.encoders.torchvision_catalogue import KNOWN

    return {"image_size": KNOWN[id].native_size[0]} if id.startswith("vit_") else {}


def draw_weights(model: nn.Module, side: int = 96) -> dict[str, Tensor]:
    """The model's whole state dict, drawn so that activations stay finite and varied.

    Matrices have variance 1 / inputs; gains of norms lie around 1, and what is added is small.
    BatchNorm's statistics are taken from generated pixels: drawn ones would let a deep CNN's
    signal die away, and nearly any map would equal any other. Each tensor is seeded by its name.
    `side`: of those pixels.
    """
    import torch

    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_drawn(name, tuple(parameter.shape)))
        _settle(model, side)
    state: Mapping[str, Tensor] = model.state_dict()
    return {name: item.clone().contiguous() for name, item in state.items()}


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    import numpy as np
    import torch

    random = np.random.default_rng(zlib.crc32(name.encode()))
    normal = random.standard_normal(shape, dtype=np.float32)
    is_gain = len(shape) == 1 and name.endswith("weight")
    inputs = int(np.prod(shape[1:]))
    is_small = inputs == 1 or "token" in name or "embed" in name.split(".")[-1]
    scale = 0.1 if is_small else inputs**-0.5
    return torch.from_numpy(np.asarray(normal * np.float32(scale) + np.float32(is_gain)))


def _settle(model: nn.Module, side: int) -> None:
    """Give every BatchNorm the mean and variance of what reaches it on a batch of noise."""
    import torch
    from torch import nn

    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches, of which there is one
        norm.train()
    noise = torch.Generator().manual_seed(0)
    model(torch.randn(4, 3, side, side, generator=noise))
