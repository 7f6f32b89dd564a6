"""A forward pass recorded as one CUDA graph: the host then launches one thing instead of hundreds,
which matters where it has other threads to run. Knows no network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch import Tensor

_RECORDING = threading.Lock()  # one at a time: recording stops what the device does elsewhere
_NOT_RECORDED = "captur"  # how CUDA and torch word it
_WARM = 3  # passes before it, in which libraries choose their kernels and take their memory

OnDevice = dict[int | str, "Tensor"]  # a result's parts: maps under their layers, others by name
Forward = Callable[["Tensor"], OnDevice]


class Graph:
    """Of one encoder, used by one thread at a time; a copy for another thread records its own."""

    def __init__(self) -> None:
        self._key: Any = None
        self._graph: Any = None
        self._pixels: Any = None
        self._found: OnDevice = {}

    def __deepcopy__(self, memo: object) -> Self:
        return type(self)()

    def run(self, key: Any, pixels: Tensor, forward: Forward) -> OnDevice:
        """`forward(pixels)`, replayed where it was recorded for this `key` and shape. The tensors
        hold until the next call. What is met first is recorded: a run has one size of batch. A
        network that asks the host on its way cannot be recorded, and runs as it did."""
        key = (key, tuple(pixels.shape))
        if self._key is None:
            self._record(key, pixels, forward)
        if self._key != key:
            return forward(pixels)
        self._pixels.copy_(pixels)
        self._graph.replay()
        return self._found

    def _record(self, key: Any, pixels: Tensor, forward: Forward) -> None:
        import torch

        with _RECORDING:
            for _ in range(_WARM):
                forward(pixels)
            graph, held = torch.cuda.CUDAGraph(), pixels.clone()
            stream = torch.cuda.current_stream(pixels.device)
            try:
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    found = forward(held)
            except RuntimeError as error:
                if _NOT_RECORDED not in str(error):
                    raise
                self._key = "cannot be recorded"
                return
        self._key, self._graph, self._pixels, self._found = key, graph, held, found
