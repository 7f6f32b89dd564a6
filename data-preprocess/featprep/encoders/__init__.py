"""The encoders there are. A new one is its file, one line here and one row of the README's table.

Nothing here imports torch: families load their libraries when an encoder is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featprep.encoders import hf_config, huggingface, openai_clip, openclip, tiny
from featprep.encoders.aliases import ALIASES
from featprep.encoders.base import Encoder, EncoderSpec, LoadOptions, ModelName
from featprep.errors import UsageError


@dataclass(frozen=True, slots=True)
class Family:
    """`known`: published names. `local`: what a path leads to. `open_ids`: the hub has more, named
    ORG/NAME after `hub_prefix`. `package`: what to install where no name is known."""

    command: str
    known: Mapping[str, EncoderSpec | None]
    describe: Callable[[ModelName], EncoderSpec | None]
    load: Callable[[ModelName, LoadOptions], Encoder]
    local: str
    open_ids: bool = False
    hub_prefix: str = ""
    package: str = ""


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
    "openclip": Family(
        "encode_with_clip.py",
        openclip.KNOWN,
        openclip.describe,
        openclip.load,
        "a checkpoint, or a folder with open_clip_config.json; NAME is ARCH/TAG or ARCH",
        open_ids=True,
        hub_prefix="hf-hub:",
        package="open_clip_torch",
    ),
}
_SHOWN = 20  # names of a family that a refusal lists


def list_encoders() -> list[str]:
    """FAMILY:ID of every known encoder."""
    return [f"{family}:{id}" for family, row in FAMILIES.items() for id in (*row.known, "tiny")]


def resolve(value: str, family: str) -> ModelName:
    """What `--model VALUE` names in a command of a family, of A,B or of `any`. Raises UsageError.

    FAMILY:ID, FAMILY:ID=PATH, a known name, an alias, or, in a command of one family, a path.
    """
    value = ALIASES.get(value, value)
    head, colon, rest = value.partition(":")
    if colon and head in FAMILIES:
        if head not in _scope(family):
            raise UsageError(
                f"--model {value}: this command takes {_and(_scope(family))} encoders; allowed is "
                f"{_allowed(family)}; for this one use {FAMILIES[head].command} or featprep encode"
            )
        return _spelled(value, head, rest)
    plain = _plain(value, family)
    if plain is None:
        raise UsageError(_unknown(value, family, value))
    return plain


def _scope(family: str) -> tuple[str, ...]:
    """The families of a command, its own first: bare paths and `tiny` are of that one."""
    return tuple(FAMILIES) if family == "any" else tuple(family.split(","))


def _and(families: tuple[str, ...]) -> str:
    return " and ".join(f"{family}:" for family in families)


def _plain(value: str, family: str) -> ModelName | None:
    """A bare value: a known name first, then, in a command of its own families, a path."""
    own = None if family == "any" else _scope(family)[0]
    if own and value == "tiny":
        return ModelName(own, value, is_plain=True)
    owners = [name for name in _scope(family) if value in FAMILIES[name].known]
    if len(owners) == 1:
        return ModelName(owners[0], value, is_plain=True)
    if own and Path(value).exists():
        return ModelName(own, Path(value).resolve().name, value, is_plain=True)
    return None


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec, as far as it can be known without torch; None where only the weights tell."""
    if name.id == "tiny" and name.path is None:
        return tiny.TINY[name.family]
    return FAMILIES[name.family].describe(name)


def load_encoder(name: ModelName, options: LoadOptions) -> Encoder:
    """Load it, weights from the path, the library's cache or the network. Raises WeightsError."""
    if options.quick_gelu is not None and name.family != "openclip":
        flag = "--quick_gelu" if options.quick_gelu else "--no_quick_gelu"
        raise UsageError(f"{flag}: it is for openclip:ARCH=FILE; drop it for {name}")
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
    if id in row.known or id == "tiny":
        return ModelName(family, id)
    if row.open_ids and id.startswith(row.hub_prefix) and _is_hub_id(id, row.hub_prefix):
        return ModelName(family, id)
    if row.package and not row.known:
        raise UsageError(f"--model {value}: needs {row.package}; type: pip install {row.package}")
    raise UsageError(_unknown(value, family, id))


def _is_hub_id(id: str, prefix: str) -> bool:
    import huggingface_hub.utils
    from huggingface_hub.errors import HFValidationError

    library: Any = huggingface_hub.utils
    id = id.removeprefix(prefix)
    try:
        library.validate_repo_id(id)
    except HFValidationError:
        return False
    return id.count("/") == 1


def _unknown(value: str, family: str, id: str) -> str:
    return f"--model {value}: no such encoder; allowed is {_allowed(family)}.{_hint(id, family)}"


def _allowed(family: str) -> str:
    if len(_scope(family)) > 1:
        rows = "; ".join(f"{name}: {_names(name)}" for name in _scope(family))
        return f"FAMILY:NAME or FAMILY:NAME=PATH with {rows}"
    row = FAMILIES[family]
    hub = f", {family}:{row.hub_prefix}ORG/NAME of the hub" if row.open_ids else ""
    return f"{_names(family)}{hub}, or {family}:NAME=PATH, PATH {row.local}"


def _names(family: str) -> str:
    known = FAMILIES[family].known
    if len(known) > _SHOWN:
        return f"{len(known)} names (featprep models {family}: lists them), tiny"
    return ", ".join((*known, "tiny"))


def _hint(id: str, family: str) -> str:
    """' Did you mean X?', the name nearest to what was typed, spelled as this command wants it."""
    scope = _scope(family)
    names = {
        known.casefold(): f"{name}:{known}" if len(scope) > 1 else known
        for name in reversed(scope)  # the first wins where two families spell a name alike
        for known in FAMILIES[name].known
    }
    close = difflib.get_close_matches(id.casefold(), names, n=1, cutoff=0.5)
    return f" Did you mean {names[close[0]]}?" if close else ""
