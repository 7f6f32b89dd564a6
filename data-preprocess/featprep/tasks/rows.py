"""Images of any kind → batches → what an encoder gives of each, in order, one at a time.

Of a stream no more than one batch is taken ahead. Knows no task: what is wanted of the encoder, and
what is made of it, is the caller's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from typing import Any

from featprep import images
from featprep.batching import BatchEncoder
from featprep.decoding import DecodeRules, prepare_bytes, prepare_picture
from featprep.devices import available_cores
from featprep.encoders.base import Want
from featprep.errors import ImageError
from featprep.python_words import warn_caller
from featprep.records import Failure, Features, ImageRef, Prepared
from featprep.session import Session
from featprep.tasks import inputs
from featprep.tasks.urls import UrlLimits

_READERS = 8  # threads at least that read and decode a batch: they may wait for the network
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
    ) -> Iterator[Features]:
        """What is wanted of each image, in order, in the storage precision.

        The images before one that fails are given first; then ImageError, with its position and
        name. Later batches are padded to the size of the first, which is as large as it comes, so
        that one image costs no more than one.
        """
        for outcome in self._outcomes(given, want, batch_size, limits, is_strict=True):
            if isinstance(outcome, Failure):
                raise ImageError(f"{outcome.source}: {outcome.reason}", outcome.stage)
            yield outcome

    def outcomes(
        self, given: Iterator[Any], want: Want, batch_size: int | None, limits: UrlLimits
    ) -> Iterator[Features | Failure]:
        """As `rows`, but an image that fails is a Failure in its place, and the rest goes on."""
        return self._outcomes(given, want, batch_size, limits, is_strict=False)

    def _outcomes(
        self,
        given: Iterator[Any],
        want: Want,
        batch_size: int | None,
        limits: UrlLimits,
        *,
        is_strict: bool,
    ) -> Iterator[Features | Failure]:
        size = batch_size or self.session.batch_size
        batches: BatchEncoder | None = None
        told = False
        numbered = enumerate(given)
        while window := list(islice(numbered, size)):
            prepared = _prepare_all(window, self.session.rules, limits, is_strict=is_strict)
            whole = [item for item in prepared if isinstance(item, Prepared)]
            told = told or _tell(whole)
            batches = batches or self._batches(want, len(window))
            encoded = self._encode(batches, whole)
            for item in prepared:
                yield item if isinstance(item, Failure) else next(encoded)

    def _batches(self, want: Want, size: int) -> BatchEncoder:
        session = self.session
        want = replace(want, dtype=session.precision.storage)
        return BatchEncoder(session.encoder, want, size, session.exact, session.precision.compute)

    def _encode(
        self, batches: BatchEncoder, images: Sequence[Prepared]
    ) -> Iterator[Features | Failure]:
        for _, alike in groupby(images, key=lambda image: image.pixels.shape):
            with self._lock:
                outcomes = list(batches.encode(list(alike)))
            for outcome in outcomes:
                yield outcome if isinstance(outcome, Failure) else outcome[1]


def _prepare_all(
    window: Sequence[tuple[int, Any]], rules: DecodeRules, limits: UrlLimits, *, is_strict: bool
) -> list[Prepared | Failure]:
    """Each image of the window; if `is_strict`, none beyond the first that fails."""
    jobs = [partial(_prepare, *item, rules, limits) for item in window]
    if len(jobs) == 1:
        return [jobs[0]()]
    prepared: list[Prepared | Failure] = []
    readers = max(_READERS, available_cores())
    with ThreadPoolExecutor(min(readers, len(jobs)), "featprep-read") as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            for future in futures:
                prepared.append(future.result())
                if is_strict and isinstance(prepared[-1], Failure):
                    break
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return prepared


def _prepare(
    position: int, given: Any, rules: DecodeRules, limits: UrlLimits
) -> Prepared | Failure:
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
        return Failure(name, name, error.stage, str(error))
    except MemoryError:
        return Failure(name, name, "decode", "not enough memory to decode it")


def _tell(images: Sequence[Prepared]) -> bool:
    """Warn of the first image whose values had to be guessed at, as of a tensor that was normalised
    already: it is stretched to black and white."""
    noted = next((image for image in images if image.meta["notes"]), None)
    if noted is not None:
        warn_caller(f"{noted.ref.source}: {'; '.join(noted.meta['notes'])}")
    return noted is not None
