"""What every torch encoder does alike: bytes in, normalised on the device, maps out on the host.

Knows no architecture and no checkpoint: a subclass brings its module and turns pixels into tokens.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featprep.encoders import compiling, packing, wants
from featprep.encoders.base import EncoderSpec, LoadOptions, Want, check_pos_embed
from featprep.encoders.fixed_kernels import fixed_kernels, is_missing
from featprep.encoders.graphs import Graph, OnDevice
from featprep.encoders.transfer import Transfer
from featprep.encoders.weights import Found, one_line
from featprep.errors import OutOfMemoryError, UsageError
from featprep.records import FeatureMaps, UInt8

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# How CUDA, cuBLAS, MPS and the CPU allocator word it; only CUDA's has a class of its own.
_OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
)


@dataclass(slots=True)
class Taken:
    """What one forward pass gave, on the device.

    `layers`: layer → (B, tokens, C), the cells last, row by row, after the prefix; normed and
    projected as wanted. `pooled`: (B, D).
    """

    layers: dict[int, Tensor]
    pooled: Tensor | None = None


class TorchEncoder(ABC):
    """`conv`: the patch embedding, which knows the grid. `prefix`: tokens before the cells."""

    def __init__(
        self, spec: EncoderSpec, conv: nn.Module, options: LoadOptions, digest: str, found: Found
    ) -> None:
        import torch

        self.spec = spec
        self.digest = digest
        self.origin = found.origin
        self.weights_files = found.sha256
        self.prefix = spec.cls + spec.registers
        self._conv: Any = conv
        self._options = options
        self._compute: torch.dtype = getattr(torch, options.compute)
        self._transfer = Transfer(options.device)
        self._graph: Graph | None = None
        self._is_compiled = False
        # Tensors, not numbers: CUDA multiplies by the reciprocal of a number, one ulp off ToTensor.
        self._scale = torch.tensor(255.0, device=options.device)
        self._mean = torch.tensor(spec.mean, device=options.device).view(3, 1, 1)
        self._std = torch.tensor(spec.std, device=options.device).view(3, 1, 1)

    @abstractmethod
    def _take(self, pixels: Tensor, want: Want) -> Taken:
        """Normalised (B, 3, H, W) → what is wanted. `want` is checked, its layers count from 0."""

    def grid(self, height: int, width: int, layer: int = -1) -> tuple[int, int]:
        rows, columns = self._cells(height, width, layer % self.spec.depth)
        if min(rows, columns) < 1:
            raise UsageError(
                f"--size {height},{width}: smaller than a patch of {self.spec.name}; allowed are "
                f"multiples of {self.spec.patch}"
            )
        return rows, columns

    def _cells(self, height: int, width: int, layer: int) -> tuple[int, int]:
        """(rows, columns), below one where the input is too small. `layer` counts from 0."""
        if self.spec.stages:
            stride = self.spec.stages[layer].stride
            return height // stride, width // stride
        rows, columns = (
            (side + 2 * padding - kernel) // stride + 1
            for side, kernel, stride, padding in zip(
                (height, width),
                self._conv.kernel_size,
                self._conv.stride,
                self._conv.padding,
                strict=True,
            )
        )
        return rows, columns

    def tokens(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = self.grid(height, width)
        return self.prefix + rows * columns, self.spec.hidden_dim

    def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
        want = wants.check(self.spec, want)
        check_pos_embed(self.spec, self._options.pos_embed, *pixels.shape[-2:])
        try:
            return self._encode(pixels, want)
        except (RuntimeError, MemoryError) as error:
            if is_missing(error):
                raise UsageError(
                    f"--deterministic: {self.spec.name} on {self._options.device} needs an "
                    "operation that torch has no deterministic form of; use --device cpu, or "
                    "--no_deterministic"
                ) from error
            if self._is_compiled and compiling.is_failure(error):
                raise UsageError(
                    f"--compile: torch.compile fails on {self.spec.name} here "
                    f"({one_line(error, 200)}); use --compile off"
                ) from error
            if not is_out_of_memory(error):
                raise
        # Out here, so that no traceback keeps the batch's tensors alive while the runner halves it.
        raise OutOfMemoryError(f"{self._options.device} has no room for a batch of {len(pixels)}")

    def _encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
        import torch

        fixed = fixed_kernels(self._options.threads)
        with torch.inference_mode(), full_float32(), fixed, self._transfer.stream():
            found = self._run_on_device(self._transfer.upload(pixels), want)
            arrays = self._transfer.download(list(found.values()))
        named = dict(zip(found, arrays, strict=True))
        beside = {name: named.pop(name, None) for name in ("prefix", "pooled", "finite")}
        return FeatureMaps(named, **beside)  # type: ignore[arg-type]

    def _run_on_device(self, pixels: Tensor, want: Want) -> OnDevice:
        if self._graph is None:
            return self._compute_on_device(pixels, want)
        return self._graph.run(want, pixels, lambda same: self._compute_on_device(same, want))

    def compile(self, want: Want) -> None:
        """Make forward passes faster for a run that takes `want` from batches of one size."""
        from torch import nn

        self._is_compiled = True
        modules = {id(part): part for part in vars(self).values() if isinstance(part, nn.Module)}
        for module in modules.values():
            compiling.compile_blocks(module, want)
        if self._transfer.is_cuda:
            self._graph = Graph()

    def _compute_on_device(self, pixels: Tensor, want: Want) -> OnDevice:
        """(B, 3, H, W) uint8 → what FeatureMaps holds, the maps under their layers."""
        import torch

        dtype, (height, width) = getattr(torch, want.dtype), pixels.shape[-2:]
        grids = {layer: self.grid(height, width, layer) for layer in want.layers}  # refuses sizes
        taken = self._take(self._normalised(pixels), want)
        rows, columns = grids[want.layers[0]]
        first = taken.layers[want.layers[0]]
        found: OnDevice = {
            layer: _as_map(tokens, grids[layer]) for layer, tokens in taken.layers.items()
        }
        if want.prefix:
            found["prefix"] = first[:, : first.shape[1] - rows * columns]
        if taken.pooled is not None:
            found["pooled"] = taken.pooled
        found = {name: tensor.to(dtype).contiguous() for name, tensor in found.items()}
        if self._transfer.is_cuda:  # a host would be slower to look at them than to write them
            found["finite"] = torch.stack(
                [tensor.isfinite().flatten(1).all(dim=1) for tensor in found.values()]
            ).all(dim=0)
        return found

    def normalise(self, pixels: UInt8) -> Tensor:
        """(B, 3, H, W) uint8 → compute precision; in float32 bit for bit ToTensor and Normalize."""
        return self._normalised(self._transfer.upload(pixels))

    def _normalised(self, pixels: Tensor) -> Tensor:
        import torch

        scaled = pixels.to(torch.float32).div_(self._scale)
        return scaled.sub_(self._mean).div_(self._std).to(self._compute)


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    rows, columns = grid
    # Never a fixed offset: the number of CLS and register tokens differs between models.
    cells = tokens[:, -rows * columns :].transpose(1, 2)
    return cells.reshape(len(cells), -1, rows, columns)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of device or host memory, whatever class it says that with."""
    return isinstance(error, MemoryError) or any(part in str(error) for part in _OUT_OF_MEMORY)


