"""The encoders there are. A new one is its file, one line here and one row of the README's table.

Nothing here imports torch: families load their libraries when an encoder is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featprep.encoders import hf_config, hf_known, huggingface, openai_clip, tiny
from featprep.encoders.base import Encoder, EncoderSpec, LoadOptions, ModelName
from featprep.errors import UsageError


@dataclass(frozen=True, slots=True)
class Family:
    """`known`: published names. `local`: what a path leads to. `open_ids`: the hub has more."""

    known: Mapping[str, EncoderSpec]
    describe: Callable[[ModelName], EncoderSpec | None]
    load: Callable[[ModelName, LoadOptions], Encoder]
    local: str
    open_ids: bool = False


FAMILIES = {
    "clip": Family(
        openai_clip.KNOWN,
        openai_clip.describe,
        openai_clip.load,
        "a .pt file",
    ),
    "hf": Family(
        hf_known.KNOWN,
        huggingface.describe,
        huggingface.load,
        "a folder with config.json",
        open_ids=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Scope:
    """What a command takes. `kinds`: of hf: these model types alone; empty: all."""

    title: str
    families: tuple[str, ...]
    kinds: tuple[str, ...] = ()

    def names(self, family: str) -> list[str]:
        """The names of a family that the command knows, tiny among them."""
        known = FAMILIES[family].known
        return [
            *(id for id in known if not self.kinds or hf_known.kind_of(id) in self.kinds),
            "tiny",
        ]


# What the entry scripts take; of hub ids and paths, their config.json decides as they are read.
SCRIPTS = {
    "clip": Scope("clip: encoders", ("clip",)),
    "dino": Scope("DINOv2 and DINOv3", ("hf",), hf_config.DINO),
}
SCOPES = {
    **{name: Scope(f"{name}: encoders", (name,)) for name in FAMILIES},
    **SCRIPTS,
    "any": Scope("any encoder", tuple(FAMILIES)),
}
_SHOWN = 12  # names in a refusal; of a longer list, the first eight


def list_encoders() -> list[str]:
    """FAMILY:ID of every known encoder."""
    return [f"{family}:{id}" for family, row in FAMILIES.items() for id in (*row.known, "tiny")]


def resolve(value: str, scope: str) -> ModelName:
    """What `--model VALUE` names in a command of a scope (SCOPES). Raises UsageError.

    FAMILY:ID, FAMILY:ID=PATH, a known name, or, in a command of one family, a path.
    """
    taken = SCOPES[scope]
    head, colon, rest = value.partition(":")
    if colon and head in FAMILIES:
        if head not in taken.families or rest in set(FAMILIES[head].known) - set(taken.names(head)):
            raise UsageError(_elsewhere(value, scope))
        return replace(_spelled(value, head, rest), kinds=taken.kinds)
    plain = _plain(value, taken)
    if plain is not None:
        return plain
    for family, row in FAMILIES.items():
        if value in row.known and scope in SCRIPTS:
            raise UsageError(_elsewhere(f"{family}:{value}", scope))
    raise UsageError(_unknown(value, scope, value))


def _plain(value: str, taken: Scope) -> ModelName | None:
    """A bare value: a known name first, then, in a command of one family, a path."""
    owners = [family for family in taken.families if value in taken.names(family)]
    if len(owners) == 1:
        scripts = [script for script in SCRIPTS.values() if owners[0] in script.families]
        is_script_name = any(value in script.names(owners[0]) for script in scripts)
        return ModelName(owners[0], value, is_plain=is_script_name, kinds=taken.kinds)
    if len(taken.families) == 1 and Path(value).exists():
        id = Path(value).resolve().name
        return ModelName(taken.families[0], id, value, is_plain=True, kinds=taken.kinds)
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
    if id in row.known or id == "tiny" or (row.open_ids and _is_hub_id(id)):
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


def _elsewhere(value: str, scope: str) -> str:
    """FAMILY:ID that this command does not take."""
    family, _, id = value.partition(":")
    commands = [
        f"encode_with_{name}.py"
        for name, script in SCRIPTS.items()
        if family in script.families and (not script.kinds or hf_known.kind_of(id) in script.kinds)
    ]
    return (
        f"--model {value}: this command takes {SCOPES[scope].title}; allowed is {_allowed(scope)}; "
        f"for this one use {' or '.join([*commands, f'featprep encode --model {value}'])}"
    )


def _unknown(value: str, scope: str, id: str) -> str:
    return f"--model {value}: no such encoder; allowed is {_allowed(scope)}.{_hint(id, scope)}"


def _allowed(scope: str) -> str:
    families = SCOPES[scope].families
    if scope == "any":
        rows = "; ".join(f"{family}: {_names(family, scope)}" for family in families)
        return f"FAMILY:NAME or FAMILY:NAME=PATH with {rows}"
    return "; ".join(_allowed_of(family, scope) for family in families)


def _allowed_of(family: str, scope: str) -> str:
    row = FAMILIES[family]
    hub = f", {family}:ORG/NAME of the hub" if row.open_ids else ""
    return f"{_names(family, scope)}{hub}, or {family}:NAME=PATH, PATH {row.local}"


def _names(family: str, scope: str) -> str:
    names = SCOPES[scope].names(family)
    if len(names) <= _SHOWN:
        return ", ".join(names)
    pattern = scope if SCOPES[scope].kinds else f"{family}:"
    return f"{', '.join(names[:8])} … tiny (all {len(names)}: featprep models {pattern})"


def _hint(id: str, scope: str) -> str:
    """' Did you mean X?', the name nearest to what was typed, spelled as this command wants it."""
    taken = SCOPES[scope]
    names = {
        known.casefold(): f"{family}:{known}" if scope == "any" else known
        for family in taken.families
        for known in taken.names(family)
        if known != "tiny"
    }
    close = difflib.get_close_matches(id.casefold(), names, n=1, cutoff=0.5)
    return f" Did you mean {names[close[0]]}?" if close else ""
