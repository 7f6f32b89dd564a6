"""What else the machine does meanwhile: processor time of all programs less that of our own."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

from featprep.bench.figures import foreign_cores

# guest time is part of user time already; waiting for a disk keeps no core busy
_IDLE = ("idle", "iowait", "guest", "guest_nice")


@dataclass(frozen=True, slots=True)
class Reading:
    """Seconds since some beginning: the clock, all cores busy with anything, with us alone."""

    wall_s: float
    busy_s: float
    own_s: float


def read_load() -> Reading:
    times = psutil.cpu_times()._asdict()
    busy = sum(seconds for name, seconds in times.items() if name not in _IDLE)
    return Reading(time.perf_counter(), busy, _own_seconds())


def cores_of_others(before: Reading, after: Reading) -> float:
    """How many of the machine's cores others kept busy between two readings; time that a host
    took from its virtual machine (steal) counts as others'."""
    return foreign_cores(
        after.busy_s - before.busy_s,
        after.own_s - before.own_s,
        max(after.wall_s - before.wall_s, 1e-9),
    )


def _own_seconds() -> float:
    """Of this process, of those it started, and of those that these have outlived."""
    me, total = psutil.Process(), 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:  # it ended; its parent has its seconds now
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
