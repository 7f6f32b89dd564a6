"""Decoded pixels of any type → premultiplied 8-bit RGB with alpha, or a mask. Knows no file format.

Two routes. What Pillow holds in 8 bits stays in Pillow: an opaque image is exactly its
convert("RGB"), without a copy where it is RGB already, and its RGBA → RGBa rounds each product of
colour and alpha once. Everything deeper is `Samples`, the numbers as the file has them: scaled,
premultiplied in float64 and rounded to 8 bits once, strip by strip. What is white (SPEC 3):

    bool                    1
    uint8, uint16           the largest of the type, 255 or 65,535; in a 12-bit file 4,095
    uint32, int32           65,535 if no value is above it, else the largest of the type
    int8, int16             the largest of the type
    float in [0, 1]         1
    float in [0, 255]       255
    other float             its own maximum; its minimum is black; noted. NaN or infinity: a failure

Of signed integers 0 is black, as in skimage's img_as_ubyte, so that a nodata value of -9999 does
not turn its image grey among its neighbours; what lies below is black too, and noted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featprep.errors import ImageError
from featprep.records import AnyArray

Alpha = NDArray[np.uint8] | NDArray[np.uint16]
Notes = tuple[str, ...]

STRIP = 1 << 18  # pixels scaled at a time: float64 copies of 200 megapixels would be 5 GB
LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # Pillow's convert("L"), ITU-R 601-2


@dataclass(frozen=True, slots=True)
class Samples:
    """An image in its own numbers: `colour` (H, W) or (H, W, 3), `alpha` (H, W) or None.

    `bits`: how many of an integer's bits count, where fewer than its type has. `premultiplied`: the
    colours are already multiplied by alpha.
    """

    colour: AnyArray
    alpha: AnyArray | None = None
    bits: int | None = None
    premultiplied: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """A value v means (v - black) / span, held in [0, 1]."""

    black: float
    span: float
    notes: Notes = ()


def premultiplied(pixels: Image.Image | Samples) -> tuple[Image.Image, Alpha | None, Notes]:
    """RGB already multiplied by alpha; alpha as deep as it came, None where all of it is opaque."""
    if isinstance(pixels, Samples):
        return _render(pixels)
    if not has_alpha(pixels):
        return (pixels if pixels.mode == "RGB" else pixels.convert("RGB")), None, ()
    if pixels.mode not in ("RGBa", "La"):
        pixels = pixels.convert("RGBA")
    alpha = pixels.getchannel(len(pixels.getbands()) - 1)
    is_opaque = alpha.getextrema() == (255, 255)
    if pixels.mode == "RGBA":
        pixels = pixels.convert("RGB" if is_opaque else "RGBa")
    rgb = pixels if pixels.mode == "RGB" else _colours(pixels)
    return rgb, None if is_opaque else np.asarray(alpha), ()


def mask_values(pixels: Image.Image | Samples) -> Alpha:
    """The alpha channel if there is one, else the grey value at its own depth, (H, W)."""
    if isinstance(pixels, Samples):
        if pixels.alpha is not None:
            return _as_alpha(pixels.alpha, pixels.bits)
        return _as_alpha(_grey(pixels.colour), pixels.bits)
    if has_alpha(pixels):
        full = pixels if pixels.mode in ("RGBa", "La") else pixels.convert("RGBA")
        return np.asarray(full.getchannel(len(full.getbands()) - 1))
    plain = pixels if pixels.mode in ("1", "L", "P", "RGB") else pixels.convert("RGB")
    return np.asarray(plain.convert("L"))


def has_alpha(image: Image.Image) -> bool:
    """Whether an 8-bit image has an alpha channel, an RGBA palette or a transparent colour."""
    if image.mode in ("1", "L", "RGB", "P"):
        return image.has_transparency_data
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La")


def from_array(array: AnyArray) -> Image.Image | Samples:
    """(H, W) or (H, W, 1 | 2 | 3 | 4): grey, grey, grey + alpha, RGB, RGBA. Raises ImageError."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or not 1 <= channels <= 4 or 0 in array.shape:
        raise ImageError(
            f"an array of shape {array.shape} is no image: allowed (H, W) and (H, W, 1…4), H and W "
            "above 0; for (3, H, W) pass array.transpose(1, 2, 0)"
        )
    allowed = (
        "bool",
        "uint8",
        "uint16",
        "uint32",
        "int16",
        "int32",
        "float16",
        "float32",
        "float64",
    )
    if array.dtype.name not in allowed:
        raise ImageError(
            f"an array of {array.dtype.name} has no known white: allowed {', '.join(allowed)}; if "
            "its values are 0…255, pass array.astype('uint8')"
        )
    array = array.reshape(*array.shape[:2], channels)
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if channels == 1 else array))
    colour = array[:, :, :3] if channels > 2 else array[:, :, 0]
    return Samples(colour, array[:, :, -1] if channels in (2, 4) else None)


