"""The encoders there are. A new one is its file, one line here, one row of docs/encoders.md.

Nothing here imports torch: families load their libraries when an encoder is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featprep.encoders import (
    downloads,
    hf_config,
    hf_known,
    hf_text,
    hub,
    huggingface,
    name_hints,
    openai_clip,
    openai_clip_cards,
    openai_clip_text,
    openclip,
    openclip_text,
    text_tower,
    timm_catalogue,
    timm_models,
    tiny,
    torchvision_catalogue,
    torchvision_models,
)
from featprep.encoders.aliases import ALIASES
from featprep.encoders.base import (
    Encoder,
    EncoderSpec,
    LoadOptions,
    ModelName,
    Terms,
    TextEncoder,
)
from featprep.encoders.weights import Found
from featprep.errors import UsageError, WeightsError


@dataclass(frozen=True, slots=True)
class Family:
    """`known`: published names. `find`: the files, downloaded where they must be; `find_text`: with
    those that texts need, where they are more. `local`: what a path leads to. `open_ids`: the hub
    has more, named ORG/NAME after `hub_prefix`. `package`: what to install where no name is known.
    `is_more`: whether an ID may be a name that only its library knows; `more`: what that is, in
    words; `list_more`: those that hold a text, and `ask`: what its library says of one."""

    known: Mapping[str, EncoderSpec | None]
    describe: Callable[[ModelName], EncoderSpec | None]
    load: Callable[[ModelName, LoadOptions], Encoder]
    find: Callable[[ModelName], Found]
    local: str
    open_ids: bool = False
    hub_prefix: str = ""
    package: str = ""
    is_more: Callable[[str], bool] = lambda id: False
    more: str = ""
    list_more: Callable[[str], list[str]] = lambda text: []
    ask: Callable[[ModelName], tuple[EncoderSpec, Terms]] | None = None
    terms: Callable[[str], Terms] = lambda id: Terms()
    load_text: Callable[[ModelName, LoadOptions], TextEncoder] | None = None
    find_text: Callable[[ModelName], Found] | None = None


FAMILIES = {
    "clip": Family(
        openai_clip_cards.KNOWN,
        openai_clip.describe,
        openai_clip.load,
        openai_clip.find,
        "a .pt file",
        terms=openai_clip_cards.terms,
        load_text=openai_clip_text.load,
    ),
    "hf": Family(
        hf_known.KNOWN,
        huggingface.describe,
        huggingface.load,
        huggingface.find,
        "a folder with config.json",
        open_ids=True,
        terms=hf_known.terms,
        load_text=hf_text.load,
        find_text=hf_text.find,
    ),
    "openclip": Family(
        openclip.KNOWN,
        openclip.describe,
        openclip.load,
        openclip.find,
        "a checkpoint, or a folder with open_clip_config.json; NAME is ARCH/TAG or ARCH",
        open_ids=True,
        hub_prefix="hf-hub:",
        package="open_clip_torch",
        load_text=openclip_text.load,
        find_text=openclip_text.find,
    ),
    "timm": Family(
        timm_catalogue.KNOWN,
        timm_models.describe,
        timm_models.load,
        timm_models.find,
        "a .safetensors file, a state dict, or a folder with config.json",
        is_more=timm_catalogue.is_spelled,
        more="any other model of timm",
        list_more=timm_models.list_more,
        ask=timm_models.ask,
        terms=timm_catalogue.terms,
    ),
    "torchvision": Family(
        torchvision_catalogue.KNOWN,
        torchvision_models.describe,
        torchvision_models.load,
        torchvision_models.find,
        "a .pth file, under torchvision's NAME of it",
        terms=torchvision_catalogue.terms,
    ),
}


@dataclass(frozen=True, slots=True)
class Scope:
    """What a command takes; bare paths and `tiny` are of its first family. `kinds`: of hf: these
    model types alone; empty: all. `pattern`: what makes `featprep models` list them."""

    title: str
    families: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    pattern: str = ""

    def names(self, family: str) -> list[str]:
        """The names of a family that the command knows, tiny among them where there is one."""
        return [
            id
            for id in _ids(family)
            if not self.kinds or id == "tiny" or hf_known.kind_of(id) in self.kinds
        ]


def _ids(family: str) -> tuple[str, ...]:
    return (*FAMILIES[family].known, *(("tiny",) if family in tiny.TINY else ()))


# What the entry scripts take; of hub ids and paths, their config.json decides as they are read.
SCRIPTS = {
    "clip": Scope("clip: and openclip: encoders", ("clip", "openclip")),
    "dino": Scope("DINOv2 and DINOv3", ("hf",), hf_config.DINO, "dino"),
}
ANY = Scope("any encoder", tuple(FAMILIES))
OF_FAMILY = {name: Scope(f"{name}: encoders", (name,)) for name in FAMILIES}
SCOPES = {**OF_FAMILY, **SCRIPTS, "any": ANY}
_PATHS = ("/", "./", "../", "~")  # how a value begins that can be nothing but a path


def list_encoders() -> list[str]:
    """FAMILY:ID of every known encoder."""
    return [f"{family}:{id}" for family in FAMILIES for id in _ids(family)]


def list_more(text: str) -> list[str]:
    """FAMILY:ID of the names that hold this and that only their library knows. Loads it."""
    return [
        f"{family}:{id}"
        for family, row in FAMILIES.items()
        if row.ask is not None
        for id in row.list_more(text.removeprefix(f"{family}:"))
    ]


def ask(name: ModelName) -> tuple[EncoderSpec, Terms]:
    """What its library says of a name that `list_more` gave. Raises WeightsError, UsageError."""
    library = FAMILIES[name.family].ask
    assert library is not None
    return library(name)


def resolve(value: str, scope: str) -> ModelName:
    """What `--model VALUE` names in a command of a scope (SCOPES). Raises UsageError.

    FAMILY:ID, FAMILY:ID=PATH, a known name, an alias, or, in a command other than `any`, a path.
    """
    value = _unaliased(value)
    taken = SCOPES[scope]
    head, colon, rest = value.partition(":")
    if colon and head in FAMILIES:
        if head not in taken.families or rest in set(FAMILIES[head].known) - set(taken.names(head)):
            raise UsageError(_elsewhere(value, taken))
        return replace(_spelled(value, head, rest), kinds=taken.kinds)
    plain = _plain(value, taken)
    if plain is not None:
        return plain
    for family, row in FAMILIES.items():
        if value in row.known and scope in SCRIPTS:
            raise UsageError(_elsewhere(f"{family}:{value}", taken))
    raise UsageError(_unknown(value, taken, value))


def _unaliased(value: str) -> str:
    """An alias, also of local weights (ALIAS=PATH), as the name it stands for."""
    head, equals, path = value.partition("=")
    id = head.removeprefix("torchvision:")
    if id in torchvision_catalogue.SAME:
        head = f"torchvision:{torchvision_catalogue.SAME[id]}"
    return f"{ALIASES.get(head, head)}{equals}{path}"


def _plain(value: str, taken: Scope) -> ModelName | None:
    """A bare value: a known name first, then a path, which, as `tiny`, is of the first family."""
    own = None if taken is ANY else taken.families[0]
    if own and value == "tiny":
        return ModelName(own, value, is_plain=True, kinds=taken.kinds)
    owners = [family for family in taken.families if value in taken.names(family)]
    if len(owners) == 1:
        scripts = [script for script in SCRIPTS.values() if owners[0] in script.families]
        is_script_name = any(value in script.names(owners[0]) for script in scripts)
        return ModelName(owners[0], value, is_plain=is_script_name, kinds=taken.kinds)
    if own and Path(value).exists():
        id = Path(value).resolve().name
        return ModelName(own, id, value, is_plain=True, kinds=taken.kinds)
    return None


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec, as far as it can be known without torch; None where only the weights tell."""
    if name.id == "tiny" and name.path is None:
        return tiny.TINY[name.family]
    return FAMILIES[name.family].describe(name)


