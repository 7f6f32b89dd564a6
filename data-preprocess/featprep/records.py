"""The plain data that travels through the pipeline. No behaviour beyond what the fields imply.

ImageRef (sources) → Picture (images) → Prepared | Failure (decoding) → Batch (batching)
→ FeatureMaps (encoders) → Features (batching) → Result (recording → stores). Everything that
crosses a process is picklable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
AnyArray = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image of the input, before a byte of it is read."""

    key: str  # output name below OUT, "/"-separated; undecodable bytes as surrogates
    source: str  # path below the input with its suffix, "/"-separated
    path: str  # what to open
    size: int  # bytes; -1 if it could not be stat'ed
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image: upright, premultiplied.

    `rgb`: PIL "RGB", each channel already multiplied by alpha. `alpha`: (H, W) uint8 or uint16, as
    deep as the file has it, or None for an opaque image. `stored_size`: (height, width) in the
    file, before orientation. `orientation`: EXIF 1…8. `mode`: the file's own, such as "PNG RGBA
    16-bit". `reduced`: how many pixels of either side its decoder made one of (--fast_decode), or
    None where it was not asked; then `rgb` ends within its last pixels, and has no alpha.
    """

    rgb: Image.Image
    alpha: NDArray[np.uint8] | NDArray[np.uint16] | None
    stored_size: tuple[int, int]
    orientation: int
    mode: str
    notes: tuple[str, ...] = ()
    reduced: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright source."""
        height, width = self.stored_size
        return (width, height) if self.orientation in (5, 6, 7, 8) else (height, width)


@dataclass(frozen=True, slots=True)
class Failure:
    """One image that could not be done. `stage`: list, read, decode, mask, encode or store."""

    key: str
    source: str
    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image as a decoding worker hands it over: what the network sees, and its mask."""

    ref: ImageRef
    pixels: UInt8  # (3, H, W)
    mask: AnyArray | None  # (grid_h, grid_w) uint8, or float32 coverage; None with --mask none
    sha256: str  # of the source file
    meta: Mapping[
        str, Any
    ]  # original size, orientation, affine, notes: the image's part of NAME.json
    read_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True, repr=False)
class FeatureMaps:
    """What an encoder returns for a batch, on the host.

    `maps`: layer → (B, C, grid_h, grid_w), float32 or float16, layer counted from 0. `prefix`:
    (B, P, C), CLS first, then registers, or None. `pooled`: (B, D) or None. `masks` and `masked`
    are filled by `featprep.encode` alone: (B, grid_h, grid_w), and layer → (B, C), the mean over
    the cells weighted by the mask. `finite`: (B,) bool, whether all of an image's numbers are,
    where the device has looked.
    """

    maps: Mapping[int, AnyArray]
    prefix: AnyArray | None = None
    pooled: AnyArray | None = None
    masks: AnyArray | None = None
    masked: Mapping[int, AnyArray] | None = None
    finite: AnyArray | None = None

    @property
    def map(self) -> AnyArray:
        """The map of the first layer asked for, (B, C, grid_h, grid_w)."""
        return next(iter(self.maps.values()))

    def __repr__(self) -> str:
        more = {"prefix": self.prefix, "pooled": self.pooled, "masks": self.masks}
        arrays = {f"map {layer}": array for layer, array in self.maps.items()}
        arrays |= {name: array for name, array in more.items() if array is not None}
        arrays |= {f"masked {layer}": array for layer, array in (self.masked or {}).items()}
        texts = [f"{name} {array.shape} {array.dtype}" for name, array in arrays.items()]
        return f"<FeatureMaps: {', '.join(texts)}>"


@dataclass(frozen=True, slots=True)
class Features:
    """What was taken from one image, all of the storage dtype but for `empty`.

    `maps`: layer, counted from 0 → (C, grid_h, grid_w), the first asked for first. `vectors`: as
    NAME_vec.npz has them: prefix (P, C), pooled (D,), masked (C,) and masked@L, empty ().
    """

    maps: Mapping[int, AnyArray]
    vectors: Mapping[str, AnyArray] = field(default_factory=dict)

    @property
    def map(self) -> AnyArray:
        return next(iter(self.maps.values()))


@dataclass(frozen=True, slots=True)
class Result:
    """One finished image on its way to the store."""

    ref: ImageRef
    features: Features
    mask: AnyArray | None
    sha256: str
    meta: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())
