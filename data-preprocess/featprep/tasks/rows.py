"""Images of any kind → batches → what an encoder gives of each, in order, one at a time.

Of a stream no more than one batch is taken ahead. Knows no task: what is wanted of the encoder, and
what is made of it, is the caller's.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from typing import Any

import numpy as np

from featprep import images
from featprep.decoding import DecodeRules, prepare_bytes, prepare_picture
from featprep.encoders.base import Encoder, Want
from featprep.errors import ImageError, OutOfMemoryError
from featprep.records import AnyArray, FeatureMaps, ImageRef, Prepared
from featprep.session import Session
from featprep.tasks import inputs
from featprep.tasks.urls import UrlLimits

_READERS = 8  # threads that read and decode a batch: most of them wait for the network
_PICTURE = threading.Lock()  # a PIL image reads its file when first used, and may be given twice


class RowEncoder:
    """A session for calls from any thread: one batch at a time is on the device.

    The lock is not only for memory: layers are read by hooks on the modules that all calls share.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._lock = threading.Lock()

    def rows(
        self, given: Iterator[Any], want: Want, batch_size: int | None, limits: UrlLimits
    ) -> Iterator[FeatureMaps]:
        """FeatureMaps of one row for each image, in order, in the storage precision.

        The images before one that fails are given first; then ImageError, with its position and
        name. Later batches are padded to the size of the first, since kernels choose their
        summation order by shape; the first is as large as it comes, so that one image costs one.
        """
        size = batch_size or self.session.batch_size
        want = replace(want, dtype=self.session.precision.storage)
        batches: _Batches | None = None
        told = False
        numbered = enumerate(given)
        while window := list(islice(numbered, size)):
            prepared, error = _prepare_all(window, self.session.rules, limits)
            told = told or _tell(prepared)
            batches = batches or _Batches(self.session, want, len(window), self._lock)
            yield from batches.encode(prepared)
            if error is not None:
                raise error


@dataclass(slots=True)
class _Batches:
    """`size` shrinks when the device runs out of memory, and stays so for the rest of the call."""

    session: Session
    want: Want
    size: int
    lock: threading.Lock

    def encode(self, images: Sequence[Prepared]) -> Iterator[FeatureMaps]:
        """Neighbours of one size go together."""
        start = 0
        while start < len(images):
            part = self._same_size(images[start:])
            with self.lock:
                rows = self._forward(part)
            if rows is None:
                self.size = (self.size + 1) // 2
                continue
            yield from rows
            start += len(part)

    def _same_size(self, images: Sequence[Prepared]) -> list[Prepared]:
        shape = images[0].pixels.shape
        return list(islice(takewhile(lambda one: one.pixels.shape == shape, images), self.size))

    def _forward(self, part: Sequence[Prepared]) -> list[FeatureMaps] | None:
        """One row each, or None where memory ran out and a smaller batch may do."""
        found = self._try(self.session.encoder, self.want, part)
        if found is None and self.size > 1:
            return None
        if found is None:
            raise _failed(part[0], "the device has no memory for it, even alone in a batch")
        rows = [_row(found, i) for i in range(len(part))]
        return [
            row if _is_finite(row) else self._again(image)
            for image, row in zip(part, rows, strict=True)
        ]

    def _again(self, image: Prepared) -> FeatureMaps:
        """In float32, for what is not finite or does not fit float16."""
        exact = replace(self.want, dtype="float32")
        found = self._try(self.session.exact(), exact, [image])
        if found is None:
            raise _failed(image, "the device has no memory to encode it again in float32")
        row = _row(found, 0)
        if not _is_finite(row):
            raise _failed(image, "its features are not finite, in float32 either")
        with np.errstate(over="ignore"):
            row = _each_array(row, lambda array: array.astype(self.want.dtype))
        if not _is_finite(row):
            raise _failed(image, "its features do not fit float16; drop fp16=True")
        return row

    def _try(self, encoder: Encoder, want: Want, part: Sequence[Prepared]) -> FeatureMaps | None:
        """Of a padded batch."""
        pixels = np.zeros((self.size, *part[0].pixels.shape), dtype=np.uint8)
        for row, image in zip(pixels, part, strict=False):
            row[...] = image.pixels
        try:
            return encoder.encode(pixels, want)
        except OutOfMemoryError:
            return None


def _prepare_all(
    window: Sequence[tuple[int, Any]], rules: DecodeRules, limits: UrlLimits
) -> tuple[list[Prepared], ImageError | None]:
    """The images before the first that fails, and its error."""
    jobs = [partial(_prepare, *item, rules, limits) for item in window]
    if len(jobs) == 1:
        return _collected(jobs)
    with ThreadPoolExecutor(min(_READERS, len(jobs)), "featprep-read") as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            return _collected(future.result for future in futures)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _collected(
    jobs: Iterable[Callable[[], Prepared]],
) -> tuple[list[Prepared], ImageError | None]:
    prepared: list[Prepared] = []
    try:
        for job in jobs:
            prepared.append(job())
    except ImageError as error:
        return prepared, error
    return prepared, None


def _prepare(position: int, given: Any, rules: DecodeRules, limits: UrlLimits) -> Prepared:
    name = f"image {position} ({inputs.name_of(given)})"
    ref = ImageRef(name, name, "", 0, 0)
    try:
        pixels = inputs.read(given, limits)
        if isinstance(pixels, bytes):
            return prepare_bytes(pixels, ref, rules)
        with _PICTURE:
            picture = images.picture_of(pixels)
        return prepare_picture(picture, picture.alpha, ref, rules.geometry, sha256="")
    except ImageError as error:
        raise ImageError(f"{name}: {error}", error.stage) from error
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it", "decode") from error


def _tell(images: Sequence[Prepared]) -> bool:
    """Warn of the first image whose values had to be guessed at, as of a tensor that was normalised
    already: it is stretched to black and white."""
    noted = next((image for image in images if image.meta["notes"]), None)
    if noted is not None:
        warnings.warn(f"{noted.ref.source}: {'; '.join(noted.meta['notes'])}", stacklevel=2)
    return noted is not None


def _row(maps: FeatureMaps, i: int) -> FeatureMaps:
    return _each_array(maps, lambda array: array[i : i + 1])


def _each_array(maps: FeatureMaps, change: Callable[[AnyArray], AnyArray]) -> FeatureMaps:
    return FeatureMaps(
        {layer: change(map_) for layer, map_ in maps.maps.items()},
        None if maps.prefix is None else change(maps.prefix),
        None if maps.pooled is None else change(maps.pooled),
    )


def _is_finite(maps: FeatureMaps) -> bool:
    vectors = [array for array in (maps.prefix, maps.pooled) if array is not None]
    return all(np.isfinite(array).all() for array in (*maps.maps.values(), *vectors))


def _failed(image: Prepared, reason: str) -> ImageError:
    return ImageError(f"{image.ref.source}: {reason}", "encode")
