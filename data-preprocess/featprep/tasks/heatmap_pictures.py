"""Cosines and segments as pictures. Pure, of arrays."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featprep.records import AnyArray, Float32, UInt8
from featprep.tasks.heatmap import OUTSIDE

SIDE = 336  # least height of a picture, pixels
SHARE = 0.6  # of the colour, over an image
# Dark to light through violet, red and orange, as matplotlib's inferno goes: printed in grey, more
# is still lighter.
_ANCHORS = np.array(
    [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64
)
_GOLDEN = 0.618033988749895  # turns of hue that never come close to one another


def heat(found: Float32, mask: AnyArray | None, limits: tuple[float, float] | None) -> UInt8:
    """(rows, columns) cosines → (rows, columns, 4): colour, and 255 where the mask is set.

    `limits`: the cosines of the darkest and the lightest colour; None: the least and the greatest
    of the cells that count.
    """
    inside = _inside(found.shape, mask)
    low, high = limits or _extent(found[inside])
    steps = np.clip((found - low) / max(high - low, 1e-12), 0, 1) * (len(_ANCHORS) - 1)
    known = np.arange(len(_ANCHORS))
    channels = [np.interp(steps, known, _ANCHORS[:, channel]) for channel in range(3)]
    return _with_alpha(np.stack(channels, axis=-1), inside)


def labels(nearest: NDArray[np.int16]) -> UInt8:
    """(rows, columns) numbers of texts → (rows, columns, 4); OUTSIDE is transparent."""
    count = int(nearest.max(initial=0)) + 1
    palette = np.array([colour(number) for number in range(count)], np.float64)
    return _with_alpha(palette[np.maximum(nearest, 0)], nearest != OUTSIDE)


def colour(number: int) -> tuple[int, int, int]:
    """Of the text of this number, the same in every picture."""
    red, green, blue = colorsys.hsv_to_rgb((number * _GOLDEN) % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def hex_colour(number: int) -> str:
    return "#" + bytes(colour(number)).hex()


def picture(cells: UInt8, pixels: UInt8 | None) -> Image.Image:
    """(rows, columns, 4) → a picture with square edges between its cells.

    Over `pixels`, (3, H, W) as the network saw them, if given: where it is transparent, they show.
    """
    rows, columns = cells.shape[:2]
    height, width = (rows, columns) if pixels is None else pixels.shape[1:]
    scale = max(1, -(-SIDE // height))
    size = (width * scale, height * scale)
    coloured = Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)
    if pixels is None:
        return coloured
    below = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    below = below.resize(size, Image.Resampling.BICUBIC).convert("RGBA")
    faint = coloured.getchannel("A").point(lambda alpha: round(alpha * SHARE))
    coloured.putalpha(faint)
    return Image.alpha_composite(below, coloured).convert("RGB")


def _inside(shape: tuple[int, ...], mask: AnyArray | None) -> NDArray[np.bool_]:
    return np.ones(shape, bool) if mask is None else np.asarray(mask) > 0


def _extent(values: AnyArray) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)


def _with_alpha(colours: AnyArray, inside: NDArray[np.bool_]) -> UInt8:
    whole = np.zeros((*inside.shape, 4), np.uint8)
    whole[..., :3] = np.rint(colours)
    whole[..., 3] = inside * 255
    return whole
