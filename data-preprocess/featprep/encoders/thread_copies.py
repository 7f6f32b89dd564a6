"""One encoder for several threads: copies that share its tensors, each used by one at a time.

A forward pass changes its module for a while: hooks that listen to layers, position embeddings that
are swapped in for a grid. So threads share the numbers and nothing else.
"""

from __future__ import annotations

import copy
import queue
from typing import Any

from featprep.encoders.base import Encoder, Want
from featprep.records import FeatureMaps, UInt8


class ThreadCopies:
    """`encoder`, which answers what is asked of its shapes, and `count` copies of it that encode.

    A thread that finds none free waits.
    """

    def __init__(self, encoder: Encoder, count: int) -> None:
        self.encoder, self.spec = encoder, encoder.spec
        self.digest, self.origin = encoder.digest, encoder.origin
        self.weights_files = encoder.weights_files
        self._free: queue.SimpleQueue[Encoder] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(share(encoder))

    def grid(self, height: int, width: int, layer: int = -1) -> tuple[int, int]:
        return self.encoder.grid(height, width, layer)

    def tokens(self, height: int, width: int) -> tuple[int, int]:
        return self.encoder.tokens(height, width)

    def compile(self, want: Want) -> None:
        raise AssertionError("an encoder is compiled before it is copied")

    def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
        own = self._free.get()
        try:
            return own.encode(pixels, want)
        finally:
            self._free.put(own)


def share(encoder: Encoder) -> Encoder:
    """A copy of all but the numbers of its tensors. Not while the original encodes."""
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    copied = (Tensor.__deepcopy__, Tensor.clone)  # of tensors; of parameters, by their own deepcopy

    class Sharing(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function in copied:
                return args[0].detach()
            return function(*args, **(kwargs or {}))

    with Sharing():
        return copy.deepcopy(encoder)