def terms_of(name: ModelName) -> Terms:
    """Licence and gating of the published weights of this name."""
    return FAMILIES[name.family].terms(name.id)


def load_encoder(name: ModelName, options: LoadOptions) -> Encoder:
    """Load it, weights from the path, the library's cache or the network. Raises WeightsError."""
    if options.quick_gelu is not None and name.family != "openclip":
        flag = "--quick_gelu" if options.quick_gelu else "--no_quick_gelu"
        raise UsageError(f"{flag}: it is for openclip:ARCH=FILE; drop it for {name}")
    if name.id == "tiny" and name.path is None:
        return tiny.load_tiny(name, options)
    with _misspelt(name):
        return FAMILIES[name.family].load(name, options)


def load_text(name: ModelName, options: LoadOptions) -> TextEncoder:
    """Load the text tower of this name, and nothing of the image tower. Raises WeightsError, and
    UsageError where there is none."""
    row = FAMILIES[name.family]
    spec = describe(name)
    if row.load_text is None or (spec is not None and not spec.text):
        raise text_tower.refusal(name)
    if name.id == "tiny" and name.path is None:
        return tiny.load_tiny_text(name, options, row.load_text)
    with _misspelt(name):
        return row.load_text(name, options)


def find_weights(name: ModelName) -> Found:
    """Its files, as `load_encoder` and `load_text` find or download them, unread. Raises
    WeightsError."""
    row = FAMILIES[name.family]
    with _misspelt(name):
        found = row.find(name)
    spec = describe(name) if row.find_text else None  # of a hub id its files tell, there by now
    return row.find_text(name) if row.find_text and spec and spec.text else found


