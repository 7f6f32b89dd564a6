"""`--tile`: an encoder that sees large images through windows, and blends what it sees of each.

A window has one size, the encoder's own unless told otherwise, so position embeddings are never
interpolated and a fixed-size encoder takes images of any size. Windows start at whole patches and
the last of each axis is flush with the border. Where they overlap, a cell is their weighted mean:
on an axis of n cells the i-th weighs min(i + 1, n - i), a tent, so that what a window knows least
of, its rim, counts least. A wrapped encoder is an encoder; knows no file and no geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from featprep.encoders import wants
from featprep.encoders.base import Encoder, EncoderSpec, Want
from featprep.encoders.sizes import Size, checked, typed
from featprep.errors import OutOfMemoryError, UsageError
from featprep.records import AnyArray, FeatureMaps, UInt8

Grid = Callable[[int, int], Size]
Window = tuple[int, int, int]  # image of the batch, first row, first column, pixels


@dataclass(frozen=True, slots=True)
class Tiling:
    """`tile`: size of a window. `step`: from one to the next, whole patches. Both in pixels."""

    tile: Size
    step: Size

    @property
    def overlap(self) -> Size:
        return self.tile[0] - self.step[0], self.tile[1] - self.step[1]


def plan(spec: EncoderSpec, grid: Grid, tile: Size | str, overlap: int | None) -> Tiling:
    """What `--tile TILE --overlap OVERLAP` means for an encoder of this grid. Raises UsageError.

    The step is what is left of the tile, to the nearest whole patches, at least one. By default a
    quarter of the tile overlaps.
    """
    size = checked(spec, "tile", tile)
    cells = size[0] // spec.patch, size[1] // spec.patch
    is_whole = not any(side % spec.patch for side in size)
    # Cells that jut out of a window, or earlier stages' beyond its last, have nothing to join.
    if grid(*size) != cells or (spec.stages and not is_whole):
        raise UsageError(
            f"--tile {typed(size)}: the cells of {spec.name}, {spec.patch} wide, do not end where "
            f"it ends; allowed are multiples of {spec.patch}, for example --tile "
            f"{typed(tuple((n + 1) * spec.patch for n in cells))}"
        )
    if overlap is not None and overlap >= min(size):
        raise UsageError(
            f"--overlap {overlap}: allowed is 0 to {min(size) - 1}, less than the tile, "
            f"{typed(size)}; for example --overlap {(min(cells) + 2) // 4 * spec.patch}"
        )
    return Tiling(size, (_step(size[0], spec.patch, overlap), _step(size[1], spec.patch, overlap)))


def _step(side: int, patch: int, overlap: int | None) -> int:
    cells = side // patch
    if overlap is None:
        return (cells - (cells + 2) // 4) * patch
    wanted = (side - overlap + patch // 2) // patch
    return min(cells, max(1, wanted)) * patch  # more than its cells would leave gaps


def untied(spec: EncoderSpec) -> EncoderSpec:
    """The spec of the encoder behind windows: no size of input is fixed any more, and windows tile
    multiples of the patch alone."""
    return replace(spec, fixed_size=False, unit=None)


def refuse_vectors(want: Want) -> None:
    """A window has a CLS and a pooled vector of its own; there is none of the image."""
    asked = ["--prefix"] * want.prefix + ["--pooled"] * want.pooled
    if asked:
        raise UsageError(
            f"{asked[0]} with --tile: each window has its own and the image has none; drop one of "
            "them, or use --masked_pool"
        )


def starts(side: int, tile: int, step: int, patch: int) -> list[int]:
    """First pixels of the windows over one side. Its last, flush: it ends with the last cell.

    Raises UsageError where the side has fewer cells than a window.
    """
    last = (side // patch - tile // patch) * patch
    if last < 0:
        raise UsageError(f"an input side of {side} is smaller than --tile {tile}")
    return [*range(0, last, step), last]


def tent(rows: int, columns: int) -> AnyArray:
    """(rows, columns) float32: the weights of a window's cells, whole numbers from 1 up."""
    sides = [np.minimum(np.arange(n) + 1, n - np.arange(n)) for n in (rows, columns)]
    weights: AnyArray = np.outer(*sides).astype(np.float32)
    return weights


