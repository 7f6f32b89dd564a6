"""`--grid`: an encoder whose maps, of every layer and every input size, have one grid.

A wrapped encoder is an encoder; knows no file. Vectors pass through. The resampled cell (i, j)
stands for its share of the network's cells: masks.py takes the same share.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from featprep.encoders.base import Encoder, Want
from featprep.encoders.sizes import Size
from featprep.encoders.torch_encoder import is_out_of_memory
from featprep.errors import OutOfMemoryError
from featprep.records import AnyArray, FeatureMaps, UInt8


class RegriddedEncoder:
    """`inner`, its maps resampled in float32 to `cells` before they are cast to what is stored."""

    def __init__(self, inner: Encoder, cells: Size) -> None:
        self.inner, self.cells = inner, cells
        self.spec, self.digest, self.origin = inner.spec, inner.digest, inner.origin
        self.weights_files = inner.weights_files

    def grid(self, height: int, width: int, layer: int = -1) -> Size:
        self.inner.grid(height, width, layer)  # refuses what the network cannot take
        return self.cells

    def tokens(self, height: int, width: int) -> tuple[int, int]:
        return self.inner.tokens(height, width)

    def compile(self, want: Want) -> None:
        self.inner.compile(want)

    def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
        found = self.inner.encode(pixels, replace(want, dtype="float32"))
        try:
            maps = {n: _cast(resample(map, self.cells), want) for n, map in found.maps.items()}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return replace(
                found,
                maps=maps,
                prefix=None if found.prefix is None else _cast(found.prefix, want),
                pooled=None if found.pooled is None else _cast(found.pooled, want),
                finite=None,  # it was seen in float32
            )
        raise OutOfMemoryError(f"no room for {len(pixels)} maps of {self.cells} cells")


def resample(maps: AnyArray, cells: Size) -> AnyArray:
    """(B, C, gh, gw) float32 → (B, C, *cells): torch's interpolate, bilinear, align_corners=False.

    Without antialiasing: a much coarser grid takes the values at its cells' centres, no means.
    """
    import torch
    from torch.nn import functional

    with torch.inference_mode():
        resampled = functional.interpolate(
            torch.from_numpy(maps), size=cells, mode="bilinear", align_corners=False
        )
    array: AnyArray = resampled.numpy()
    return array


def _cast(array: AnyArray, want: Want) -> AnyArray:
    with np.errstate(over="ignore"):  # what overflows float16 comes back as inf
        return array.astype(want.dtype, copy=False)