@contextmanager
def _misspelt(name: ModelName) -> Iterator[None]:
    """A name of the hub that is not known here, and cannot be had, may be a known one misspelt; one
    that is known to be gated is told so, even where the hub was not asked."""
    try:
        yield
    except WeightsError as error:
        row = FAMILIES[name.family]
        is_wanting = downloads.carry_over(name) in str(error)
        if is_wanting and row.terms(name.id).is_gated and "is gated" not in str(error):
            raise WeightsError(
                f"{error}. It is gated: first accept its terms at {hub.SITE}/{name.id}"
            ) from error
        is_open = row.open_ids and name.path is None and name.id not in row.known
        near = name_hints.nearest_name(name.id, row.known, is_sure=True) if is_open else None
        if near is None:
            raise
        raise WeightsError(f"{error}. Did you mean {name.family}:{near}?") from error


def _spelled(value: str, family: str, rest: str) -> ModelName:
    id, equals, path = rest.partition("=")
    row = FAMILIES[family]
    if equals:
        if not id or not Path(path).exists():
            raise UsageError(
                f"--model {value}: no such path; allowed is {family}:NAME=PATH, PATH {row.local}"
            )
        return ModelName(family, id, path)
    if id in _ids(family) or row.is_more(id):
        return ModelName(family, id)
    if row.open_ids and id.startswith(row.hub_prefix) and _is_hub_id(id, row.hub_prefix):
        return ModelName(family, id)
    if row.package and not row.known:
        raise UsageError(f"--model {value}: needs {row.package}; type: pip install {row.package}")
    tags = name_hints.tags_of(id, row.known)
    if tags:
        raise UsageError(
            f"--model {value}: of which weights? allowed is {name_hints.tags_text(family, tags)}"
        )
    raise UsageError(_unknown(value, OF_FAMILY[family], id))


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


def _elsewhere(value: str, taken: Scope) -> str:
    """FAMILY:ID that this command does not take."""
    family, _, id = value.partition(":")
    commands = [
        f"encode_with_{name}.py"
        for name, script in SCRIPTS.items()
        if family in script.families and (not script.kinds or hf_known.kind_of(id) in script.kinds)
    ]
    return (
        f"--model {value}: this command takes {taken.title}; allowed is {_allowed(taken)}; "
        f"for this one use {' or '.join([*commands, f'featprep encode --model {value}'])}"
    )


def _unknown(value: str, taken: Scope, id: str) -> str:
    if taken is ANY and value == "tiny":
        names = [f"{family}:tiny" for family in tiny.TINY]
        return f"--model tiny: of which family? type --model hf:tiny; allowed is {', '.join(names)}"
    if taken is ANY and Path(value).exists():
        return (
            f"--model {value}: a path needs its family and a name; allowed is FAMILY:NAME=PATH, "
            f"such as hf:mine={value}, FAMILY one of {', '.join(FAMILIES)}"
        )
    state = "no such file or folder" if value.startswith(_PATHS) else "no such encoder"
    return f"--model {value}: {state}; allowed is {_allowed(taken)}.{_hint(id, taken)}"


def _allowed(taken: Scope) -> str:
    if taken is ANY:
        return (
            f"FAMILY:NAME or FAMILY:NAME=PATH, FAMILY one of {', '.join(taken.families)} "
            f"(all {len(list_encoders())} names: featprep models)"
        )
    return "; ".join(_allowed_of(family, taken) for family in taken.families)


def _allowed_of(family: str, taken: Scope) -> str:
    row = FAMILIES[family]
    hub = f", {family}:{row.hub_prefix}ORG/NAME of the hub" if row.open_ids else ""
    more = f", {row.more}" if row.more else ""
    return f"{_names(family, taken)}{more}{hub}, or {family}:NAME=PATH, PATH {row.local}"


def _names(family: str, taken: Scope) -> str:
    return name_hints.listed(taken.names(family), taken.pattern or f"{family}:")


def _hint(id: str, taken: Scope) -> str:
    """' Did you mean X?', X as this command wants it: with its family, or as an entry script has
    it; and of a family that was typed."""
    is_script = taken in SCRIPTS.values()
    names = {
        known: known if is_script else f"{family}:{known}"
        for family in reversed(taken.families)  # the first wins where two spell a name alike
        for known in taken.names(family)
    }
    near = name_hints.nearest_name(id, names)
    return f" Did you mean {names[near]}?" if near else ""