class TiledEncoder:
    """`inner` behind windows. A forward pass is as large as the batch it was given."""

    def __init__(self, inner: Encoder, tiling: Tiling) -> None:
        self.inner, self.tiling = inner, tiling
        self.spec = untied(inner.spec)
        self.digest, self.origin = inner.digest, inner.origin
        self.weights_files = inner.weights_files

    def grid(self, height: int, width: int, layer: int = -1) -> Size:
        tops, lefts = self._starts(height, width)
        stride = self._stride(layer)
        rows, columns = self.inner.grid(*self.tiling.tile, layer)
        return tops[-1] // stride + rows, lefts[-1] // stride + columns

    def tokens(self, height: int, width: int) -> tuple[int, int]:
        tops, lefts = self._starts(height, width)
        tokens, dim = self.inner.tokens(*self.tiling.tile)
        return len(tops) * len(lefts) * tokens, dim

    def compile(self, want: Want) -> None:
        self.inner.compile(want)

    def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
        refuse_vectors(want)
        try:
            with np.errstate(invalid="ignore", over="ignore"):  # inf in a window stays non-finite
                maps = self._encode(pixels, replace(want, dtype="float32"))
                return FeatureMaps({n: map.astype(want.dtype) for n, map in maps.items()})
        except MemoryError:
            pass
        raise OutOfMemoryError(f"no room for the maps of a batch of {len(pixels)}")

    def _starts(self, height: int, width: int) -> tuple[list[int], list[int]]:
        tile, step, patch = self.tiling.tile, self.tiling.step, self.spec.patch
        return starts(height, tile[0], step[0], patch), starts(width, tile[1], step[1], patch)

    def _stride(self, layer: int) -> int:
        return wants.stride(self.spec, layer % self.spec.depth)

    def _encode(self, pixels: UInt8, want: Want) -> dict[int, AnyArray]:
        height, width = pixels.shape[-2:]
        blends: dict[int, Blend] = {}
        black = [i for i, image in enumerate(pixels) if not image.any()]
        for window, cells in self._seen(pixels, black[1:], want):
            for layer, seen in cells.items():
                if layer not in blends:
                    grid = self.grid(height, width, layer)
                    blends[layer] = Blend(len(pixels), grid, seen, self._stride(layer))
                blends[layer].add(window, seen)
        for blend in blends.values():
            blend.maps[black[1:]] = blend.maps[black[:1]]
        return {layer: blend.maps for layer, blend in blends.items()}

    def _seen(
        self, pixels: UInt8, left_out: Sequence[int], want: Want
    ) -> Iterator[tuple[Window, dict[int, AnyArray]]]:
        """Every window of the images not left out, with the cells (C, rows, columns) it gives.

        All black windows are one, seen first: a short batch is padded with black images, and
        renders stand before it. So the order of an image's windows depends on that image alone.
        """
        tops, lefts = self._starts(*pixels.shape[-2:])
        images = [i for i in range(len(pixels)) if i not in left_out]
        black: list[Window] = []
        lit: list[Window] = []
        for window in product(images, tops, lefts):
            (lit if self._cut(pixels, window).any() else black).append(window)
        different, size = [*black[:1], *lit], len(pixels)
        for group in (different[i : i + size] for i in range(0, len(different), size)):
            maps = self.inner.encode(self._gather(pixels, group), want).maps
            for i, window in enumerate(group):
                cells = {layer: map[i] for layer, map in maps.items()}
                for same in black if window in black[:1] else [window]:
                    yield same, cells

    def _cut(self, pixels: UInt8, window: Window) -> UInt8:
        (image, top, left), (rows, columns) = window, self.tiling.tile
        return pixels[image, :, top : top + rows, left : left + columns]

    def _gather(self, pixels: UInt8, windows: Sequence[Window]) -> UInt8:
        """As many windows as there are images, padded with black ones.

        Where the patch does not divide the tile, the last window ends a few pixels beyond the
        image: these lie outside its grid and stay black.
        """
        batch = np.zeros((len(pixels), 3, *self.tiling.tile), np.uint8)
        for row, window in zip(batch, windows, strict=False):
            cut = self._cut(pixels, window)
            row[:, : cut.shape[1], : cut.shape[2]] = cut
        return batch


class Blend:
    """The maps of a batch at one layer, (B, C, gh, gw) float32, as its windows come in.

    A running weighted mean, m += (v - m) * w / (sum of w so far): where all windows agree, the
    result is exactly what they say, which a sum divided by the sum of its weights is not.
    """

    def __init__(self, images: int, grid: Size, cells: AnyArray, stride: int) -> None:
        self.maps = np.zeros((images, cells.shape[0], *grid), np.float32)
        self._weights = np.zeros((images, *grid), np.float32)
        self._tent, self._stride = tent(*cells.shape[1:]), stride

    def add(self, window: Window, cells: AnyArray) -> None:
        image, top, left = window[0], window[1] // self._stride, window[2] // self._stride
        rows, columns = self._tent.shape
        part = np.s_[top : top + rows, left : left + columns]
        weight = self._weights[image][part]
        weight += self._tent
        here = self.maps[image][:, *part]
        here += (cells - here) * (self._tent / weight)
