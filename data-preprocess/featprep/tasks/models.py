"""The model a task is asked for, in any of the spellings people have, loaded with its settings.

The default of every task is the checkpoint's own recipe (resize="native").
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from featprep import devices, encoders
from featprep.config import EncodeConfig, parse_value
from featprep.encoders.base import LoadOptions, ModelName, TextEncoder
from featprep.errors import UsageError
from featprep.python_words import python_words, warn_caller
from featprep.session import Session, open_session
from featprep.settings import nearest

# Of the command's settings, those that say what is fed to the network, and where it runs.
SETTINGS = (
    "size",
    "resize",
    "max_tokens",
    "background",
    "pos_embed",
    "device",
    "fp16",
    "precision",
    "batch_size",
    "max_pixels",
    "allow_truncated",
    "trust_weights",
    "quick_gelu",
)

# The JavaScript world's ONNX copies, which torch cannot load, and whose weights they are. Of ids
# that differ in the owner alone, the owner.
_XENOVA = {
    **dict.fromkeys(
        (
            "clip-vit-base-patch16",
            "clip-vit-base-patch32",
            "clip-vit-large-patch14",
            "clip-vit-large-patch14-336",
        ),
        "openai",
    ),
    **dict.fromkeys(
        (
            "siglip-base-patch16-224",
            "siglip-base-patch16-256",
            "siglip-base-patch16-256-multilingual",
            "siglip-base-patch16-384",
            "siglip-base-patch16-512",
            "siglip-large-patch16-256",
            "siglip-large-patch16-384",
            "vit-base-patch16-224",
            "vit-base-patch16-224-in21k",
        ),
        "google",
    ),
    **dict.fromkeys(("dinov2-small", "dinov2-base", "dinov2-large"), "facebook"),
    **dict.fromkeys(("dino-vits8", "dino-vits16", "dino-vitb8", "dino-vitb16"), "facebook"),
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_told: set[str] = set()


def open_model(task: str, model: str, settings: dict[str, Any]) -> Session:
    """Load `model` for a task. Raises UsageError and WeightsError."""
    with python_words():
        config = python_config(task, model, settings)
        return open_session(config, find_model(model), pooled_if_any=True)


def open_towers(config: EncodeConfig) -> tuple[Session, TextEncoder]:
    """Load both towers of config.model. The text tower, which not every model has, comes first.
    Raises UsageError and WeightsError, in the words of the command line."""
    name = find_model(str(config.model))
    tower = open_text(name, config)
    return open_session(config, name, pooled_if_any=True), tower


def open_text(name: ModelName, config: EncodeConfig) -> TextEncoder:
    """The text tower alone, where the settings want it."""
    device, _ = devices.choose_device(config.device)
    options = LoadOptions(
        device=device, trust_weights=config.trust_weights, quick_gelu=config.quick_gelu
    )
    return encoders.load_text(name, options)


def find_model(model: str) -> ModelName:
    """FAMILY:ID, FAMILY:ID=PATH, a known name, a folder of transformers', an id of its hub."""
    model = _origin(model)
    if ":" not in model and Path(model).is_dir():
        return encoders.resolve(f"hf:{Path(model).resolve().name}={model}", "any")
    try:
        return encoders.resolve(model, "any")
    except UsageError:
        if not _HUB_ID.fullmatch(model):
            raise
    return encoders.resolve(f"hf:{model}", "any")


def _origin(model: str) -> str:
    """What an id Xenova/… was made of, said once."""
    owner, slash, name = model.removeprefix("hf:").partition("/")
    if owner != "Xenova" or not slash:
        return model
    if name not in _XENOVA:
        known = [f"Xenova/{id}" for id in _XENOVA]
        raise UsageError(
            f"--model {model}: an ONNX copy for JavaScript, whose origin is not known here; name "
            f"the model that it was made of.{nearest(model, known)}"
        )
    origin = f"hf:{_XENOVA[name]}/{name}"
    if model not in _told:
        _told.add(model)
        warn_caller(f"{model} is an ONNX copy of {origin}, which is loaded in its place")
    return origin


def python_config(task: str, model: str, settings: dict[str, Any]) -> EncodeConfig:
    """What the keywords of featprep.pipeline say. Raises UsageError."""
    for name in settings:
        if name not in SETTINGS:
            raise UsageError(
                f"{task} has no setting {name!r}.{nearest(name, SETTINGS)} There are: "
                f"{', '.join(SETTINGS)}"
            )
    values = {name: parse_value(name, raw) for name, raw in settings.items() if raw is not None}
    if not isinstance(parse_value("model", model), str):
        raise UsageError(
            f"{task} takes one encoder, and not model={model!r}: make a pipeline of each"
        )
    if values.get("size", "native") != "native" and values.get("resize") is None:
        raise UsageError(
            f"size={settings['size']!r}: images go the checkpoint's own way, resize='native', "
            "which has a size; another one goes with resize='crop' (short side, then centre "
            "crop), 'squash' or 'pad'"
        )
    return task_config(model, values)


def task_config(model: str, values: dict[str, Any]) -> EncodeConfig:
    """`values`: of SETTINGS, parsed; without resize the checkpoint's own way. Raises UsageError."""
    plain = {"input": "(memory)", "output": "(memory)", "mask": "none", "resize": "native"}
    return EncodeConfig(**{**plain, **values, "model": model})
