"""Images → batches → rows: queues per size, padding, halving on a full device, float32 again.

The last batch is padded to the run's batch size, because kernels choose their summation order by
shape: a map must not depend on its neighbours or on where a run was cut. Knows encoders by their
protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featprep.encoders.base import Encoder, Want
from featprep.errors import OutOfMemoryError
from featprep.records import AnyArray, Failure, Prepared

Row = tuple[Prepared, AnyArray, tuple[str, ...]]  # the image, its map, notes


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

    `size` shrinks when the device runs out of memory and stays so for the rest of the run.
    """

    encoder: Encoder
    want: Want
    size: int
    exact: Callable[[], Encoder]
    compute: str = "float32"
    on_halved: Callable[[int], None] = lambda size: None

    def encode(self, images: Sequence[Prepared]) -> Iterator[Row | Failure]:
        """One outcome an image, in order."""
        start = 0
        while start < len(images):
            part = images[start : start + self.size]
            maps = self._forward(self.encoder, self.want, part)
            if maps is None and self.size > 1:
                self.size = (self.size + 1) // 2
                self.on_halved(self.size)
                continue
            if maps is None:
                yield _failed(part[0], "the device has no memory for it, even alone in a batch")
            else:
                yield from self._finish(part, maps)
            start += len(part)

    def _forward(self, encoder: Encoder, want: Want, part: Sequence[Prepared]) -> AnyArray | None:
        """(B, C, gh, gw) of a padded batch, or None where memory ran out."""
        pixels = np.zeros((self.size, *part[0].pixels.shape), dtype=np.uint8)
        for row, image in zip(pixels, part, strict=False):
            row[...] = image.pixels
        try:
            return encoder.encode(pixels, want).map
        except OutOfMemoryError:
            return None

    def _finish(self, part: Sequence[Prepared], maps: AnyArray) -> Iterator[Row | Failure]:
        for image, feature in zip(part, maps, strict=False):
            _check_grid(image, feature)
            if np.isfinite(feature).all():
                yield image, feature, ()
            else:
                yield self._again(image)

    def _again(self, image: Prepared) -> Row | Failure:
        """In float32, for a map that is not finite or does not fit float16."""
        maps = self._forward(self.exact(), replace(self.want, dtype="float32"), [image])
        if maps is None:
            return _failed(image, "the device has no memory to encode it again in float32")
        feature = maps[0]
        if not np.isfinite(feature).all():
            return _failed(image, "its map is not finite, in float32 either")
        with np.errstate(over="ignore"):
            stored = feature.astype(self.want.dtype)
        if not np.isfinite(stored).all():
            largest = float(np.abs(feature).max())
            reason = f"its map reaches {largest:.4g} and does not fit float16; run without --fp16"
            return _failed(image, reason)
        note = f"encoded again in float32: not finite in {self.compute} stored as {self.want.dtype}"
        return image, stored, (note,)


def _check_grid(image: Prepared, feature: AnyArray) -> None:
    cells = tuple(image.meta["geometry"]["grid"])
    if feature.shape[1:] != cells:
        raise AssertionError(f"the encoder gave cells {feature.shape[1:]}, its grid() {cells}")


def _failed(image: Prepared, reason: str) -> Failure:
    return Failure(image.ref.key, image.ref.source, "encode", reason)
