"""Bytes to the device and maps back. On CUDA through page-locked memory and on a stream of its own,
so that while one batch travels another is computed. Knows no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from featprep.records import AnyArray, UInt8

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Transfer:
    """Of one encoder, used by one thread at a time; a copy for another thread has its own."""

    def __init__(self, device: str) -> None:
        self.device, self.is_cuda = device, device.startswith("cuda")
        self._stream: torch.cuda.Stream | None = None

    def __deepcopy__(self, memo: object) -> Self:
        return type(self)(self.device)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Within, work on CUDA is queued on a stream of its own, after what was queued before."""
        if not self.is_cuda:
            yield
            return
        import torch

        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield

    def upload(self, pixels: UInt8) -> Tensor:
        import torch

        # torch warns of arrays it may not write to, such as views of shared memory.
        host = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        if not self.is_cuda:
            return host.to(self.device)
        # torch keeps page-locked blocks and gives one out again once its copy is done.
        locked = torch.empty(host.shape, dtype=host.dtype, pin_memory=True).copy_(host)
        return locked.to(self.device, non_blocking=True)

    def download(self, tensors: Sequence[Tensor]) -> list[AnyArray]:
        """Arrays that no later batch writes to. Other threads go on while this one waits."""
        if not self.is_cuda:
            return [tensor.contiguous().cpu().numpy() for tensor in tensors]
        import torch

        hosts: list[Any] = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors
        ]
        for host, tensor in zip(hosts, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return [host.numpy() for host in hosts]
