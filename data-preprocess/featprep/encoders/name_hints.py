"""Which known name was meant, and how a long list of names is told. Pure, of strings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_SHOWN = 4  # names in a refusal; of a longer list, the first three
_SHOWN_TAGS = 8
_SURE, _LIKELY = 0.8, 0.7  # difflib's ratio: below the last a hint is far-fetched
_TELLING = 4  # letters that say something where a name begins with them, or holds them


def nearest_name(typed: str, names: Iterable[str], *, is_sure: bool = False) -> str | None:
    """The name that was most likely meant, or None; `is_sure`: only one that differs little."""
    spelled = {name.casefold(): name for name in reversed(list(names))}  # the first of a spelling
    wanted = typed.casefold()
    found = _close(wanted, spelled, _SURE)
    if not found and not is_sure and len(wanted) >= _TELLING:
        holding = sorted((name for name in spelled if wanted in name), key=len)
        beginning = [name for name in holding if name.startswith(wanted)]
        found = beginning[:1] or holding[:1]
    if not found and not is_sure:
        found = _close(wanted, spelled, _LIKELY)
    return spelled[found[0]] if found else None


def _close(wanted: str, names: Iterable[str], cutoff: float) -> list[str]:
    return difflib.get_close_matches(wanted, names, n=1, cutoff=cutoff)


def listed(names: Sequence[str], pattern: str) -> str:
    """All, or the first, with what lists the others."""
    if len(names) <= _SHOWN:
        return ", ".join(names)
    last = " tiny" if names[-1] == "tiny" else ""
    first = ", ".join(names[: _SHOWN - 1])
    return f"{first} …{last} (all {len(names)}: featprep models {pattern})"


def tags_of(id: str, known: Iterable[str]) -> list[str]:
    """Names ID/TAG of an ID that is none without its tag, whatever its capitals."""
    return [name for name in known if name.casefold().startswith(f"{id.casefold()}/")]


def tags_text(family: str, tags: Sequence[str]) -> str:
    more = f" … (all {len(tags)}: featprep models {family}:{tags[0].rpartition('/')[0]}/)"
    first = ", ".join(f"{family}:{tag}" for tag in tags[:_SHOWN_TAGS])
    return first + (more if len(tags) > _SHOWN_TAGS else "")
