"""open_clip's transformers: its own and timm's, whose position embeddings follow the grid."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import PosEmbed, Want
from featprep.encoders.openclip_base import Tower, through_head
from featprep.encoders.openclip_shapes import Shape
from featprep.encoders.positions import Grid, PositionCache, resample

if TYPE_CHECKING:
    from torch import Tensor, nn


class PositionedTower(Tower):
    """One with position embeddings, which are resampled for each grid and swapped in."""

    def __init__(self, visual: nn.Module, shape: Shape, convention: PosEmbed) -> None:
        super().__init__(visual, shape)
        self._antialias = convention == "hub"  # as open_clip's resize_pos_embed and timm's
        self._native_grid = self.cells(shape.side, shape.side, 0)
        self._grid = self._native_grid
        self._positions = PositionCache(self._resampled)
        self._native: Tensor = self.positions.detach().clone()  # float32, before any cast

    @property
    @abstractmethod
    def positions(self) -> nn.Parameter:
        """The position embeddings in use, ([1,] prefix + cells, C)."""

    def run(self, pixels: Tensor, want: Want) -> Tensor | None:
        height, width = pixels.shape[-2:]
        grid = self.cells(height, width, 0)
        if grid != self._grid:
            self._use(grid, height, width)
        return super().run(pixels, want)

    def _use(self, grid: tuple[int, int], height: int, width: int) -> None:
        import torch

        # The module keeps them beyond this forward pass, so they are no inference tensors.
        with torch.inference_mode(False), torch.no_grad():
            positions = self._positions.at(grid)
            self._grid = grid
            self._resize(height, width)
            self.positions.data = positions

    def _resampled(self, grid: Grid) -> Tensor:
        return resample(self._native, self._native_grid, grid, antialias=self._antialias).to(
            self.positions
        )

    def _resize(self, height: int, width: int) -> None:
        """Tell the module of the size, where it has to know."""


class OwnViT(PositionedTower):
    @property
    def positions(self) -> nn.Parameter:
        positions: nn.Parameter = self.visual.positional_embedding
        return positions

    @property
    def blocks(self) -> Sequence[nn.Module]:
        blocks: Sequence[nn.Module] = self.visual.transformer.resblocks
        return blocks

    def cells(self, height: int, width: int, layer: int) -> tuple[int, int]:
        patch_height, patch_width = self.visual.patch_size
        return height // patch_height, width // patch_width

    def norm(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.visual.ln_post(tokens)
        return normed

    def project(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.norm(tokens) @ self.visual.proj
        return projected


class _OfTimm(Tower):
    @property
    def blocks(self) -> Sequence[nn.Module]:
        blocks: Sequence[nn.Module] = self.visual.trunk.blocks
        return blocks

    def cells(self, height: int, width: int, layer: int) -> tuple[int, int]:
        rows, columns = self.visual.trunk.patch_embed.dynamic_feat_size((height, width))
        return rows, columns

    def norm(self, tokens: Tensor) -> Tensor:
        # One of the two is none at all: trunks that average the tokens norm their mean.
        normed: Tensor = self.visual.trunk.fc_norm(self.visual.trunk.norm(tokens))
        return normed

    def project(self, tokens: Tensor) -> Tensor:
        trunk = self.visual.trunk
        # Heads pool the first token, or the mean of those after the prefix: here both are the cell.
        rows = trunk.norm(tokens).flatten(0, 1).unsqueeze(1)
        rows = rows.expand(-1, 1 + trunk.num_prefix_tokens, -1)
        return through_head(self.visual, rows, len(tokens))


class TimmViT(_OfTimm, PositionedTower):
    """Also EVA and PE, whose rotary embeddings timm makes anew for each size."""

    @property
    def positions(self) -> nn.Parameter:
        positions: nn.Parameter = self.visual.trunk.pos_embed
        return positions

    def _resize(self, height: int, width: int) -> None:
        self.visual.set_input_size((height, width))


class UnpositionedViT(_OfTimm):
    """timm's ViTs without position embeddings, such as ViTamin-XL: nothing to resample."""

    def run(self, pixels: Tensor, want: Want) -> Tensor | None:
        self.visual.set_input_size(tuple(pixels.shape[-2:]))
        return super().run(pixels, want)


class FixedTower(Tower):
    """Swin and other trunks whose windows or biases are made for one size: the last block alone,
    never projected."""

    fixed_size = True
    layout = "NCHW"  # of Swin, the only one

    @property
    def blocks(self) -> Sequence[nn.Module]:
        raise NotImplementedError("forward_intermediates alone knows the layers of such a trunk")

    def take(self, pixels: Tensor, want: Want) -> tuple[dict[int, Any], Tensor | None]:
        out = self.visual.forward_intermediates(
            pixels,
            indices=[self.shape.depth - 1],
            intermediates_only=not want.pooled,
            output_fmt=self.layout,
        )
        return {self.shape.depth - 1: out["image_intermediates"][-1]}, out.get("image_features")

    def tokens_of(self, output: Any) -> Tensor:
        tokens: Tensor = output.flatten(2).mT
        return tokens

    def cells(self, height: int, width: int, layer: int) -> tuple[int, int]:
        return height // self.shape.patch, width // self.shape.patch

    def norm(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError("specs of such trunks offer no norm")

    def project(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError("specs of such trunks offer no projection")
