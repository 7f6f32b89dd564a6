"""What every visual tower of open_clip does alike: it runs, and its blocks are listened to.

Knows no checkpoint and no normalisation of pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import Want
from featprep.encoders.openclip_shapes import Shape
from featprep.encoders.taps import run_and_take

if TYPE_CHECKING:
    from torch import Tensor, nn


class Tower(ABC):
    """`fixed_size`: its windows allow no other size. `first`, `layout`, `stop_early`: of its
    forward_intermediates: what it counts before the first layer, the order of what it returns, and
    what has it run nothing beyond the last layer that is asked."""

    fixed_size = False
    first = 0
    layout = "NLC"
    stop_early = True

    def __init__(self, visual: nn.Module, shape: Shape) -> None:
        self.visual: Any = visual
        self.shape = shape

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The modules that layers are counted by."""

    @abstractmethod
    def cells(self, height: int, width: int, layer: int) -> tuple[int, int]:
        """(rows, columns) of an input of this size, at a layer counted from 0."""

    def take(self, pixels: Tensor, want: Want) -> tuple[dict[int, Any], Tensor | None]:
        """(layer → what its block, or its attention, gave; the pooled vector if it is wanted)."""
        return run_and_take(lambda: self.run(pixels, want), self.blocks, want)

    def run(self, pixels: Tensor, want: Want) -> Tensor | None:
        """A forward pass as far as is wanted; the pooled vector, as encode_image has it, if it is.

        The blocks are heard by hooks: forward_intermediates gives neither attentions nor, of every
        kind, the tokens before the cells.
        """
        if want.pooled:
            result = self.visual(pixels)
            pooled: Tensor = result[0] if isinstance(result, tuple) else result  # CoCa's has tokens
            return pooled
        self.intermediates(pixels, max(want.layers))
        return None

    def intermediates(self, pixels: Tensor, layer: int) -> Tensor:
        """What a layer gives, and nothing is run beyond it: heads may refuse other sizes."""
        out = self.visual.forward_intermediates(
            pixels,
            indices=[self.first + layer],
            stop_early=self.stop_early,
            intermediates_only=True,
            output_fmt=self.layout,
        )
        last: Tensor = out["image_intermediates"][-1]
        return last

    def tokens_of(self, output: Any) -> Tensor:
        """What a block gave → (B, tokens, C), the cells last, row by row."""
        tokens: Tensor = output
        return tokens

    @abstractmethod
    def norm(self, tokens: Tensor) -> Tensor:
        """The tower's last norm, on every token."""

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Each token, not normed, through last norm and head as if it were the pooled one:
        (B, N, C) → (B, N, D)."""


def through_head(visual: Any, cells: Tensor, batch: int) -> Tensor:
    """Of timm's trunks: each cell as the one cell of an image of its own → (B, N, D)."""
    projected: Tensor = visual.head(visual.trunk.forward_head(cells))
    return projected.reshape(batch, -1, projected.shape[-1])
