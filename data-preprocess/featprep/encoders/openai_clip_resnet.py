"""OpenAI CLIP's ResNets: their stages, and what lies beyond them, the attention pooling.

The pooling is taken off clip's own module, so that a map of any size is never pooled in vain.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import EncoderSpec, LoadOptions, Want
from featprep.encoders.clip_precision import cast
from featprep.encoders.positions import Grid, PositionCache, call_with, of_square
from featprep.encoders.taps import run_and_take
from featprep.encoders.torch_encoder import Taken, TorchEncoder, place
from featprep.encoders.weights import Found

if TYPE_CHECKING:
    from torch import Tensor


class OpenAIResNetEncoder(TorchEncoder):
    """`visual` is clip's ModifiedResNet, whose last stage is the map; `pool` its AttentionPool2d.

    `projected` and `value` are one formula: c_proj(v_proj(x)) of each cell without its position
    embedding, MaskCLIP's reading.
    """

    def __init__(
        self, spec: EncoderSpec, visual: Any, options: LoadOptions, digest: str, found: Found
    ) -> None:
        super().__init__(spec, visual.conv1, options, digest, found)
        from torch import nn

        cast(visual, self._compute)
        pool, visual.attnpool = visual.attnpool, nn.Identity()
        self.pool: Any = place(pool, spec, options.device)
        self.visual: Any = place(visual, spec, options.device)
        self._positions = PositionCache(self._resampled)

    def _resampled(self, grid: Grid) -> Tensor:
        return of_square(self.pool.positional_embedding, grid)

    def _cells(self, height: int, width: int, layer: int) -> tuple[int, int]:
        # The first convolution pads, so an odd row counts; every average pooling leaves it out.
        stride = self.spec.stages[layer].stride
        rows, columns = ((side + 1) // 2 // (stride // 2) for side in (height, width))
        return rows, columns

    def _take(self, pixels: Tensor, want: Want) -> Taken:
        visual = self.visual
        stages = [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
        outputs, last = run_and_take(lambda: visual(pixels), stages, replace(want, feature="patch"))
        layers = {layer: outputs[layer].flatten(2).mT for layer in want.layers}
        if want.feature != "patch":
            layers = {layer: self._project(cells) for layer, cells in layers.items()}
        return Taken(layers, self._pool(last) if want.pooled else None)

    def _project(self, cells: Tensor) -> Tensor:
        projected: Tensor = self.pool.c_proj(self.pool.v_proj(cells))
        return projected

    def _pool(self, cells: Tensor) -> Tensor:
        """What encode_image gives, (B, D), of (B, C, rows, columns)."""
        rows, columns = cells.shape[-2:]
        positions = self._positions.at((rows, columns))
        image: Tensor = call_with(self.pool, "positional_embedding", positions, cells)
        return image
