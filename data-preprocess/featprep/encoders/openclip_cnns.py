"""open_clip's CNNs: timm's ConvNeXt, FastViT and ResNet, and its own ResNet. Layers are stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import Want
from featprep.encoders.openclip_base import Tower, through_head
from featprep.encoders.openclip_shapes import Shape
from featprep.encoders.positions import Grid, PositionCache, call_with, of_square

if TYPE_CHECKING:
    from torch import Tensor, nn


class ConvTower(Tower):
    """Its grid is what its layers make of a size, asked of a twin without values."""

    layout = "NCHW"

    def __init__(self, visual: nn.Module, twin: nn.Module, shape: Shape) -> None:
        super().__init__(visual, shape)
        self._twin: Any = twin.eval()
        self._cells: dict[tuple[int, int], list[tuple[int, int]]] = {}

    @property
    def blocks(self) -> Sequence[nn.Module]:
        trunk = self.visual.trunk
        stages: Sequence[nn.Module] = (
            trunk.stages
            if hasattr(trunk, "stages")
            else [trunk.act1, trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]
        )
        return stages

    def cells(self, height: int, width: int, layer: int) -> tuple[int, int]:
        if (height, width) not in self._cells:
            self._cells[height, width] = self._measure(height, width)
        return self._cells[height, width][layer]

    def _measure(self, height: int, width: int) -> list[tuple[int, int]]:
        import torch

        stages = range(self.first, self.first + self.shape.depth)
        with torch.inference_mode():
            out = self._twin.forward_intermediates(
                torch.empty(1, 3, height, width, device="meta"),
                indices=list(stages),
                intermediates_only=True,
            )
        return [(one.shape[-2], one.shape[-1]) for one in out["image_intermediates"]]

    def take(self, pixels: Tensor, want: Want) -> tuple[dict[int, Any], Tensor | None]:
        return super().take(pixels, replace(want, feature="patch"))  # there is no attention to hear

    def tokens_of(self, output: Any) -> Tensor:
        tokens: Tensor = output.flatten(2).mT
        return tokens

    def norm(self, tokens: Tensor) -> Tensor:
        """ConvNeXt's, which is over channels: its head puts it on the mean of the cells."""
        normed: Tensor = self.visual.trunk.head.norm(tokens.mT[..., None])
        return normed[..., 0].mT

    def project(self, tokens: Tensor) -> Tensor:
        return through_head(self.visual, tokens.flatten(0, 1)[..., None, None], len(tokens))


class OwnResNet(ConvTower):
    """Projected through the value path of its attention pooling, without position embedding.

    Off the native size it pools with position embeddings resampled as transformers' CLIP does:
    open_clip has no interpolation of them.
    """

    first = 1  # the stem is a stage of its own there
    stop_early = False  # whose meaning is turned round in open_clip's ModifiedResNet

    def __init__(self, visual: nn.Module, twin: nn.Module, shape: Shape) -> None:
        super().__init__(visual, twin, shape)
        self._positions = PositionCache(self._resampled)

    def _resampled(self, grid: Grid) -> Tensor:
        return of_square(self.visual.attnpool.positional_embedding, grid)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        visual = self.visual
        return [visual.layer1, visual.layer2, visual.layer3, visual.layer4]

    def run(self, pixels: Tensor, want: Want) -> Tensor | None:
        last = self.shape.depth - 1 if want.pooled else max(want.layers)
        cells, pool = self.intermediates(pixels, last), self.visual.attnpool
        if not want.pooled:
            return None
        rows, columns = cells.shape[-2:]
        positions = self._positions.at((rows, columns))
        pooled: Tensor = call_with(pool, "positional_embedding", positions, cells)
        return pooled

    def project(self, tokens: Tensor) -> Tensor:
        pool = self.visual.attnpool
        projected: Tensor = pool.c_proj(pool.v_proj(tokens))
        return projected
