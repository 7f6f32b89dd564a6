"""What every task's call has alike: images in one of three shapes, the answer in the same shape."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from featprep.errors import UsageError
from featprep.settings import nearest
from featprep.tasks import inputs
from featprep.tasks.models import SETTINGS
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


def refuse_unknown(task: str, keywords: Collection[str], allowed: Sequence[str]) -> None:
    """Raises UsageError for what a call of the task does not take."""
    for name in keywords:
        if name in SETTINGS:
            raise UsageError(
                f"{name} is a setting of the pipeline, not of a call: give it to featprep.pipeline"
            )
        raise UsageError(
            f"a call of {task} takes no {name!r}.{nearest(name, allowed)} There are: "
            f"{', '.join(allowed)}"
        )


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
