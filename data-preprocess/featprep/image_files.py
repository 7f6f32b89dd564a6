"""A path → the bytes of an image file, if it can be one: never a pipe, never without end.

A name says nothing of what stands there: a hole of a terabyte costs no disk, a FIFO waits for ever,
and a link may lead to a device. Knows no format.
"""

from __future__ import annotations

import os
import stat

from featprep.errors import ImageError

# RGBA of 32-bit floats, uncompressed, and room for what lies around the pixels
BYTES_A_PIXEL, BESIDE = 16, 1 << 24


def read_image_file(path: str | bytes, max_pixels: int) -> tuple[bytes, os.stat_result]:
    """Its bytes, and what the system says of the file that they are of. Raises OSError, and
    ImageError (stage "read") where it is no file, or longer than an image may be."""
    with open(path, "rb", opener=_open_at_once) as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise ImageError("not a regular file", "read")
        if before.st_size > max_pixels * BYTES_A_PIXEL + BESIDE:
            raise ImageError(
                f"{before.st_size:,} bytes are more than an image of --max_pixels {max_pixels:,} "
                "has",
                "read",
            )
        data = file.read() or b""  # None: the system's own files, that would have us wait
        return data, os.fstat(file.fileno())


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
