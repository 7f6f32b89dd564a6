"""Contestants of the bench's processes that need no library: a process of its own imports this."""

from __future__ import annotations

import os

from featprep.bench.processes import Job, Ready
from featprep.errors import WeightsError


def make_counter(job: Job) -> Ready:
    return Ready({"run": lambda count: {"images": count, "size": job.size}}, {"pid": os.getpid()})


def make_error(job: Job) -> Ready:
    raise ValueError("no\n  such model")


def make_refusal(job: Job) -> Ready:
    raise WeightsError("no weights; fetch them")


def make_stumbler(job: Job) -> Ready:
    def run(count: int) -> dict[str, int]:
        raise RuntimeError("out of luck")

    return Ready({"run": run}, {})


def make_death(job: Job) -> Ready:
    os._exit(7)
