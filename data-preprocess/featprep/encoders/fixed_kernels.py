"""`--deterministic`: the same bytes from the same batch, each time and in each process.

Order and neighbours in a batch of one size change nothing as it is, but the number of CPU threads
does: the last bits of CLIP B/32 at batch 8 differ between one and two, in float32 and in bfloat16.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MISSING = "does not have a deterministic implementation"


class _Kernels:
    """The process's switches, borrowed from the first thread that encodes to the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: tuple[bool, bool, bool, bool] = (False, False, False, False)

    def take(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = _switches()
                # Filling memory that was never written costs time, and helps only who reads it.
                _switch(True, False, False, False)

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                _switch(*self._before)


_KERNELS = _Kernels()


def _switches() -> tuple[bool, bool, bool, bool]:
    """(deterministic, warning only, filling fresh memory, cuDNN tries which kernel is fastest)."""
    import torch

    deterministic: Any = torch.utils.deterministic
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )


def _switch(is_on: bool, warns: bool, fills: bool, tunes: bool) -> None:
    import torch

    deterministic: Any = torch.utils.deterministic
    torch.use_deterministic_algorithms(is_on, warn_only=warns)
    deterministic.fill_uninitialized_memory = fills
    torch.backends.cudnn.benchmark = tunes


@contextmanager
def fixed_kernels(threads: int | None) -> Iterator[None]:
    """Within, torch computes on this many CPU threads and with deterministic kernels alone. What
    the thread and the process had chosen is given back. None: nothing is fixed."""
    if threads is None:
        yield
        return
    import torch

    had = torch.get_num_threads()  # each thread has its own number
    _KERNELS.take()
    try:
        torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(had)
        _KERNELS.give_back()


def is_missing(error: BaseException) -> bool:
    """Whether torch has no deterministic kernel for something on this device."""
    return _MISSING in str(error)
