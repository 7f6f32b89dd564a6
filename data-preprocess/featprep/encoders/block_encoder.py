"""Encoders whose layers are blocks, run by hooks: any of them, their attentions, CLS and registers.

A subclass brings its module, its blocks, its last norm and its projection.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import Want
from featprep.encoders.taps import run_and_take
from featprep.encoders.torch_encoder import Taken, TorchEncoder
from featprep.encoders.wants import is_normed

if TYPE_CHECKING:
    from torch import Tensor, nn


class BlockEncoder(TorchEncoder):
    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The modules that layers are counted by."""

    @abstractmethod
    def _run(self, pixels: Tensor) -> Any:
        """A forward pass of upstream's own module over normalised (B, 3, H, W)."""

    def _tokens_of(self, output: Any) -> Tensor:
        """What a block gave → (B, tokens, C), the cells last, row by row."""
        tokens: Tensor = output[0] if isinstance(output, tuple) else output
        return tokens

    @abstractmethod
    def _norm(self, tokens: Tensor) -> Tensor:
        """The model's last norm, on every token."""

    def _project(self, tokens: Tensor) -> Tensor:
        """Normed tokens → where texts live. Only where the spec has a projection."""
        raise NotImplementedError(f"{self.spec.name} has no projection")

    def _pool(self, result: Any) -> Tensor:
        """The image's vector, (B, D), of what `_run` returned. Only where the spec says pooled."""
        raise NotImplementedError(f"{self.spec.name} has no pooled vector")

    def _pool_before_projection(self, result: Any) -> Tensor:
        """The image tower's own, (B, D). Only where the spec has a pooler."""
        return self._pool(result)

    def _take(self, pixels: Tensor, want: Want) -> Taken:
        raw, result = run_and_take(lambda: self._run(pixels), self.blocks, want)
        layers = {layer: self._finish(raw[layer], want, layer) for layer in want.layers}
        pool = self._pool_before_projection if want.before_projection else self._pool
        return Taken(layers, pool(result) if want.pooled else None)

    def _finish(self, output: Any, want: Want, layer: int) -> Tensor:
        tokens = self._tokens_of(output)
        if is_normed(self.spec, want, layer):
            tokens = self._norm(tokens)
        return tokens if want.feature == "patch" else self._project(tokens)
