"""Stored maps and texts: the cosine of every cell with every text, and the text each is nearest to.

Pure, of arrays; knows no run and no model.
"""

from __future__ import annotations

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


def segments(found: Float32, mask: AnyArray | None) -> NDArray[np.int16]:
    """(T, rows, columns) → (rows, columns): the number of the text with the highest cosine, the
    first of equals; OUTSIDE where the mask is 0."""
    nearest: NDArray[np.int16] = found.argmax(axis=0).astype(np.int16)
    if mask is not None:
        nearest[np.asarray(mask) == 0] = OUTSIDE
    return nearest
