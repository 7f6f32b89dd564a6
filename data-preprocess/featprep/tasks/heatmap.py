"""Stored maps and texts: the cosine of every cell with every text, and the text each is nearest to.

Pure, of arrays; knows no run and no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featprep.records import AnyArray, Float32
from featprep.tasks.scores import Float64, unit

OUTSIDE = -1  # in segments: a cell that the mask leaves out


def cosines(feature: AnyArray, texts: Float64) -> Float32:
    """(C, rows, columns) and unit (T, C) → (T, rows, columns), in [-1, 1].

    A cell of zeros has cosine 0. Computed in float64 whatever the map is stored as: a float16 map
    loses no more than its storage did.
    """
    channels, rows, columns = feature.shape
    cells = unit(feature.reshape(channels, -1).T)
    found = np.clip(texts @ cells.T, -1.0, 1.0)
    return found.reshape(-1, rows, columns).astype(np.float32)


@dataclass(slots=True)
class Tally:
    """What many maps hold of each text, cells that a mask leaves out not among them: (T,) least and
    greatest cosines, and of how many of the `cells` it is the highest."""

    least: Float32
    greatest: Float32
    highest: NDArray[np.int64]
    cells: int = 0

    @classmethod
    def of_none(cls, texts: int) -> Tally:
        ends = np.full(texts, np.inf, np.float32)
        return cls(ends, -ends, np.zeros(texts, np.int64))

    def add(self, found: Float32, mask: AnyArray | None) -> None:
        nearest = segments(found, mask)
        inside = found[:, nearest != OUTSIDE]
        self.least = np.minimum(self.least, inside.min(axis=1, initial=np.inf))
        self.greatest = np.maximum(self.greatest, inside.max(axis=1, initial=-np.inf))
        counts = np.bincount(nearest[nearest != OUTSIDE], minlength=len(found))
        self.highest, self.cells = self.highest + counts, self.cells + int(counts.sum())


def segments(found: Float32, mask: AnyArray | None) -> NDArray[np.int16]:
    """(T, rows, columns) → (rows, columns): the number of the text with the highest cosine, the
    first of equals; OUTSIDE where the mask is 0."""
    nearest: NDArray[np.int16] = found.argmax(axis=0).astype(np.int16)
    if mask is not None:
        nearest[np.asarray(mask) == 0] = OUTSIDE
    return nearest
