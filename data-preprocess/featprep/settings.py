"""The kinds of value a setting can have: each parses what a flag or a YAML key says, or refuses it.

A refusal is one line: what was asked, what is allowed, what to type next. Knows no setting by name.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from featprep.errors import UsageError

# NUL, and surrogates that stand for no byte of a name
_NO_PATH = re.compile(r"[\x00\ud800-\udc7f\udd00-\udfff]")
NAMED_COLOURS = {"black": (0, 0, 0), "white": (255, 255, 255), "grey": (128, 128, 128)}


@dataclass(frozen=True, slots=True)
class Kind:
    """`allowed`: the phrase for tables and refusals. `parse` gets the flag's name and its text;
    `parse_several` the texts of a YAML list, which else are joined by commas. `is_list`: whether
    one flag takes several, A,B."""

    allowed: str
    parse: Callable[[str, str], Any]
    is_switch: bool = False
    parse_several: Callable[[str, list[str]], Any] | None = None
    is_list: bool = False


def refuse(name: str, raw: str, allowed: str, example: object) -> NoReturn:
    raise UsageError(f"--{name} {shown(raw)}: allowed is {allowed}; for example --{name} {example}")


def shown(raw: str, most: int = 80) -> str:
    """What was asked, on one line of bearable length; nothing at all is shown as ''."""
    line = " ".join(raw.split()) or "''"
    return line if len(line) <= most else line[: most - 1] + "…"


def nearest(word: str, words: Iterable[str]) -> str:
    """' Did you mean X?' or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def text(allowed: str) -> Kind:
    def parse(name: str, raw: str) -> str:
        if not raw.strip():
            raise UsageError(f"--{name} is empty: give {allowed}")
        if _NO_PATH.search(raw):
            raise UsageError(f"--{name} holds a character that no path can hold: give {allowed}")
        return raw

    return Kind(allowed, parse)


def models(allowed: str) -> Kind:
    """One text, or several: between commas, unless the whole is a path, or as a list."""
    one = text(allowed)

    def parse(name: str, raw: str) -> str | tuple[str, ...]:
        path = raw.rpartition("=")[2]
        if "," not in raw or ("," in path and "\0" not in path and os.path.exists(path)):
            whole: str = one.parse(name, raw)
            return whole
        return several(name, raw.split(","))

    def several(name: str, raw: list[str]) -> tuple[str, ...]:
        if not all(part.strip() for part in raw):
            asked = shown(",".join(raw))
            raise UsageError(f"--{name} {asked}: a name is empty; drop the comma too many")
        return tuple(one.parse(name, part.strip()) for part in raw)

    return Kind(allowed, parse, parse_several=several, is_list=True)


def switch() -> Kind:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

    def parse(name: str, raw: str) -> bool:
        if raw.lower() not in words:
            refuse(name, raw, "true or false", "true")
        return words[raw.lower()]

    return Kind("true or false", parse, is_switch=True)


def choice(*names: str) -> Kind:
    allowed = ", ".join(names)

    def parse(name: str, raw: str) -> str:
        if raw not in names:
            hint = nearest(raw, names)
            raise UsageError(f"--{name} {shown(raw)}: allowed is one of {allowed}.{hint}")
        return raw

    return Kind(allowed, parse)


def count(least: int, *, auto: bool = False, example: int = 8) -> Kind:
    allowed = f"a whole number from {least} up" + (", or auto" if auto else "")

    def parse(name: str, raw: str) -> int | None:
        if auto and raw == "auto":
            return None
        if not re.fullmatch(r"[0-9][0-9_]{0,17}", raw) or int(raw.replace("_", "")) < least:
            refuse(name, raw, allowed, example)
        return int(raw.replace("_", ""))

    return Kind(allowed, parse)


def number(least: float, most: float, example: float) -> Kind:
    allowed = f"a number from {least:g} to {most:g}"

    def parse(name: str, raw: str) -> float:
        try:
            value = float(raw)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            refuse(name, raw, allowed, example)
        return value

    return Kind(allowed, parse)


def _parse_size(name: str, raw: str) -> tuple[int, int] | str:
    if raw == "native":
        return raw
    sides = _sides(raw)
    if sides is None and re.fullmatch(r"[0-9, ]*[0-9]{6}[0-9, ]*", raw):
        raise UsageError(f"--{name} {shown(raw)}: a side has at most 99999 pixels; take a smaller")
    if sides is None:
        refuse(name, raw, "one side, H,W in pixels, or native", f"224 or --{name} 224,448")
    return sides


def _parse_cells(name: str, raw: str) -> tuple[int, int]:
    sides = _sides(raw)
    if sides is None:
        refuse(name, raw, "one number of cells, or H,W", f"16 or --{name} 16,32")
    return sides


def _sides(raw: str) -> tuple[int, int] | None:
    sides = [part.strip() for part in raw.strip("()[] ").split(",")]
    if len(sides) > 2 or not all(re.fullmatch(r"[1-9][0-9]{0,4}", side) for side in sides):
        return None
    return int(sides[0]), int(sides[-1])


def _parse_layers(name: str, raw: str) -> tuple[int, ...]:
    parts = [part.strip() for part in raw.strip("()[] ").split(",")]
    if not all(re.fullmatch(r"-?[0-9]{1,4}", part) for part in parts):
        refuse(name, raw, _LAYERS, "-1 or --layer -1,5,0")
    return tuple(map(int, parts))


def _parse_shard(name: str, raw: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", raw.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        refuse(name, raw, "I/N with I from 1 to N", "1/8")
    return int(found[1]), int(found[2])


def _parse_colour(name: str, raw: str) -> str:
    if raw not in (*NAMED_COLOURS, "mean") and not re.fullmatch(r"#[0-9a-fA-F]{6}", raw):
        allowed = f"{', '.join(NAMED_COLOURS)}, mean or #rrggbb"
        raise UsageError(
            f"--{name} {shown(raw)}: allowed is {allowed} (quote it: '#ff8800')."
            f"{nearest(raw, (*NAMED_COLOURS, 'mean'))}"
        )
    return raw.lower()


def size() -> Kind:
    return Kind("one side, `H,W`, or `native`", _parse_size)


def cells() -> Kind:
    return Kind("one number of cells, or `H,W`", _parse_cells)


_LAYERS = "one number or several, from 0 up, or from the end as -1"


def layers() -> Kind:
    return Kind(_LAYERS, _parse_layers, is_list=True)


def shard() -> Kind:
    return Kind("`I/N`, I from 1 to N", _parse_shard)


def colour() -> Kind:
    return Kind("black, white, grey, mean (the encoder's own), `#rrggbb`", _parse_colour)


def colour_of(name: str, mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """8-bit RGB of a background; `mean` (in [0, 1]) is what the word mean stands for."""
    if name == "mean":
        red, green, blue = (round(value * 255) for value in mean)
        return red, green, blue
    if name in NAMED_COLOURS:
        return NAMED_COLOURS[name]
    return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)
