"""transformers' modules with the tensors of a checkpoint: strict, quiet, no code of the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import weights
from featprep.encoders.base import ModelName
from featprep.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn


def build(
    name: ModelName,
    folder: Path,
    model_class: Any,
    make_config: Callable[[], Any],
    tensors: Mapping[str, Tensor],
    unused: tuple[str, ...] = (),
    what: str = "the map depends",
    **more: Any,
) -> Any:
    """transformers' model in float32. `unused`: how tensors begin that may be lacking; `what`: for
    a message, what the others are for; `more`: what its constructor takes beside the config.
    Raises WeightsError."""
    import torch

    try:
        with quiet_transformers():
            model, report = model_class.from_pretrained(
                None,
                config=make_config(),
                state_dict=dict(tensors),
                dtype=torch.float32,
                # not config.json's: that can name code on the hub
                attn_implementation="sdpa" if model_class._supports_sdpa else "eager",
                local_files_only=True,
                output_loading_info=True,
                **more,
            )
    except Exception as error:  # from_pretrained's errors have no common class
        raise WeightsError(
            f"{name}: transformers refuses {folder}: {weights.one_line(error)}; get a whole copy"
        ) from error
    _check_whole(name, folder, report, unused, what)
    return model


def _check_whole(
    name: ModelName,
    folder: Path,
    report: Mapping[str, Any],
    unused: tuple[str, ...],
    what: str,
) -> None:
    """transformers draws lacking tensors at random, and passes over what its config leaves out."""
    lacking = sorted(key for key in report["missing_keys"] if not key.startswith(unused))
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise WeightsError(
            f"{name}: {folder} lacks {', '.join(lacking[:3])}{more}, on which {what}; get a "
            "whole copy of the checkpoint"
        )
    strange = sorted(report["unexpected_keys"])
    if strange:
        raise WeightsError(
            f"{name}: {folder} holds {strange[0]}, of which its {weights.CONFIG} says nothing; put "
            "the config.json of that checkpoint there"
        )


def linear(
    name: ModelName, folder: Path, sides: tuple[int, int], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """The checkpoint's own linear layer of `sides` (inputs, outputs), in float32. Strict."""
    import torch

    parts = {key.rpartition(".")[2]: item.float() for key, item in tensors.items()}
    with torch.device("meta"):
        layer = torch.nn.Linear(*sides, bias="bias" in parts)
    try:
        layer.load_state_dict(parts, assign=True)
    except RuntimeError as error:  # lacking, unexpected and misshapen tensors
        raise WeightsError(
            f"{name}: the projection in {folder} does not fit its {weights.CONFIG}: "
            f"{weights.one_line(error)}; get a whole copy"
        ) from error
    return layer


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers neither logs nor draws bars: what it warns of is our error, or nothing."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
