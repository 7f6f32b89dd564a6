"""One contestant, one process: each has its own libraries, threads and settings, as in real use.

All are started before the first round and answer when they are asked, so that rounds can go in
turns; while one works, the others wait for a message and take no processor time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import resource
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from featprep.devices import Precision, choose_device, choose_precision
from featprep.encoders.base import ModelName
from featprep.errors import FeatprepError

_SAMPLE_S = 0.05
Figures = dict[str, Any]
Task = Callable[[int], Figures]  # of the first N images → plain values


@dataclass(frozen=True, slots=True)
class Job:
    """What every contestant is given. `name`: with weights on this machine. `folder`: to write in.
    `images`: a folder of nothing but `paths`."""

    name: ModelName
    images: str
    paths: tuple[str, ...]
    folder: str
    size: tuple[int, int]
    fp16: bool = True
    precision: str | None = None
    device: str = "auto"
    batch_size: int | None = None

    def resolved(self) -> tuple[str, Precision]:
        """(device, precision), by the same rules as `featprep encode`. Imports torch."""
        device, _ = choose_device(self.device)
        return device, choose_precision(self.fp16, self.precision, device)


@dataclass(frozen=True, slots=True)
class Ready:
    """A loaded contestant: what it can be asked, and what it has to say of itself."""

    tasks: Mapping[str, Task]
    about: Figures


Maker = Callable[[Job], Ready]


class HandError(Exception):
    """A contestant that could not do it; the reason is one line. `exit_code`: of the command."""

    def __init__(self, reason: str, exit_code: int = 1) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class Process:
    """Loads in the background; `wait` before the first `ask`. Both raise HandError."""

    def __init__(self, make: Maker, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, job, theirs))
        self._process.start()
        theirs.close()

    def wait(self) -> Figures:
        """What it says of itself, once it is loaded."""
        return self._receive()

    def ask(self, task: str, count: int) -> Figures:
        self._ours.send((task, count))
        return self._receive()

    def watch_memory(self, task: str, count: int) -> Figures:
        """Of it and its workers together, while it does that once more, untimed."""
        process, highest = psutil.Process(self._process.pid), 0
        self._ours.send((task, count))
        while not self._ours.poll(_SAMPLE_S):
            highest = max(highest, _shared_out(process))
        self._receive()
        return {"together_bytes": highest}

    def close(self) -> Figures:
        """Its peak memory, without its workers; nothing if it is gone already."""
        try:
            return self.ask("", 0)
        except (HandError, OSError):
            return {}
        finally:
            self._ours.close()
            self._process.join(timeout=10)
            self._process.kill()
            self._process.join()

    def _receive(self) -> Figures:
        try:
            is_well, answer = self._ours.recv()
        except EOFError:
            self._process.join()
            raise HandError(f"its process ended with code {self._process.exitcode}") from None
        if not is_well:
            raise HandError(*answer)
        figures: Figures = answer
        return figures


def _serve(make: Maker, job: Job, theirs: Connection) -> None:
    _hush()
    try:
        ready = make(job)
        theirs.send((True, dict(ready.about)))
        while True:
            task, count = theirs.recv()
            if not task:
                theirs.send((True, {"peak_bytes": peak_memory()}))
                return
            theirs.send((True, ready.tasks[task](count)))
    except EOFError:  # the bench is gone
        return
    except FeatprepError as error:
        theirs.send((False, (str(error), error.exit_code)))
    except BaseException as error:
        traceback.print_exc()
        reason = " ".join(str(error).split())
        theirs.send((False, (f"{type(error).__name__}: {reason}"[:300],)))


def _hush() -> None:
    """Libraries tell of progress and deprecations; FEATPREP_BENCH_LOG keeps it, in that file."""
    log = os.environ.get("FEATPREP_BENCH_LOG", os.devnull)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def peak_memory() -> int:
    """Peak resident bytes of this process. Not getrusage's where it can be helped: on Linux that
    begins with what the process that started this one had."""
    with contextlib.suppress(OSError):
        found = re.search(
            r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE
        )
        if found:
            return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _shared_out(process: psutil.Process) -> int:
    """Bytes of a process and of those it started, what they share counted once."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            memory = one.memory_full_info()
            total += getattr(memory, "pss", memory.uss)
    return total
