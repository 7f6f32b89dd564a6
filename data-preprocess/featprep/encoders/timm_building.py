"""How timm is asked for a model: by a name of its registry, or by a folder in its hub's form.

Knows nothing of maps and of what weights must hold.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import weights
from featprep.encoders.base import ModelName
from featprep.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")


@dataclass(frozen=True, slots=True)
class Card:
    """What builds a model: timm's name with its tag, or a folder's config.json in its place.

    `arguments`: of the architecture. `config`: pretrained_cfg; None: what timm knows by the name.
    """

    architecture: str
    arguments: Mapping[str, Any]
    config: Mapping[str, Any] | None = None


def read_card(name: ModelName) -> Card:
    """From the folder's config.json, as timm's save_for_hf writes it, else from timm's registry."""
    import timm

    library: Any = timm
    config: dict[str, Any] = {}
    architecture, arguments = name.id, {}
    if name.path is not None and Path(name.path).is_dir():
        config = weights.read_json(Path(name.path) / weights.CONFIG, name)
        architecture = str(config.get("architecture"))
        arguments = dict(config.get("model_args") or {})
    if not library.is_model(architecture.partition(".")[0]):
        known = library.list_models(pretrained=True) + library.list_models()
        close = difflib.get_close_matches(architecture, known, n=1)
        hint = f" Did you mean timm:{close[0]}?" if close else ""
        raise UsageError(
            f"--model {name}: timm {library.__version__} has no model {architecture}; allowed is "
            f"what timm.list_models() gives.{hint}"
        )
    if not config:
        return Card(architecture, arguments)
    given = dict(config.get("pretrained_cfg") or {})
    plain = {key: item for key, item in given.items() if key not in _SOURCES}
    return Card(architecture, arguments, {**plain, "architecture": architecture})


def create_model(card: Card, **more: Any) -> Any:
    """timm's own factory, without a classifier, and without a word on the log."""
    import timm

    library: Any = timm
    config = None if card.config is None else dict(card.config)
    log = logging.getLogger("timm")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return library.create_model(
                card.architecture,
                pretrained_cfg=config,
                **{**card.arguments, "num_classes": 0, **more},
            )
    finally:
        log.setLevel(level)


def sketch_model(name: ModelName, card: Card) -> Any:
    """The model by shapes alone, sized to be swapped onto other grids where it can be."""
    import torch

    try:
        with torch.device("meta"):
            model = create_model(card)
            return create_model(card, dynamic_img_size=True) if can_resize(model) else model
    except Exception as error:  # unknown tags, arguments that the architecture does not take
        raise UsageError(
            f"--model {name}: timm does not build it ({weights.one_line(error, 120)}); allowed is "
            "what timm.list_models(pretrained=True) gives"
        ) from error


def can_resize(model: Any) -> bool:
    """Whether it is a ViT whose grid may change: timm's dynamic_img_size, and no fixed windows.

    Swin takes dynamic_img_size too, but its windows are made for one size.
    """
    takes = any(
        "dynamic_img_size" in inspect.signature(kind).parameters
        for kind in type(model).__mro__[:-1]
    )
    return takes and hasattr(model, "pos_embed") and hasattr(model.patch_embed, "grid_size")


@contextmanager
def watched_loading() -> Iterator[list[Any]]:
    """What load_state_dict finds lacking and unexpected: timm logs it, and keeps on."""
    from torch import nn

    original: Any = nn.Module.load_state_dict
    reports: list[Any] = []

    def load_state_dict(module: nn.Module, tensors: Any, **options: Any) -> Any:
        reports.append(original(module, tensors, **{**options, "strict": False}))
        return reports[-1]

    nn.Module.load_state_dict = load_state_dict  # type: ignore[assignment,method-assign]
    try:
        yield reports
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]
