"""Which cells of the grid an image covers, and how much: alpha under the affine of its pixels.

Exact integers from end to end (one division, at the end of coverage), because a mask decides what a
training loss sees: no pixel may be gained or lost to rounding. Knows no file and no encoder.

On an axis of n source pixels resized to r, of which f make g cells, lengths are counted in 1 / (n *
g) of a resized pixel: a source pixel measures r * g, a cell f * n, and every edge is an integer.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featprep.geometry import Geometry, Placement
from featprep.records import AnyArray, UInt8

Alpha = NDArray[np.uint8] | NDArray[np.uint16]
Int64 = NDArray[np.int64]


class Axis(NamedTuple):
    """The cells of one axis over its source pixels.

    A cell overlaps the pixels [start, stop), each by a positive length; `before` of its first pixel
    and `after` of its last lie outside it. All four are 0 if the cell is all padding.
    """

    start: Int64
    stop: Int64
    before: Int64
    after: Int64
    pixel: int  # length of a source pixel
    cell: int  # length of a cell, its padding included


def mask_grid(
    alpha: Alpha | None, placement: Placement, geometry: Geometry
) -> UInt8 | NDArray[np.float32] | None:
    """The mask of an image placed by `place`: (grid_h, grid_w), or None for mask "none".

    any: uint8, 1 iff a source pixel, a unit square, with alpha > alpha_threshold overlaps the
    cell's footprint by a positive area. coverage: float32, the area-weighted mean of alpha / max
    over the footprint; padding counts as 0. Without alpha (None) every pixel of the image counts
    in full, at any threshold.
    """
    if geometry.mask == "none":
        return None
    if alpha is not None and alpha.shape != placement.source:
        raise ValueError(f"placed for {placement.source}, alpha is {alpha.shape}")
    rows, columns = _axis(placement, 0), _axis(placement, 1)
    if geometry.mask == "coverage":
        return _coverage(alpha, rows, columns)
    return _any(alpha, rows, columns, geometry.alpha_threshold)


def _axis(placement: Placement, axis: int) -> Axis:
    """Where the cells' edges fall among the source pixels of one axis."""
    source, resized = placement.source[axis], placement.resized[axis]
    footprint, grid = placement.footprint[axis], placement.grid[axis]
    # The largest units that are exact: 1 / parts of a resized pixel, then 1 / unit of that.
    parts, common = grid // math.gcd(footprint, grid), math.gcd(source, resized)
    pixel, unit = resized // common * parts, source // common
    edges = np.arange(grid + 1, dtype=np.int64) * (footprint * parts // grid)
    first, last = placement.shown[axis]
    inside = np.clip(edges + placement.offset[axis] * parts, first * parts, last * parts) * unit
    low, high = inside[:-1], inside[1:]
    start, stop = low // pixel, -(-high // pixel)
    before, after = low - start * pixel, stop * pixel - high
    empty = low >= high
    for bound in (start, stop, before, after):
        bound[empty] = 0
    return Axis(start, stop, before, after, pixel, footprint * parts // grid * unit)


def _any(alpha: Alpha | None, rows: Axis, columns: Axis, threshold: float) -> UInt8:
    if alpha is None:
        return np.outer(rows.stop > 0, columns.stop > 0).astype(np.uint8)
    peak = np.zeros((len(rows.start), len(columns.start)), dtype=alpha.dtype)
    for i in np.flatnonzero(rows.stop):
        line = alpha[rows.start[i] : rows.stop[i]].max(axis=0)
        peak[i] = _per_cell(np.maximum, line, columns)
    return (peak > _limit(threshold, np.iinfo(alpha.dtype).max)).astype(np.uint8)


def _limit(threshold: float, opaque: int) -> int:
    """The largest alpha that is not above the threshold: floor(threshold * opaque).

    The threshold is the decimal that was typed, not the nearest binary fraction: 153 of 255 is 0.6
    and not above it, though the float 0.6 is a little smaller.
    """
    return math.floor(Fraction(repr(float(threshold))) * opaque)


def _coverage(alpha: Alpha | None, rows: Axis, columns: Axis) -> NDArray[np.float32]:
    """A sum over whole pixels, less what of the first and the last lies outside: along the rows of
    a cell, then along its columns. One row of cells at a time, so that memory stays small.

    A sum is at most 65,535 * patch**2 * pixels of the image, 2**52 at 200 megapixels and patch 14;
    of a --grid that divides nothing it outgrows 63 bits, and is summed in Python's integers.
    """
    if alpha is None:
        total = np.outer(_covered(rows), _covered(columns))
        return (total / float(rows.cell * columns.cell)).astype(np.float32)
    opaque = int(np.iinfo(alpha.dtype).max)
    largest = opaque * (rows.cell + 2 * rows.pixel) * (columns.cell + 2 * columns.pixel)
    number: type = np.int64 if largest < 2**63 else object
    total = np.zeros((len(rows.start), len(columns.start)), dtype=number)
    for i in np.flatnonzero(rows.stop):
        block = alpha[rows.start[i] : rows.stop[i]]
        line = block.sum(axis=0, dtype=np.int64) * rows.pixel
        line -= block[0] * rows.before[i] + block[-1] * rows.after[i]
        total[i] = _per_cell(np.add, line, columns).astype(number) * columns.pixel
        total[i] -= line[columns.start].astype(number) * columns.before
        total[i] -= line[columns.stop - 1].astype(number) * columns.after
    shares: NDArray[np.float32] = (total / (opaque * rows.cell * columns.cell)).astype(np.float32)
    return shares


def _covered(axis: Axis) -> Int64:
    return (axis.stop - axis.start) * axis.pixel - axis.before - axis.after


def _per_cell(reduce: np.ufunc, line: AnyArray, columns: Axis) -> AnyArray:
    """reduce over the pixels [start, stop) of every cell; 0 for cells that are all padding."""
    # reduceat takes all bounds in one list, [start 0, stop 0, start 1, …], and reduces between
    # neighbours: every second result is a cell's. The zero appended makes stop = n a legal bound.
    bounds = np.stack([columns.start, columns.stop], axis=1).ravel()
    cells = reduce.reduceat(np.append(line, line.dtype.type(0)), bounds)[::2]
    return np.where(columns.stop > 0, cells, line.dtype.type(0))
