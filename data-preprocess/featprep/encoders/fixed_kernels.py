"""`--deterministic`: the same bytes from the same batch, each time and in each process.

Order and neighbours in a batch of one size change nothing as it is, but the number of CPU threads
does: the last bits of CLIP B/32 at batch 8 differ between one and two, in float32 and in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MISSING = "does not have a deterministic implementation"


@contextmanager
def fixed_kernels(threads: int | None) -> Iterator[None]:
    """Within, torch computes on this many CPU threads and with deterministic kernels alone. What
    the process had chosen is given back. None: nothing is fixed."""
    if threads is None:
        yield
        return
    import torch

    deterministic: Any = torch.utils.deterministic
    had = torch.get_num_threads()
    is_on = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills, tunes = deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    try:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        # It costs time, and helps only who reads memory that was never written.
        deterministic.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.backends.cudnn.benchmark = tunes
        deterministic.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(is_on, warn_only=warns)
        torch.set_num_threads(had)


def is_missing(error: BaseException) -> bool:
    """Whether torch has no deterministic kernel for something on this device."""
    return _MISSING in str(error)
