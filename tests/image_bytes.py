"""Image files written byte by byte, with depths, chunks and tags that Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
from featprep.records import AnyArray

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    values: AnyArray,
    *,
    depth: int = 16,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """(H, W) or (H, W, 1…4) as a PNG of `depth` bits; `before` and `after` stand around IDAT."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    header = struct.pack(">IIBBBBB", width, height, depth, COLOUR_TYPES[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", png_rows(values, depth))
        + after
        + chunk(b"IEND", b"")
    )


def png_rows(values: AnyArray, depth: int) -> bytes:
    if depth < 8:
        return zlib.compress(b"".join(b"\0" + _packed(row, depth) for row in values))
    rows = values.astype(">u2" if depth == 16 else np.uint8)
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))


def _packed(row: AnyArray, depth: int) -> bytes:
    bits = "".join(f"{int(value):0{depth}b}" for value in row)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def tiff(
    values: AnyArray,
    tags: Mapping[int, list[int]] | None = None,
    *,
    order: Literal["<", ">"] = "<",
    planar: bool = False,
    raw: bytes | None = None,
) -> bytes:
    """(H, W) or (H, W, C) as an uncompressed TIFF with `tags` added or replaced, all as LONG.

    The data come last, so that a truncated file keeps its directory.
    """
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    stored = values.astype(values.dtype.newbyteorder(order))
    planes = [stored[:, :, i] for i in range(channels)] if planar else [stored]
    strips = (
        [raw] if raw is not None else [np.ascontiguousarray(plane).tobytes() for plane in planes]
    )
    found = {
        256: [width],
        257: [height],
        258: [values.dtype.itemsize * 8] * channels,
        259: [1],
        262: [2 if channels > 2 else 1],
        273: [0] * len(strips),
        277: [channels],
        278: [height],
        279: [len(strip) for strip in strips],
        284: [2 if planar else 1],
        339: [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * channels,
    } | dict(tags or {})
    start = 8 + 2 + 12 * len(found) + 4
    beyond = sum(4 * len(value) for value in found.values() if len(value) > 1)
    ends = np.cumsum([start + beyond, *found[279]])
    found[273] = [int(end) for end in ends[:-1]]
    table, long_values = struct.pack(f"{order}H", len(found)), b""
    for tag, value in sorted(found.items()):
        packed = struct.pack(f"{order}{len(value)}I", *value)
        if len(value) > 1:
            long_values += packed
            packed = struct.pack(f"{order}I", start + len(long_values) - len(packed))
        table += struct.pack(f"{order}HHI", tag, 4, len(value)) + packed
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + table + bytes(4) + long_values + b"".join(strips)
