"""The switches of Pillow and OpenCV that belong to the whole process: borrowed while we decode.

Pillow keeps its warnings, its bomb limit and LOAD_TRUNCATED_IMAGES process-wide, OpenCV its log
level. A program that calls featprep may have set any of them, and may decode in several threads. So
each is touched for as short as it must be, counted or locked, so that threads of ours never restore
each other's values. Knows no format and no pixel.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np
from PIL import Image, ImageFile

from featprep.errors import ImageError
from featprep.records import AnyArray


class _Borrowed:
    """Pillow as we need it, from the first of our threads that decodes to the last.

    Its warnings are ignored through one filter of our own, put in and taken out by itself:
    warnings.catch_warnings restores the whole list, so that two threads leave each other's filters
    behind, and makes every warning of the caller's "once" appear again.
    """

    _FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._users = 0
        self.is_lenient = False
        self._truncated = False
        self._silence = logging.NullHandler()  # else logging's last resort prints Pillow's errors

    def take(self, *, lenient: bool = False) -> None:
        """`lenient` has Pillow to itself: what others decode meanwhile would not be held strict."""
        with self._turn:
            self._turn.wait_for(lambda: not self.is_lenient and not (lenient and self._users))
            self._users += 1
            self.is_lenient = lenient
            if self._users == 1:
                cast(list[Any], warnings.filters).insert(0, self._FILTER)
                logging.getLogger("PIL").addHandler(self._silence)
                self._truncated = ImageFile.LOAD_TRUNCATED_IMAGES
                # a cut file is a failure, not a grey half
                ImageFile.LOAD_TRUNCATED_IMAGES = lenient

    def give_back(self) -> None:
        with self._turn:
            self._users -= 1
            self.is_lenient = False
            self._turn.notify_all()
            if self._users == 0:
                with suppress(ValueError):  # the caller replaced the list meanwhile
                    cast(list[Any], warnings.filters).remove(self._FILTER)
                logging.getLogger("PIL").removeHandler(self._silence)
                ImageFile.LOAD_TRUNCATED_IMAGES = self._truncated


_PILLOW = _Borrowed()
_LIMIT = threading.Lock()
_OPENCV = threading.Lock()


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Inside, Pillow refuses truncated files and warns of nothing, whatever the program has set."""
    _PILLOW.take()
    try:
        yield
    finally:
        _PILLOW.give_back()


@contextmanager
def lenient_pillow() -> Iterator[None]:
    """Inside, Pillow fills up what a truncated file lacks; never within `strict_pillow`."""
    _PILLOW.take(lenient=True)
    try:
        yield
    finally:
        _PILLOW.give_back()


@contextmanager
def pillow_limit(pixels: int) -> Iterator[None]:
    """Inside, Pillow's own bomb limit is `pixels`, never none; one thread of ours at a time.

    For the rare image that Pillow refuses below our limit: everything smaller is decoded with the
    program's own limit in place.
    """
    with _LIMIT:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = (pixels + 1) // 2  # Pillow warns at this and raises at twice this
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def opencv_decode(data: bytes) -> AnyArray:
    """cv2.imdecode, unchanged depth, RGB(A) order, silent. Raises ImageError if OpenCV cannot.

    Locked, because the log level is the process's; few images come this way.
    """
    import cv2
    from cv2.utils import logging as log

    if _PILLOW.is_lenient:  # what OpenCV does not decode is whatever was in the memory before
        raise ImageError("of this depth no part is read of a file that is cut short")
    with _OPENCV:
        before = log.setLogLevel(0)
        try:
            found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error as error:
            raise ImageError(f"OpenCV cannot decode it: {error.err}") from error
        finally:
            log.setLogLevel(before)
    # the stubs promise an array, the function gives None for what it cannot read
    values = cast("AnyArray | None", found)
    if values is None:
        raise ImageError(
            "OpenCV cannot decode it: its compressed data is damaged or of an odd kind"
        )
    if values.ndim == 3:
        values = values[:, :, [2, 1, 0, 3][: values.shape[2]]]
    return values


def mute_decoders() -> None:
    """For a decoding worker, once, at its start: what C libraries print on stderr goes nowhere.

    libtiff writes its complaints about broken files straight to file descriptor 2, which no setting
    of Pillow's prevents. Python's own sys.stderr keeps its way out. Never for a caller's process.
    """
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
