"""Where the pixels of an image land: one affine for image and mask, and the resize that follows it.

`place` works out sizes and offsets from plain numbers, `render` makes the network's pixels from
them; masks.py reads the same Placement, so image and mask cannot disagree. Knows no file, no
encoder and no normalisation: the network gets bytes.

Coordinates are continuous: pixel k covers [k, k + 1), its centre lies at k + 0.5. On either axis

    network = source * resized_size / source_size - offset    cell = network * grid / footprint
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageChops

from featprep.errors import ImageError
from featprep.records import AnyArray, Picture, UInt8

Size = tuple[int, int]  # (height, width), or (rows, columns)
Colour = tuple[int, int, int]  # RGB, 0…255
Kernel = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Rounding = Literal["torchvision", "transformers"]

# Pixels of a resized image above which only the canvas's part of it is made: 256 MB at Pillow's
# four bytes a pixel. A 30,000 x 1 image has 1.5 gigapixels once its short side is 224.
LARGEST_RESIZE = 64_000_000
STRIP = 1 << 20  # pixels composited at a time, so that temporaries stay in the megabytes

# Pillow's filter and its support: how many pixels (of the coarser raster) it reaches to each side
KERNELS: dict[str, tuple[Image.Resampling, int]] = {
    "nearest": (Image.Resampling.NEAREST, 1),
    "bilinear": (Image.Resampling.BILINEAR, 1),
    "bicubic": (Image.Resampling.BICUBIC, 2),
    "lanczos": (Image.Resampling.LANCZOS, 3),
}


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a run asks for one encoder, resolved against it. Plain values: picklable, and equal to
    `Geometry.from_dict(json.loads(json.dumps(asdict(geometry))))`.

    `size`: network input, None for keep. `patch`: stride of a network's cell in its pixels. `grid`:
    of the map, asked of the model, None for keep (sides // patch); or that of --grid, with `cells`
    the network's own, None for keep. `tile`: the windows of --tile, which keep's images may not be
    smaller than. `multiple`: what keep rounds sides down to, where that is more than a cell: the
    earlier stages of a CNN. `kernel`: of the resize. `rounding`: of the crop's offsets. `scale_to`:
    native only, the short side, or (height, width) to stretch to, before the centre crop to `size`.
    `max_tokens` bounds the cells of keep. `background`: behind transparent
    pixels, and the padding. `mask`, `alpha_threshold`: see masks.mask_grid.
    """

    resize: Literal["crop", "squash", "pad", "keep", "native"]
    size: Size | None
    patch: int
    grid: Size | None
    kernel: Kernel = "bicubic"
    rounding: Rounding = "torchvision"
    scale_to: int | Size | None = None
    max_tokens: int = 16384
    background: Colour = (0, 0, 0)
    mask: Literal["any", "coverage", "none"] = "any"
    alpha_threshold: float = 0.0
    cells: Size | None = None
    tile: Size | None = None
    multiple: int | None = None

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Geometry:
        """The geometry whose `dataclasses.asdict` went through JSON, where tuples become lists."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in plain.items()
        }
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one image lands; every pair is (vertical, horizontal).

    `source`: the upright image. `resized`: after the resize. `offset`: the canvas's top left corner
    in the resized image, negative where the canvas is padded. `canvas`: network input. `footprint`:
    the part of the canvas that has cells, from its top left. `grid`: cell (i, j) is canvas rows
    [i, i + 1) * footprint / grid, columns likewise; whole patches, unless --grid resampled them.
    `windowed`: the resized image is too large to be made whole (LARGEST_RESIZE).
    """

    source: Size
    resized: Size
    offset: Size
    canvas: Size
    footprint: Size
    grid: Size
    windowed: bool = False

    @property
    def affine(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """2 x 3, source (x, y, 1) → network (x, y), pixel centres at +0.5."""
        (height, width), (rows, columns), (top, left) = self.source, self.resized, self.offset
        return (columns / width, 0.0, float(-left)), (0.0, rows / height, float(-top))

    @property
    def cell(self) -> tuple[Fraction, Fraction]:
        """Sides of a cell in network pixels."""
        return (
            Fraction(self.footprint[0], self.grid[0]),
            Fraction(self.footprint[1], self.grid[1]),
        )

    @property
    def shown(self) -> tuple[Size, Size]:
        """The part of the resized image inside the canvas: ((top, bottom), (left, right))."""
        rows, columns = (
            (max(0, corner), min(length, corner + side))
            for corner, length, side in zip(self.offset, self.resized, self.canvas, strict=True)
        )
        return rows, columns

    def metadata(self) -> dict[str, Any]:
        """The image's part of NAME.json, plain JSON values; pairs are [vertical, horizontal].

        `affine`: source (x, y, 1) → network (x, y), pixel centres at +0.5. `cell`: side of a cell
        in network pixels, so that x / cell is a column and y / cell a row; a pair where --grid made
        cells that are not square. `footprint`: the network pixels that have cells, from the top
        left; what lies beyond is outside the grid.
        """
        return {
            "source_size": list(self.source),
            "resized_size": list(self.resized),
            "crop_offset": list(self.offset),
            "input_size": list(self.canvas),
            "grid": list(self.grid),
            "affine": [list(row) for row in self.affine],
            "cell": _as_number(self.cell),
            "footprint": list(self.footprint),
            "windowed": self.windowed,
        }


def _as_number(cell: tuple[Fraction, Fraction]) -> int | float | list[float]:
    numbers = [int(side) if side.denominator == 1 else float(side) for side in cell]
    return numbers[0] if cell[0] == cell[1] else numbers


def place(geometry: Geometry, height: int, width: int) -> Placement:
    """Where an upright image of height × width pixels lands under `geometry`.

    Raises ImageError for an image that keep leaves smaller than a tile.
    """
    source = (height, width)
    if geometry.resize == "keep":
        cells = _kept_cells(geometry, source)
        _check_tile(geometry, source, cells)
        canvas = resized = (cells[0] * geometry.patch, cells[1] * geometry.patch)
        grid = geometry.grid or cells
    else:
        grid, canvas = _asked(geometry)
        cells = geometry.cells or grid
        resized = _resized(geometry, source, canvas)
    footprint = (cells[0] * geometry.patch, cells[1] * geometry.patch)
    offset = (
        _centred(resized[0], canvas[0], geometry.rounding),
        _centred(resized[1], canvas[1], geometry.rounding),
    )
    # a canvas that shows the whole image is as large itself: a window would save nothing
    overhangs = resized[0] > canvas[0] or resized[1] > canvas[1]
    windowed = overhangs and resized[0] * resized[1] > LARGEST_RESIZE
    return Placement(source, resized, offset, canvas, footprint, grid, windowed)


def _asked(geometry: Geometry) -> tuple[Size, Size]:
    if geometry.grid is None or geometry.size is None:
        raise ValueError(f"resize={geometry.resize!r} needs size and grid; only 'keep' has none")
    return geometry.grid, geometry.size


def _check_tile(geometry: Geometry, source: Size, cells: Size) -> None:
    patch, tile = geometry.patch, geometry.tile
    if tile is None or (cells[0] >= tile[0] // patch and cells[1] >= tile[1] // patch):
        return
    raise ImageError(
        f"{source[1]}×{source[0]} pixels give an input of {cells[1] * patch}×{cells[0] * patch}, "
        f"smaller than --tile {tile[0]},{tile[1]} (height, width): encode such images with "
        "--resize crop or pad and a --size, or without --tile, into another output"
    )


def _resized(geometry: Geometry, source: Size, canvas: Size) -> Size:
    if geometry.resize == "crop":
        return _scaled(source, canvas, cover=True)
    if geometry.resize == "pad":
        return _scaled(source, canvas, cover=False)
    if geometry.resize == "squash":
        return canvas
    target = geometry.scale_to
    if target is None:
        raise ValueError("resize='native' needs scale_to, from the encoder's recipe")
    return _scaled(source, (target, target), cover=True) if isinstance(target, int) else target


def _scaled(source: Size, box: Size, cover: bool) -> Size:
    """The source's size at the smallest scale that covers `box`, or the largest that fits into it.

    The side that decides becomes the box's; the other is cut to an integer, as torchvision's Resize
    does: int(size * long / short), which is this floor division, without its detour over a float.
    """
    (height, width), (rows, columns) = source, box
    if (rows * width >= columns * height) == cover:  # rows / height against columns / width
        return rows, max(1, rows * width // height)
    return max(1, columns * height // width), columns


def _centred(resized: int, canvas: int, rounding: Rounding) -> int:
    """The canvas's first pixel in the resized image; negative: so much padding in front.

    torchvision `center_crop`: crops at int(round(d / 2.0)), half to even, pads d // 2 in front.
    transformers `center_crop`: crops at d // 2, pads ceil(d / 2) in front: one floor for both.
    """
    excess = resized - canvas
    if rounding == "transformers":
        return excess // 2
    return round(excess / 2.0) if excess > 0 else -(-excess // 2)


def _kept_cells(geometry: Geometry, source: Size) -> Size:
    unit = geometry.multiple or geometry.patch
    side = unit // geometry.patch  # in cells
    rows, columns = _kept_grid(source, unit, max(1, geometry.max_tokens // side**2))
    return rows * side, columns * side


def _kept_grid(source: Size, patch: int, max_tokens: int) -> Size:
    """Whole patches of each side, at least one; of a smaller copy if these are above `max_tokens`.

    The copy is as large as fits. Its short side has a patches from the scale on where the long one
    has a * long // short, until just before that scale for a + 1.
    """
    rows, columns = (max(1, side // patch) for side in source)
    if rows * columns <= max_tokens:
        return rows, columns
    short, long = sorted(source)
    a = math.isqrt(max_tokens * short // long)
    while (a + 1) * ((a + 1) * long // short) <= max_tokens:  # once or twice: the floors leave room
        a += 1
    a = max(1, a)
    b = min(max_tokens // a, ((a + 1) * long - 1) // short)
    return (a, b) if source[0] <= source[1] else (b, a)


def render(picture: Picture, placement: Placement, geometry: Geometry) -> UInt8:
    """What the network sees: (3, H, W) uint8, C order. Opaque images equal torchvision's on Pillow.

    Compositing comes before the resize, and there is one resize, of 8-bit RGB. A resize R is linear
    and its weights sum to one, so resizing premultiplied colour p and alpha a apart and compositing
    then would be the same: R(p) + (1 - R(a)) * B = R(p + (1 - a) * B). But where the kernel
    overshoots an edge, R(p) and R(a) would each be clamped to 0…255 and rounded, and no longer add
    up: a white disc on white would get a grey rim. Composited first it is 255 everywhere and stays.
    """
    if picture.size != placement.source:
        raise ValueError(f"placed for {placement.source}, rendered {picture.size}")
    scaled = _scale_window if placement.windowed else _scale_whole
    image = _on_canvas(scaled(picture, placement, geometry), placement, geometry.background)
    return np.asarray(image).transpose(2, 0, 1).copy()


def _scale_whole(picture: Picture, placement: Placement, geometry: Geometry) -> Image.Image:
    """Resize, then crop. Not Pillow's resize(box=…): it may run its passes in the other order."""
    (top, bottom), (left, right) = placement.shown
    height, width = placement.resized
    image = _composited(picture.rgb, picture.alpha, geometry.background)
    kernel = KERNELS[geometry.kernel][0]
    if (picture.reduced or 1) > 1:
        image = image.resize((width, height), kernel, _source_box(picture))
    elif image.size != (width, height):  # Pillow would copy
        image = image.resize((width, height), kernel)
    if (top, left, bottom, right) == (0, 0, height, width):
        return image
    return image.crop((left, top, right, bottom))


def _source_box(picture: Picture) -> tuple[float, float, float, float]:
    """Where the source lies in a picture that its decoder made smaller: the decoder's last column
    and row may be source in part, and first ones once the picture is turned."""
    by = picture.reduced or 1
    height, width = (side / by for side in picture.size)
    top = picture.rgb.height - height if picture.orientation in (3, 4, 7, 8) else 0
    left = picture.rgb.width - width if picture.orientation in (2, 3, 6, 7) else 0
    return left, top, left + width, top + height


def _scale_window(picture: Picture, placement: Placement, geometry: Geometry) -> Image.Image:
    """Only the part of the resized image that the canvas shows, from the source pixels it needs.

    Pillow's `box` keeps the phase of the whole resize and its kernel reads beyond the box. So with
    a margin around it the result is the crop of the whole resize, to one grey level (rarely two),
    if both run their two 8-bit passes in the same order; Pillow chooses that by the sizes, and in
    the other order photographs differ by a few levels. Cropping to the margin first keeps the
    numbers of `box`, which is float32, small and so exact.
    """
    kernel, support = KERNELS[geometry.kernel]
    (top, bottom), (left, right) = placement.shown
    y0, y1, y = _window((top, bottom), placement.source[0], placement.resized[0], support)
    x0, x1, x = _window((left, right), placement.source[1], placement.resized[1], support)
    alpha = None if picture.alpha is None else picture.alpha[y0:y1, x0:x1]
    image = _composited(picture.rgb.crop((x0, y0, x1, y1)), alpha, geometry.background)
    return image.resize((right - left, bottom - top), kernel, box=(x[0], y[0], x[1], y[1]))


def _window(
    shown: Size, source: int, resized: int, support: int
) -> tuple[int, int, tuple[float, float]]:
    """Source pixels [start, stop) that resized pixels `shown` are made of, and where these lie."""
    margin = support * max(1, math.ceil(source / resized)) + 1
    start = max(0, shown[0] * source // resized - margin)
    stop = min(source, -(-shown[1] * source // resized) + margin)
    low, high = (edge * source / resized - start for edge in shown)
    return start, stop, (low, high)


def _composited(rgb: Image.Image, alpha: AnyArray | None, background: Colour) -> Image.Image:
    """Premultiplied rgb + (1 - alpha) * background, alpha at its own depth, rounded once."""
    if alpha is None or background == (0, 0, 0):
        return rgb
    behind = _behind(int(np.iinfo(alpha.dtype).max), background)
    result = rgb.copy()
    rows = max(1, STRIP // rgb.width)
    for top in range(0, rgb.height, rows):
        box = (0, top, rgb.width, min(top + rows, rgb.height))
        share = Image.fromarray(np.take(behind, alpha[top : top + rows], axis=0))
        result.paste(ImageChops.add(rgb.crop(box), share), box)
    return result


@lru_cache(maxsize=16)
def _behind(opaque: int, background: Colour) -> UInt8:
    """(1 - alpha / opaque) * background of every alpha, to the nearest integer: (opaque + 1, 3)."""
    clear = opaque - np.arange(opaque + 1)[:, None]
    shares: UInt8 = ((2 * clear * background + opaque) // (2 * opaque)).astype(np.uint8)
    return shares


def _on_canvas(image: Image.Image, placement: Placement, background: Colour) -> Image.Image:
    height, width = placement.canvas
    if image.size == (width, height):
        return image
    canvas = Image.new("RGB", (width, height), background)
    canvas.paste(image, (max(0, -placement.offset[1]), max(0, -placement.offset[0])))
    return canvas
