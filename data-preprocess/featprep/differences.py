"""What tells one run's settings from another's, in the words of the command line. Pure.

A fingerprint holds what the flags came to for one encoder; a person knows the flags. What only
follows from them (the kernel, the grid) is told where no flag differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from featprep.naming import printable
from featprep.settings import NAMED_COLOURS

Fingerprint = Mapping[str, Any]
Words = Callable[[Any], str]
_LONGEST = 200  # characters of a value; paths are, and a damaged run.json may hold anything
_COMPUTE = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def _valued(flag: str, spell: Words = str, none: str = "") -> Words:
    """`--flag VALUE`; a setting that was not given is `none`, or 'no --flag'."""
    return lambda value: (none or f"no {flag}") if value is None else f"{flag} {spell(value)}"


def _switch(name: str) -> Words:
    return lambda value: f"--{name}" if value else f"--no_{name}"


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _side(value: Any) -> str:
    """224 for (224, 224)."""
    is_square = isinstance(value, list) and len(set(value)) == 1
    return str(value[0]) if is_square else _listed(value)


def _norm(value: Any) -> str:
    """Several words: of each layer another, as only auto has it."""
    return "auto" if isinstance(value, list) else str(value)


def _colour(value: Any) -> str:
    names: dict[tuple[int, ...], str] = {rgb: name for name, rgb in NAMED_COLOURS.items()}
    return names.get(tuple(value), "'#" + "".join(f"{part:02x}" for part in value) + "'")


def _as_asked(run: Fingerprint) -> dict[str, Any]:
    """What was given as --grid, else the fingerprint's grid is the network's own; and as --size."""
    is_own = run.get("resize") in ("keep", "native")
    is_given = run.get("cells") or (run.get("resize") == "keep" and run.get("grid"))
    grid = run.get("grid") if is_given else None
    return {"size": None if is_own else run.get("size"), "--grid": grid}


# setting of a fingerprint → how the command line says its value
_FLAGS: dict[str, Words] = {
    "encoder": _valued("--model"),
    "layer": _valued("--layer", _listed),
    "feature": _valued("--feature"),
    "facet": _valued("--facet", none="--facet token"),
    "norm": _valued("--norm", _norm),
    "prefix": _switch("prefix"),
    "pooled": _switch("pooled"),
    "masked_pool": _switch("masked_pool"),
    "pos_embed": _valued("--pos_embed"),
    "storage": lambda value: "--fp16" if value == "float16" else "--no_fp16",
    "compute": _valued("--precision", lambda value: _COMPUTE.get(str(value), str(value))),
    "resize": _valued("--resize"),
    "size": _valued("--size", _side),
    "max_tokens": _valued("--max_tokens"),
    "tile": _valued("--tile", _side),
    "overlap": _valued("--overlap", _side),
    "--grid": _valued("--grid", _side),
    "background": _valued("--background", _colour),
    "mask": _valued("--mask"),
    "alpha_threshold": _valued("--alpha_threshold"),
    "mask_dir": _valued("--mask_dir"),
    "fast_decode": _switch("fast_decode"),
    "names": _valued("--names"),
    "models": _valued("--models", _listed),  # of vectors
    "normalize": _valued("--normalize"),
    "deterministic": _switch("deterministic"),
    "batch_size": _valued("--batch_size"),
    "compile": lambda value: f"--compile {'on' if value else 'off'}",
}
# What follows from another setting that differs, and would only tell the same again.
_FOLLOWS = {
    "encoder": ("weights", "layer", "norm", "size"),
    "storage": ("compute",),
    "tile": ("overlap",),
    "layer": ("norm",),
    "feature": ("norm",),
    "deterministic": ("threads", "batch_size", "compile"),
}


def differences(there: Fingerprint, mine: Fingerprint) -> str | None:
    """'A there, B asked; …: what to do', or None if the settings are the same."""
    names = [name for name in dict.fromkeys([*mine, *there]) if there.get(name) != mine.get(name)]
    if not names:
        return None
    before, now = ({**run, **_as_asked(run)} for run in (there, mine))
    told = [name for name in ("format", "weights", *_FLAGS) if before.get(name) != now.get(name)]
    follows = {name for cause in told for name in _FOLLOWS.get(cause, ())}
    told = [name for name in told if name not in follows] or names
    texts = [f"{_text(name, before)} there, {_text(name, now)} asked" for name in told]
    way_back = [_text(name, before) for name in told]
    can_go_back = all(text.startswith(("--", "no --")) for text in way_back)  # not to old weights
    on = f"to go on with what is there give {_joined(way_back)}, else " if can_go_back else ""
    return f"{'; '.join(texts)}. Nothing was touched: {on}"


def by_name(there: Fingerprint, mine: Fingerprint) -> list[str]:
    """'field A there, B asked' of each that differs, by the names of the fields. Of a model that
    only one of them has, its name tells all."""
    alone = tuple(f"{model} " for model in _models(there) ^ _models(mine))
    return [
        f"{name} {_plain(there.get(name))} there, {_plain(mine.get(name))} asked"
        for name in dict.fromkeys([*mine, *there])
        if there.get(name) != mine.get(name) and not name.startswith(alone)
    ]


def _models(run: Fingerprint) -> set[str]:
    """Of a table of vectors, which names its fields by them."""
    models = run.get("models")
    return {str(model) for model in models} if isinstance(models, list) else set()


def _joined(flags: list[str]) -> str:
    """`--size 224 --fp16 and no --tile`."""
    without = [text for text in flags if text.startswith("no ")]
    given = " ".join(text for text in flags if text not in without)
    return " and ".join([given] * bool(given) + without)


def _text(name: str, run: Mapping[str, Any]) -> str:
    value = run.get(name)
    try:
        text = _FLAGS[name](value)
    except (KeyError, TypeError, ValueError):  # no flag, or no value that this version writes
        text = f"{name} {_plain(value)}"
    text = printable(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _plain(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text  # a digest says enough in 12
