"""Position embeddings of clip's and open_clip's towers at any grid; clip's reduced precision."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

GRIDS_KEPT = 8  # --resize keep meets any number of grids, of up to 64 MB each


class Positions:
    """Those of the grids met last, resampled once each, as transformers' CLIP does.

    CLIPVisionEmbeddings.interpolate_pos_encoding in models/clip/modeling_clip.py: bicubic,
    align_corners=False, no antialiasing, the first row as it is. openai/CLIP has no interpolation.
    """

    def __init__(self) -> None:
        self.grids: dict[tuple[int, int], Tensor] = {}

    def at(self, grid: tuple[int, int], native: Tensor) -> Tensor:
        """`native` (1 + side², C) → (1 + rows·columns, C)."""
        if grid not in self.grids:
            if len(self.grids) == GRIDS_KEPT:
                self.grids.pop(next(iter(self.grids)))
            side = math.isqrt(len(native) - 1)
            self.grids[grid] = resample(native, (side, side), grid, antialias=False)
        return self.grids[grid]


def resample(
    positions: Tensor, native: tuple[int, int], grid: tuple[int, int], *, antialias: bool
) -> Tensor:
    """([1,] P + cells, C) for another grid: bicubic, align_corners=False, the P prefix rows kept.

    Without antialiasing it is what transformers' CLIP and SigLIP do, with it open_clip and timm.
    """
    import torch
    from torch.nn.functional import interpolate

    if grid == native:
        return positions
    prefix = positions.shape[-2] - math.prod(native)
    kept, cells = positions[..., :prefix, :], positions[..., prefix:, :]
    square = cells.mT.reshape(1, -1, *native).float()
    resampled = interpolate(
        square, size=grid, mode="bicubic", align_corners=False, antialias=antialias
    )
    rows = resampled.flatten(2).mT.to(positions.dtype)
    return torch.cat((kept, rows.reshape(*cells.shape[:-2], -1, cells.shape[-1])), dim=-2)


def cast(visual: nn.Module, dtype: Any) -> None:
    """To compute precision as clip's convert_weights: norms and embeddings stay float32."""
    from torch import nn

    for module in visual.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            module.to(dtype)
    proj: Any = getattr(visual, "proj", None)
    if proj is not None:
        proj.data = proj.data.to(dtype)