def place(module: nn.Module, spec: EncoderSpec, device: str) -> nn.Module:
    """The module on its device, frozen, on a CPU packed. Raises UsageError if it does not fit."""
    try:
        placed = module.eval().requires_grad_(False).to(device)
        if device.startswith("cuda") and spec.stages:
            import torch

            placed = placed.to(memory_format=torch.channels_last)  # the order of its convolutions
        if device == "cpu":
            packing.pack(placed)
        return placed
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UsageError(
            f"--device {device}: no room for {spec.name}; take a smaller model, --fp16, or "
            "--device cpu"
        ) from error


class _Precision:
    """The process's switches, borrowed from the first thread that encodes to the last: one that
    saved and restored them by itself would take them from a neighbour, or leave them changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: list[Any] = []

    def take(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = [getattr(room, name) for room, name, _ in _switches()]
                for room, name, exact in _switches():
                    setattr(room, name, exact)

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for (room, name, _), value in zip(_switches(), self._before, strict=True):
                    setattr(room, name, value)


_PRECISION = _Precision()


def _switches() -> list[tuple[Any, str, Any]]:
    """(where, name, the value that means float32)."""
    import torch

    backends: Any = torch.backends
    if hasattr(backends.cudnn, "conv"):  # torch 2.9 and later
        rooms = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul)
        return [(room, "fp32_precision", "ieee") for room in (*rooms, backends.mkldnn.conv)]
    return [(room, "allow_tf32", False) for room in (backends.cuda.matmul, backends.cudnn)]


@contextmanager
def full_float32() -> Iterator[None]:
    """Within, float32 is float32: no TF32, no bfloat16 passes, whatever the process has chosen.

    cuDNN's convolutions use TF32 unless told otherwise, and
    torch.set_float32_matmul_precision reaches CPUs too.
    """
    _PRECISION.take()
    try:
        yield
    finally:
        _PRECISION.give_back()
