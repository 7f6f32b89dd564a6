"""The encoders there are. A new one is its file, one line here and one row of the README's table.

Nothing here imports torch: families load their libraries when an encoder is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featprep.encoders import (
    hf_config,
    huggingface,
    openai_clip,
    timm_catalogue,
    timm_models,
    tiny,
    torchvision_catalogue,
    torchvision_models,
)
from featprep.encoders.base import Encoder, EncoderSpec, LoadOptions, ModelName
from featprep.errors import UsageError


@dataclass(frozen=True, slots=True)
class Family:
    """`known`: published names. `local`: what a path leads to. `open_ids`: the hub has more.

    `command`: the script of the family alone, "" if there is none. `more`: what else is taken by
    name, in words; `is_more`: whether an ID may be that.
    """

    command: str
    known: Mapping[str, EncoderSpec]
    describe: Callable[[ModelName], EncoderSpec | None]
    load: Callable[[ModelName, LoadOptions], Encoder]
    local: str
    open_ids: bool = False
    more: str = ""
    is_more: Callable[[str], bool] = lambda id: False


FAMILIES = {
    "clip": Family(
        "encode_with_clip.py",
        openai_clip.KNOWN,
        openai_clip.describe,
        openai_clip.load,
        "a .pt file",
    ),
    "hf": Family(
        "encode_with_dino.py",
        hf_config.KNOWN,
        huggingface.describe,
        huggingface.load,
        "a folder with config.json",
        open_ids=True,
    ),
    "timm": Family(
        "",
        timm_catalogue.KNOWN,
        timm_models.describe,
        timm_models.load,
        "a .safetensors file, a state dict, or a folder with config.json",
        more="any of timm's models",
        is_more=timm_catalogue.is_spelled,
    ),
    "torchvision": Family(
        "",
        torchvision_catalogue.KNOWN,
        torchvision_models.describe,
        torchvision_models.load,
        "a .pth file, under torchvision's NAME of it",
    ),
}


_SHOWN = 12  # names in a message


def list_encoders() -> list[str]:
    """FAMILY:ID of every known encoder."""
    return [f"{family}:{id}" for family in FAMILIES for id in _ids(family)]


def _ids(family: str) -> tuple[str, ...]:
    return (*FAMILIES[family].known, *(("tiny",) if family in tiny.TINY else ()))


def resolve(value: str, family: str) -> ModelName:
    """What `--model VALUE` names, in a command of one family, or of `any`. Raises UsageError.

    FAMILY:ID, FAMILY:ID=PATH, a known name, or, in a command of one family, a path.
    """
    head, colon, rest = value.partition(":")
    if colon and head in FAMILIES:
        if family not in ("any", head):
            raise UsageError(
                f"--model {value}: this command takes {family}: encoders; allowed is "
                f"{_allowed(family)}; for this one use {_commands(head)}"
            )
        return _spelled(value, head, rest)
    plain = _plain(value, family)
    if plain is None:
        raise UsageError(_unknown(value, family, value))
    return plain


def _plain(value: str, family: str) -> ModelName | None:
    """A bare value: a known name first, then, in a command of one family, a path."""
    scope = list(FAMILIES) if family == "any" else [family]
    owners = [name for name in scope if value in _ids(name)]
    if len(owners) == 1:
        return ModelName(owners[0], value, is_plain=True)
    if family != "any" and Path(value).exists():
        return ModelName(family, Path(value).resolve().name, value, is_plain=True)
    return None


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec, as far as it can be known without torch; None where only the weights tell."""
    if name.id == "tiny" and name.path is None:
        return tiny.TINY[name.family]
    return FAMILIES[name.family].describe(name)


def load_encoder(name: ModelName, options: LoadOptions) -> Encoder:
    """Load it, weights from the path, the library's cache or the network. Raises WeightsError."""
    if name.id == "tiny" and name.path is None:
        return tiny.load_tiny(name, options)
    return FAMILIES[name.family].load(name, options)


def _spelled(value: str, family: str, rest: str) -> ModelName:
    id, equals, path = rest.partition("=")
    row = FAMILIES[family]
    if equals:
        if not id or not Path(path).exists():
            raise UsageError(
                f"--model {value}: no such path; allowed is {family}:NAME=PATH, PATH {row.local}"
            )
        return ModelName(family, id, path)
    if id in _ids(family) or row.is_more(id) or (row.open_ids and _is_hub_id(id)):
        return ModelName(family, id)
    raise UsageError(_unknown(value, family, id))


def _is_hub_id(id: str) -> bool:
    import huggingface_hub.utils
    from huggingface_hub.errors import HFValidationError

    library: Any = huggingface_hub.utils
    try:
        library.validate_repo_id(id)
    except HFValidationError:
        return False
    return id.count("/") == 1


def _unknown(value: str, family: str, id: str) -> str:
    return f"--model {value}: no such encoder; allowed is {_allowed(family)}.{_hint(id, family)}"


def _allowed(family: str) -> str:
    if family == "any":
        rows = "; ".join(f"{name}: {_names(name)}" for name in FAMILIES)
        return f"FAMILY:NAME or FAMILY:NAME=PATH with {rows}"
    row = FAMILIES[family]
    hub = f", {family}:ORG/NAME of the hub" if row.open_ids else ""
    more = f", {row.more}" if row.more else ""
    return f"{_names(family)}{more}{hub}, or {family}:NAME=PATH, PATH {row.local}"


def _names(family: str) -> str:
    ids = _ids(family)
    if len(ids) <= _SHOWN:
        return ", ".join(ids)
    return f"{', '.join(ids[:3])} … (featprep models {family}: lists {len(ids)})"


def _commands(family: str) -> str:
    own = FAMILIES[family].command
    return f"{own} or featprep encode" if own else "featprep encode"


def _hint(id: str, family: str) -> str:
    """' Did you mean X?', the name nearest to what was typed, spelled as this command wants it."""
    names = {
        known.casefold(): f"{name}:{known}" if family == "any" else known
        for name, row in FAMILIES.items()
        if family in ("any", name)
        for known in row.known
    }
    close = difflib.get_close_matches(id.casefold(), names, n=1, cutoff=0.5)
    return f" Did you mean {names[close[0]]}?" if close else ""
