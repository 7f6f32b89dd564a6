"""What every task's call has alike: images in one of three shapes, the answer in the same shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from featprep.errors import UsageError
from featprep.tasks import inputs
from featprep.tasks.urls import UrlLimits


class Call:
    """One call of a task, its settings checked. Raises UsageError, before any image is read.

    `given`: the images one by one. `limits`: of addresses among them.
    """

    def __init__(self, images: Any, batch_size: int | None, timeout: float | None) -> None:
        self.limits = _limits(timeout)
        _check_batch_size(batch_size)
        self._shape = inputs.shape_of(images)
        self.given: Iterator[Any] = iter([images]) if self._shape == "one" else inputs.each(images)

    def answer(self, results: Iterator[Any]) -> Any:
        """Of one image its result, of a list a list, of a stream an iterator that works as it is
        read."""
        if self._shape == "stream":
            return results
        return next(results) if self._shape == "one" else list(results)


def _check_batch_size(batch_size: int | None) -> None:
    if batch_size is None:
        return
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise UsageError(f"batch_size={batch_size!r}: allowed is a whole number from 1 up")


def _limits(timeout: float | None) -> UrlLimits:
    if timeout is None:
        return UrlLimits()
    if not isinstance(timeout, int | float) or not 0 < timeout <= 86400:
        raise UsageError(f"timeout={timeout!r}: allowed is a number of seconds, up to 86400")
    return UrlLimits(timeout_s=timeout)
