"""Keys and shards: pure functions of names. Knows no file system and no store."""

from __future__ import annotations

import os
import re
import unicodedata

RESERVED = ".featprep"  # the ledger's folder, below the output


def key_of(source: str, names: str) -> str:
    """`a/b.png` → `a/b`, or, with names="full", `a/b.png`."""
    return source if names == "full" else os.path.splitext(source)[0]


def folder_of_encoder(name: str) -> str:
    """`hf:facebook/dinov2-base` → `hf_facebook_dinov2-base`: one folder's name, safe to type."""
    return re.sub(r"[^\w.@+-]", "_", name)


def sort_key(name: str) -> bytes:
    """Order by bytes, also of names that are not UTF-8."""
    return os.fsencode(name)


def fold(name: str) -> str:
    """What a file system that folds case (and Unicode composition) takes for the same name."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def shard_of(key: str, count: int) -> int:
    """0 … count−1, the same on every machine and in every order: xxh3-64 of the key's bytes."""
    import xxhash  # here, so that refusals can be printed where nothing is installed

    return int(xxhash.xxh3_64_intdigest(os.fsencode(key)) % count)


def is_in_shard(key: str, shard: tuple[int, int] | None) -> bool:
    """`shard` is (I, N) with I from 1 to N; None is everything."""
    return shard is None or shard_of(key, shard[1]) == shard[0] - 1


def is_reserved(key: str) -> bool:
    """May no result have this key? Its files would stand in the ledger's own folder or outside the
    output, or it is no name at all."""
    parts = key.split("/")
    impossible = "\0" in key or any(part in ("", ".", "..") for part in parts)
    return impossible or fold(parts[0]) == RESERVED


def printable(name: str) -> str:
    """A name that is safe to print: no control characters, no terminal escapes, no lone bytes."""
    return "".join(c if c.isprintable() else _escaped(c) for c in name)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that was not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
