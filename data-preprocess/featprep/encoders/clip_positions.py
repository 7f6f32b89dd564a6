"""Position embeddings of clip's modules at any grid, and its rule of reduced precision."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_GRIDS_KEPT = 8  # --resize keep meets any number of grids, of up to 64 MB each


class Positions:
    """Those of the grids met last, resampled once each."""

    def __init__(self) -> None:
        self.grids: dict[tuple[int, int], Tensor] = {}

    def at(self, grid: tuple[int, int], native: Tensor) -> Tensor:
        if grid not in self.grids:
            if len(self.grids) == _GRIDS_KEPT:
                self.grids.pop(next(iter(self.grids)))
            self.grids[grid] = resample_positions(native, grid)
        return self.grids[grid]


def resample_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1 + side², C) → (1 + rows·columns, C), as transformers' CLIP does.

    CLIPVisionEmbeddings.interpolate_pos_encoding in models/clip/modeling_clip.py: bicubic,
    align_corners=False, no antialiasing, the first row as it is. openai/CLIP has no interpolation.
    """
    import torch
    from torch.nn.functional import interpolate

    side = math.isqrt(len(positions) - 1)
    if grid == (side, side):
        return positions
    square = positions[1:].T.reshape(1, -1, side, side).float()
    resampled = interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return torch.cat((positions[:1], resampled[0].flatten(1).T.to(positions.dtype)))


def cast(visual: nn.Module, dtype: Any) -> None:
    """To compute precision as clip's convert_weights: norms and embeddings stay float32."""
    from torch import nn

    for module in visual.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            module.to(dtype)
    proj: Any = getattr(visual, "proj", None)
    if proj is not None:
        proj.data = proj.data.to(dtype)
