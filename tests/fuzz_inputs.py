"""Inputs for the fuzzer: small files of every format, and ways to damage bytes and JSON.

Everything comes from one `random.Random`, so that a number and a seed give the same bytes again.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from featprep.images import SUFFIXES
from image_bytes import png, tiff
from PIL import Image

MOST = 1 << 16  # bytes of an input: what is longer tests the clock and not the code

NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**63, -(2**63), 10**400, 0.5, 1e308, float("nan")),
    *(float("inf"), "", "a", "\0", "a\nb", "\x1b[2J", "\udcff", "\u202e", "../../x", "/etc/x"),
    *("x" * 5000, "[" * 300, [], {}, [[]], [None], {"": None}, [1, 2, 3], ["a", 1], {"a": [1]}),
)


def image_seeds() -> list[bytes]:
    """Of each format the modes it has, each a few dozen bytes to a few kilobytes."""
    random_ = np.random.default_rng(0)
    rgba = random_.integers(0, 256, (9, 12, 4), dtype=np.uint8)
    picture = Image.fromarray(rgba)
    made = [_saved(picture.convert(mode), kind, **how) for mode, kind, how in _SAVED]
    deep = random_.integers(0, 65536, (7, 5, 4), dtype=np.uint16)
    made += [png(deep), png(deep[:, :, :3]), png(deep[:, :, :2]), png(deep[:, :, 0])]
    made += [png(rgba[:, :, 0] % 4, depth=2), tiff(deep), tiff(deep[:, :, :3], planar=True)]
    made += [tiff(deep[:, :, :2]), tiff(deep.astype(np.float32) / 65535, order=">")]
    made += [tiff(deep[:, :, 0].astype(np.int16)), tiff(rgba, {338: [1]})]
    return made


_SAVED: list[tuple[str, str, dict[str, Any]]] = [
    *((mode, "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ("P", "PNG", {"transparency": 3}),
    ("RGB", "PNG", {"save_all": True, "append_images": [Image.new("RGB", (12, 9), 5)]}),
    *((mode, "JPEG", {}) for mode in ("L", "RGB", "CMYK")),
    ("RGB", "JPEG", {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0"
                     b"\0\0\6\0\0\0\0\0\0\0", "icc_profile": b"no profile"}),
    ("RGB", "MPO", {"save_all": True, "append_images": [Image.new("RGB", (12, 9), 5)]}),
    *((mode, "WEBP", how) for mode in ("RGB", "RGBA") for how in ({}, {"lossless": True})),
    ("RGB", "WEBP", {"save_all": True, "append_images": [Image.new("RGB", (12, 9), 5)]}),
    *((mode, "BMP", {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    *((mode, "TIFF", {}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "F")),
    *(("RGB", "TIFF", {"compression": name})
      for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
    ("1", "TIFF", {"compression": "group4"}),
    ("RGB", "AVIF", {}), ("RGBA", "AVIF", {}),
    ("P", "GIF", {}), ("P", "GIF", {"transparency": 3}),
    ("P", "GIF", {"save_all": True, "append_images": [Image.new("P", (12, 9), 5)]}),
]  # fmt: skip


def _saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def real_seeds() -> list[bytes]:
    """The small ones of the real odd files, where FEATPREP_TEST_DATA names their folder."""
    root = os.environ.get("FEATPREP_TEST_DATA")
    files = sorted(Path(root, "torture").rglob("*")) if root else []
    wanted = [path for path in files if path.suffix.lower() in SUFFIXES and path.is_file()]
    return [path.read_bytes() for path in wanted if path.stat().st_size <= 8192]


# ---- damaging bytes


def damaged(data: bytes, pool: list[bytes], words: tuple[bytes, ...], dice: random.Random) -> bytes:
    """Mostly one change, up to eight; `pool`: other inputs to splice with, `words`: what a format
    has."""
    raw = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        dice.choice(_DAMAGES)(raw, pool, words, dice)
    return bytes(raw[:MOST])


def _flip(raw: bytearray, pool: list[bytes], words: tuple[bytes, ...], dice: random.Random) -> None:
    if raw:
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)


def _set(raw: bytearray, pool: list[bytes], words: tuple[bytes, ...], dice: random.Random) -> None:
    if raw:
        raw[dice.randrange(len(raw))] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))


def _number(
    raw: bytearray, pool: list[bytes], words: tuple[bytes, ...], dice: random.Random
) -> None:
    """A telling number where a length, a size or an offset may stand."""
    width = dice.choice((2, 4))
    value = dice.choice(NUMBERS) % (1 << 8 * width)
    at = dice.randrange(len(raw) + 1)
    raw[at : at + width] = value.to_bytes(width, dice.choice(("little", "big")))


def _cut(raw: bytearray, pool: list[bytes], words: tuple[bytes, ...], dice: random.Random) -> None:
    del raw[dice.randrange(len(raw) + 1) :]


def _drop(raw: bytearray, pool: list[bytes], words: tuple[bytes, ...], dice: random.Random) -> None:
    at = dice.randrange(len(raw) + 1)
    del raw[at : at + dice.randint(1, 64)]


def _repeat(
    raw: bytearray, pool: list[bytes], words: tuple[bytes, ...], dice: random.Random
) -> None:
    at = dice.randrange(len(raw) + 1)
    raw[at:at] = raw[at : at + dice.randint(1, 256)] * dice.choice((1, 1, 2, 30))


def _splice(
    raw: bytearray, pool: list[bytes], words: tuple[bytes, ...], dice: random.Random
) -> None:
    other = dice.choice(pool)
    start, at = dice.randrange(len(other) + 1), dice.randrange(len(raw) + 1)
    raw[at : at + dice.randint(0, 64)] = other[start : start + dice.randint(1, 512)]


def _word(raw: bytearray, pool: list[bytes], words: tuple[bytes, ...], dice: random.Random) -> None:
    if words:
        at = dice.randrange(len(raw) + 1)
        raw[at : at + dice.choice((0, 0, 1, 4))] = dice.choice(words)


_DAMAGES: tuple[Callable[[bytearray, list[bytes], tuple[bytes, ...], random.Random], None], ...] = (
    *(_flip, _flip, _set, _set, _number, _number),
    *(_cut, _drop, _repeat, _splice, _word, _word),
)


def with_right_checksums(data: bytes, dice: random.Random) -> bytes:
    """Half of the damaged PNGs with checksums that fit: else none gets past the first look."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or dice.random() < 0.5:
        return data
    raw, at = bytearray(data), 8
    while at + 12 <= len(raw):
        length = int.from_bytes(raw[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(raw):
            break
        raw[end : end + 4] = zlib.crc32(raw[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(raw)


# ---- damaging JSON


def odd_json(data: bytes, dice: random.Random) -> bytes:
    """Each line's object with one to three values replaced, dropped or added; what is no JSON any
    more stays as it is."""
    return b"".join(_odd_line(line, dice) for line in re.findall(rb"[^\n]*\n|[^\n]+", data))


def _odd_line(line: bytes, dice: random.Random) -> bytes:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return line
    for _ in range(dice.randint(1, 3)):
        places = list(_places(document))
        if not places:
            break
        holder, name = dice.choice(places)
        if isinstance(holder, dict) and dice.random() < 0.15:
            del holder[name]
        elif dice.random() < 0.15:
            _rename(holder, name, dice)
        else:
            holder[name] = copy.deepcopy(dice.choice(ODD_VALUES))
    return _spelt(document) + b"\n" * line.endswith(b"\n")


def _spelt(document: Any) -> bytes:
    try:
        return json.dumps(document).encode()
    except ValueError:  # Python spells no int of more than 4,300 digits
        return b"{}"


def _rename(holder: Any, name: Any, dice: random.Random) -> None:
    if isinstance(holder, dict):
        holder[str(dice.choice(ODD_VALUES))[:300]] = holder.pop(name)
    else:
        holder.append(copy.deepcopy(dice.choice(ODD_VALUES)))


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """(dict or list, key or index) of every value in it."""
    stack = [document]
    while stack:
        holder = stack.pop()
        items: Any = ()
        if isinstance(holder, dict):
            items = holder.items()
        elif isinstance(holder, list):
            items = enumerate(holder)
        for name, value in items:
            yield holder, name
            stack.append(value)
