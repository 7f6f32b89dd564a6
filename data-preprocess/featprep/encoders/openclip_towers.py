"""The kinds of open_clip's visual towers: its own ViT and ResNet, timm's ViTs and CNNs.

Each gives the cells of its last block at any size, through its public forward_intermediates. Knows
no checkpoint and no normalisation of pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import PosEmbed
from featprep.encoders.openclip_cards import Shape
from featprep.encoders.positions import Grid, PositionCache, resample_positions

if TYPE_CHECKING:
    from torch import Tensor, nn


class Tower(ABC):
    """`prefix`: tokens before the cells. `fixed_size`: its windows allow no other size."""

    prefix = 0
    fixed_size = False

    def __init__(self, visual: nn.Module, shape: Shape) -> None:
        self.visual: Any = visual
        self.shape = shape

    @abstractmethod
    def cells(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of an input of this size."""

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Each cell through the head as if it were the pooled one: (B, N, C) → (B, N, D)."""

    def tokens(self, pixels: Tensor, norm: bool) -> Tensor:
        """Normalised pixels → cells of the last block (B, N, C), after the final norm or not."""
        out = self.visual.forward_intermediates(
            pixels,
            indices=[self.shape.depth - 1],
            normalize_intermediates=norm,
            intermediates_only=True,  # the heads of ResNets refuse other sizes
            output_fmt="NLC",
        )
        cells: Tensor = out["image_intermediates"][-1]
        return cells


class PositionedTower(Tower):
    """One with position embeddings, which are resampled for each grid and swapped in."""

    def __init__(self, visual: nn.Module, shape: Shape, convention: PosEmbed) -> None:
        super().__init__(visual, shape)
        self._antialias = convention == "hub"  # as open_clip's resize_pos_embed and timm's
        self._native_grid = self.cells(shape.side, shape.side)
        self._grid = self._native_grid
        self._positions = PositionCache(self._resampled)
        self._native: Tensor = self.positions.detach().clone()  # float32, before any cast

    @property
    @abstractmethod
    def positions(self) -> nn.Parameter:
        """The position embeddings in use, ([1,] prefix + cells, C)."""

    def tokens(self, pixels: Tensor, norm: bool) -> Tensor:
        height, width = pixels.shape[-2:]
        grid = self.cells(height, width)
        if grid != self._grid:
            self._use(grid, height, width)
        return super().tokens(pixels, norm)

    def _use(self, grid: tuple[int, int], height: int, width: int) -> None:
        import torch

        # The module keeps them beyond this forward pass, so they are no inference tensors.
        with torch.inference_mode(False), torch.no_grad():
            positions = self._positions.at(grid)
            self._grid = grid
            self._resize(height, width)
            self.positions.data = positions

    def _resampled(self, grid: Grid) -> Tensor:
        return resample_positions(
            self._native, self._native_grid, grid, antialias=self._antialias
        ).to(self.positions)

    def _resize(self, height: int, width: int) -> None:
        """Tell the module of the size, where it has to know."""


class OwnViT(PositionedTower):
    prefix = 1

    @property
    def positions(self) -> nn.Parameter:
        positions: nn.Parameter = self.visual.positional_embedding
        return positions

    def cells(self, height: int, width: int) -> tuple[int, int]:
        patch_height, patch_width = self.visual.patch_size
        return height // patch_height, width // patch_width

    def project(self, tokens: Tensor) -> Tensor:
        projected: Tensor = tokens @ self.visual.proj
        return projected


class TimmViT(PositionedTower):
    """Also EVA and PE, whose rotary embeddings timm makes anew for each size."""

    def __init__(self, visual: Any, shape: Shape, convention: PosEmbed) -> None:
        self.prefix = visual.trunk.num_prefix_tokens
        super().__init__(visual, shape, convention)

    @property
    def positions(self) -> nn.Parameter:
        positions: nn.Parameter = self.visual.trunk.pos_embed
        return positions

    def cells(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = self.visual.trunk.patch_embed.dynamic_feat_size((height, width))
        return rows, columns

    def _resize(self, height: int, width: int) -> None:
        self.visual.set_input_size((height, width))

    def project(self, tokens: Tensor) -> Tensor:
        return _token_head(self.visual, tokens)


class UnpositionedViT(Tower):
    """timm's ViTs without position embeddings, such as ViTamin-XL: nothing to resample."""

    def cells(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = self.visual.trunk.patch_embed.dynamic_feat_size((height, width))
        return rows, columns

    def tokens(self, pixels: Tensor, norm: bool) -> Tensor:
        self.visual.set_input_size(tuple(pixels.shape[-2:]))
        return super().tokens(pixels, norm)

    def project(self, tokens: Tensor) -> Tensor:
        return _token_head(self.visual, tokens)


class ConvTower(Tower):
    """A CNN: its grid is what its layers make of a size, asked of a twin without values."""

    def __init__(self, visual: nn.Module, twin: nn.Module, shape: Shape) -> None:
        super().__init__(visual, shape)
        self._twin: Any = twin.eval()
        self._cells: dict[tuple[int, int], tuple[int, int]] = {}

    def cells(self, height: int, width: int) -> tuple[int, int]:
        import torch

        if (height, width) not in self._cells:
            blank = torch.empty(1, 3, height, width, device="meta")
            with torch.inference_mode():
                rows, columns = _last_stage(self._twin, blank, self.shape.depth).shape[-2:]
            self._cells[height, width] = rows, columns
        return self._cells[height, width]

    def tokens(self, pixels: Tensor, norm: bool) -> Tensor:
        return _last_stage(self.visual, pixels, self.shape.depth).flatten(2).mT

    def project(self, tokens: Tensor) -> Tensor:
        return _through_head(self.visual, tokens.flatten(0, 1)[..., None, None], len(tokens))


class OwnResNet(ConvTower):
    """Projected through the value path of its attention pooling, without position embedding."""

    def project(self, tokens: Tensor) -> Tensor:
        pool = self.visual.attnpool
        projected: Tensor = pool.c_proj(pool.v_proj(tokens))
        return projected


class FixedTower(Tower):
    """Swin and other trunks whose windows or biases are made for one size; never projected."""

    fixed_size = True

    def cells(self, height: int, width: int) -> tuple[int, int]:
        return height // self.shape.patch, width // self.shape.patch

    def tokens(self, pixels: Tensor, norm: bool) -> Tensor:
        return _last_stage(self.visual, pixels, self.shape.depth).flatten(2).mT

    def project(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError("its spec has no projection")


def module_shape(visual: Any) -> Shape:
    """The shape of a tower that was built: what its modules say."""
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        last = trunk.feature_info[-1]
        own = getattr(getattr(trunk, "patch_embed", None), "img_size", None) or visual.image_size
        return Shape(last["reduction"], last["num_chs"], len(trunk.feature_info), own[0])
    if hasattr(visual, "attnpool"):
        return Shape(32, visual.attnpool.c_proj.in_features, 4, visual.image_size)
    return Shape(
        visual.patch_size[0],
        visual.conv1.out_channels,
        len(visual.transformer.resblocks),
        visual.image_size[0],
    )


def make_tower(visual: Any, blank: Any, convention: PosEmbed) -> Tower:
    """`visual` with its weights, `blank` the same on the meta device."""
    shape = module_shape(visual)
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        if hasattr(visual, "attnpool"):
            return OwnResNet(visual, blank, shape)
        return OwnViT(visual, shape, convention)
    kind = type(trunk).__name__
    if kind in ("ConvNeXt", "FastVit", "ResNet"):
        return ConvTower(visual, blank, shape)
    if kind not in ("VisionTransformer", "Eva"):
        return FixedTower(visual, shape)
    if trunk.pos_embed is None:
        return UnpositionedViT(visual, shape)
    return TimmViT(visual, shape, convention)


def _last_stage(visual: Any, pixels: Tensor, depth: int) -> Tensor:
    """(B, C, rows, columns). ResNets count their stem as a stage of its own, before the others."""
    stage = depth if hasattr(visual, "attnpool") else depth - 1
    out = visual.forward_intermediates(pixels, indices=[stage], intermediates_only=True)
    stages: Tensor = out["image_intermediates"][-1]
    return stages


def _token_head(visual: Any, tokens: Tensor) -> Tensor:
    # Heads pool the first token, or the mean of those after the prefix: here both are the cell.
    rows = tokens.flatten(0, 1).unsqueeze(1).expand(-1, 1 + visual.trunk.num_prefix_tokens, -1)
    return _through_head(visual, rows, len(tokens))


def _through_head(visual: Any, cells: Tensor, batch: int) -> Tensor:
    """Each cell as the one cell of an image of its own → (B, N, D)."""
    projected: Tensor = visual.head(visual.trunk.forward_head(cells))
    return projected.reshape(batch, -1, projected.shape[-1])