def turned(array: AnyArray, orientation: int) -> AnyArray:
    """Stored rows and columns → upright ones, for an EXIF orientation of 1…8."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _colours(image: Image.Image) -> Image.Image:
    bands = image.split()[:-1]
    return Image.merge("RGB", bands if len(bands) == 3 else bands * 3)


def _render(samples: Samples) -> tuple[Image.Image, Alpha | None, Notes]:
    scale = _scale(samples.colour, samples.bits)
    alpha = None if samples.alpha is None else _as_alpha(samples.alpha, samples.bits)
    if alpha is not None and alpha.min() == np.iinfo(alpha.dtype).max:
        alpha = None
    straight = alpha is not None and not samples.premultiplied
    opacity = samples.alpha if straight else None
    opacity_scale = scale if opacity is None else _alpha_scale(opacity, samples.bits)
    out = np.empty(samples.colour.shape, np.uint8)
    for rows in _strips(out.shape):
        unit = _unit(samples.colour[rows], scale)
        if opacity is not None:
            part = _unit(opacity[rows], opacity_scale)
            unit *= part if unit.ndim == 2 else part[:, :, None]
        unit *= 255
        out[rows] = np.rint(unit, out=unit)
    image = Image.fromarray(out)
    return (image if image.mode == "RGB" else image.convert("RGB")), alpha, scale.notes


def _as_alpha(values: AnyArray, bits: int | None = None) -> Alpha:
    """8 and 16 bits as they are, bool as 8, the rest as 16, where all above 0 stays above 0."""
    if values.dtype == np.uint8 or (values.dtype == np.uint16 and bits is None):
        return np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    scale = _alpha_scale(values, bits)
    out = np.empty(values.shape, np.uint16)
    for rows in _strips(values.shape):
        unit = _unit(values[rows], scale)
        out[rows] = np.maximum(np.rint(unit * 65535), unit > 0)
    return out


def _grey(colour: AnyArray) -> AnyArray:
    if colour.ndim == 2:
        return colour
    grey = np.empty(colour.shape[:2], colour.dtype)
    whole = colour.dtype.kind in "ui"
    for rows in _strips(grey.shape):
        luma = colour[rows].astype(np.float64) @ np.array(LUMA)
        grey[rows] = np.rint(luma) if whole else luma
    return grey


def _scale(values: AnyArray, bits: int | None = None) -> Scale:
    if values.dtype.kind == "f":
        return _float_scale(float(values.min()), float(values.max()))
    if values.dtype.kind == "b":
        return Scale(0, 1)
    low, high = int(values.min()), int(values.max())
    if bits is not None:
        white = (1 << bits) - 1
    elif values.dtype.itemsize == 4 and high < 65536:
        white = 65535
    else:
        white = int(np.iinfo(values.dtype).max)
    return Scale(0, white, (f"values down to {low}, below 0 are black",) if low < 0 else ())


def _float_scale(low: float, high: float) -> Scale:
    if not math.isfinite(high - low):  # NaN and the infinities all end here
        raise ImageError(
            "holds NaN, infinite or immeasurably far values: no grey can be given to them"
        )
    if low >= 0 and high <= 1:
        return Scale(0, 1)
    if low >= 0 and high <= 255:
        return Scale(0, 255)
    note = f"float values {low:g} to {high:g} stretched to black and white"
    return Scale(low, (high - low) or 1, (note,))


def _alpha_scale(values: AnyArray, bits: int | None) -> Scale:
    scale = _scale(values, bits)
    if scale.notes and values.dtype.kind == "f":  # stretching alpha would invent transparency
        raise ImageError(
            f"its alpha or mask runs from {values.min():g} to {values.max():g}: allowed are floats "
            "in [0, 1] or [0, 255], and integers"
        )
    return scale


def _unit(values: AnyArray, scale: Scale) -> NDArray[np.float64]:
    unit = values.astype(np.float64)
    unit -= scale.black
    unit /= scale.span
    return np.clip(unit, 0, 1, out=unit)


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    height, width = shape[:2]
    rows = max(1, STRIP // width)
    return (slice(top, top + rows) for top in range(0, height, rows))
