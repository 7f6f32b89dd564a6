"""Position embeddings for another grid than the checkpoint's own. Knows no architecture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Grid = tuple[int, int]
_KEPT = 8  # --resize keep meets any number of grids, of up to 64 MB each


class PositionCache:
    """What `make(grid, …)` gave for the grids met last. Threads may share it, each on a stream of
    its own."""

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self._make = make
        self.grids: dict[Grid, Tensor] = {}

    def at(self, grid: Grid, *given: object) -> Tensor:
        found = self.grids.get(grid)
        if found is None:
            found = self._make(grid, *given)
            _settle(found)
            while len(self.grids) >= _KEPT:
                self.grids.pop(next(iter(self.grids)), None)
            self.grids[grid] = found
        return found


def _settle(made: Tensor) -> None:
    """On CUDA, wait until it is there: who reads it next may do so on another stream."""
    import torch

    if made.is_cuda:
        torch.cuda.current_stream(made.device).synchronize()


def keep_positions(network: nn.Module) -> None:
    """Have modules that interpolate their positions at every forward pass do it once for a size.

    Of transformers' models: interpolate_pos_encoding(tokens, height, width) depends on no value of
    `tokens`. On an H200 it took 5 % of DINOv2-large's time at 224, in batches of 128.
    """
    for module in network.modules():
        if callable(getattr(module, "interpolate_pos_encoding", None)):
            _keep_positions(module)


def _keep_positions(embeddings: Any) -> None:
    interpolate = embeddings.interpolate_pos_encoding
    cache = PositionCache(lambda size, tokens: interpolate(tokens, *size))
    embeddings.interpolate_pos_encoding = lambda tokens, height, width: cache.at(
        (height, width), tokens
    )


def call_with(module: nn.Module, name: str, positions: Tensor, *given: object) -> Any:
    """`module(*given)` with `positions` in the place of its parameter of this name.

    To swap one looks at every parameter there is, 4 % of a small network's time: not where they
    are the module's own, as at the native size.
    """
    from torch.func import functional_call

    if positions is module.get_parameter(name):
        return module(*given)
    return functional_call(module, {name: positions}, given)


def of_square(positions: Tensor, grid: Grid) -> Tensor:
    """`resample` of (1 + side², C), as clip has them."""
    side = math.isqrt(len(positions) - 1)
    return resample(positions, (side, side), grid)


def resample(positions: Tensor, native: Grid, grid: Grid, *, antialias: bool = False) -> Tensor:
    """([1,] P + native cells, C) → ([1,] P + cells of grid, C), the P prefix rows as they are.

    Bicubic, align_corners=False. Without antialiasing it is interpolate_pos_encoding of
    transformers' models/{clip,siglip,vit}; with it, what open_clip and timm do. torchvision's
    interpolate_embeddings aligns corners, and openai/CLIP has none.
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
