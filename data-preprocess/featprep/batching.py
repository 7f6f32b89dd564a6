"""Images → batches → rows: queues per size, padding, halving on a full device, float32 again.

The last batch is padded to the run's batch size, because kernels choose their summation order by
shape: a map must not depend on its neighbours or on where a run was cut. Knows encoders by their
protocol.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from featprep.encoders.base import Encoder, Want
from featprep.errors import OutOfMemoryError
from featprep.pooling import masked_vectors
from featprep.records import AnyArray, Failure, FeatureMaps, Features, Prepared

Row = tuple[Prepared, Features, tuple[str, ...]]  # the image, what was taken from it, notes


class SizeQueues:
    """Collects images until `size` of one (H, W) are there. At most `most` wait in all."""

    def __init__(self, size: int, most: int) -> None:
        self.size, self.most = size, max(most, size)
        self._queues: dict[tuple[int, ...], list[Prepared]] = {}

    def add(self, image: Prepared) -> list[Prepared] | None:
        """A full batch, or the fullest one when too many wait, or None."""
        queue = self._queues.setdefault(image.pixels.shape, [])
        queue.append(image)
        if len(queue) >= self.size:
            return self._queues.pop(image.pixels.shape)
        if sum(map(len, self._queues.values())) >= self.most:
            fullest = max(self._queues, key=lambda shape: len(self._queues[shape]))
            return self._queues.pop(fullest)
        return None

    def rest(self) -> Iterator[list[Prepared]]:
        while self._queues:
            yield self._queues.popitem()[1]


@dataclass(slots=True)
class BatchEncoder:
    """Runs an encoder over batches of one size. `exact` builds the float32 twin when it is needed.

    `masked_pool`: the mean over the cells of the mask too, which every image must then have.
    `size` shrinks when the device runs out of memory and stays so for the rest of the run, unless
    the run `keeps_size`: then the images of that batch fail. Threads may share it where they may
    share `encoder`.
    """

    encoder: Encoder
    want: Want
    size: int
    exact: Callable[[], Encoder]
    compute: str = "float32"
    on_halved: Callable[[int], None] = lambda size: None
    masked_pool: bool = False
    keeps_size: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)  # of `size` and `exact`

    def encode(self, images: Sequence[Prepared]) -> Iterator[Row | Failure]:
        """One outcome an image, in order."""
        start = 0
        while start < len(images):
            size = self.size
            part = images[start : start + size]
            maps = self._forward(self.encoder, self.want, part, size)
            if maps is None and self.keeps_size:
                yield from (_failed(image, self._no_room()) for image in part)
            elif maps is None and size > 1:
                self._halve(size)
                continue
            elif maps is None:
                yield _failed(part[0], "the device has no memory for it, even alone in a batch")
            else:
                yield from self._finish(part, maps)
            start += len(part)

    def _halve(self, size: int) -> None:
        """Once, however many threads had no room for a batch of this size."""
        with self._lock:
            if self.size == size:
                self.size = (size + 1) // 2
                self.on_halved(self.size)

    def _no_room(self) -> str:
        return (
            f"the device has no memory for a batch of {self.size}, which --deterministic keeps; "
            "a smaller --batch_size takes another output"
        )

    def _forward(
        self, encoder: Encoder, want: Want, part: Sequence[Prepared], size: int
    ) -> FeatureMaps | None:
        """What a padded batch gives, or None where memory ran out."""
        pixels = np.empty((size, *part[0].pixels.shape), dtype=np.uint8)
        for row, image in zip(pixels, part, strict=False):
            row[...] = image.pixels
        pixels[len(part) :] = 0
        try:
            return encoder.encode(pixels, want)
        except OutOfMemoryError:
            return None

    def _finish(self, part: Sequence[Prepared], maps: FeatureMaps) -> Iterator[Row | Failure]:
        for i, image in enumerate(part):
            features = _row(maps, i)
            _check_grids(image, features)
            is_finite = maps.finite is not None and maps.finite[i]
            if is_finite or _not_finite(features) is None:
                yield image, self._with_masked(image, features), ()
            else:
                yield self._again(image)

    def _again(self, image: Prepared) -> Row | Failure:
        """In float32, where something is not finite or does not fit float16."""
        with self._lock:  # one twin serves all threads
            want = replace(self.want, dtype="float32")
            maps = self._forward(self.exact(), want, [image], self.size)
        if maps is None:
            return _failed(image, "the device has no memory to encode it again in float32")
        exact = _row(maps, 0)
        bad = _not_finite(exact)
        if bad is not None:
            return _failed(image, f"its {bad} is not finite, in float32 either")
        stored = _cast(exact, self.want.dtype)
        bad = _not_finite(stored)
        if bad is not None:
            largest = float(np.abs(dict(_named(exact))[bad]).max())
            reason = f"its {bad} reaches {largest:.4g} and does not fit float16; run without --fp16"
            return _failed(image, reason)
        note = f"encoded again in float32: not finite in {self.compute} stored as {self.want.dtype}"
        return image, self._with_masked(image, stored), (note,)

    def _with_masked(self, image: Prepared, features: Features) -> Features:
        """Of the maps as they are stored, so that anyone can make it again from the files."""
        if not self.masked_pool:
            return features
        assert image.mask is not None, "--masked_pool with --mask none is refused"
        masked = masked_vectors(features.maps, image.mask)
        return replace(features, vectors={**features.vectors, **masked})


def _row(maps: FeatureMaps, i: int) -> Features:
    vectors = {"prefix": maps.prefix, "pooled": maps.pooled}
    return Features(
        {layer: map_[i] for layer, map_ in maps.maps.items()},
        {name: array[i] for name, array in vectors.items() if array is not None},
    )


def _cast(features: Features, dtype: str) -> Features:
    with np.errstate(over="ignore"):
        return Features(
            {layer: map_.astype(dtype) for layer, map_ in features.maps.items()},
            {name: array.astype(dtype) for name, array in features.vectors.items()},
        )


def _named(features: Features) -> Iterator[tuple[str, AnyArray]]:
    """Every array, as a failure calls it."""
    alone = len(features.maps) == 1
    for layer, map_ in features.maps.items():
        yield "map" if alone else f"map of layer {layer}", map_
    for name, array in features.vectors.items():
        yield f"{name} vector", array


def _not_finite(features: Features) -> str | None:
    """The first array that is not."""
    return next((name for name, array in _named(features) if not _is_finite(array)), None)


def _is_finite(array: AnyArray) -> bool:
    if array.dtype == np.float16:  # an eighth of the time of isfinite, which has no float16
        bits = array.view(np.uint16) & 0x7C00
        return not bool((bits == 0x7C00).any())
    return bool(np.isfinite(array).all())


def _check_grids(image: Prepared, features: Features) -> None:
    cells = tuple(image.meta["geometry"]["grid"])
    for map_ in features.maps.values():
        if map_.shape[1:] != cells:
            raise AssertionError(f"the encoder gave cells {map_.shape[1:]}, its grid() {cells}")


def _failed(image: Prepared, reason: str) -> Failure:
    return Failure(image.ref.key, image.ref.source, "encode", reason)
