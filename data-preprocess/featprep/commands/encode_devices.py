"""`--device cuda:0,cuda:1`: a process on each device, over disjoint shards of one output.

What the processes share is the output itself: each has the lock, the records and the failures of
its own shard, as jobs of an array have. A later run goes on from there, on however many devices.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

from featprep import devices
from featprep.commands import console, encode_run
from featprep.commands.console import say
from featprep.commands.encode_parts import open_parts
from featprep.config import EncodeConfig
from featprep.errors import FeatprepError, UsageError
from featprep.naming import printable
from featprep.stores.base import write_whole

_WORST_FIRST = (1, 4, 2, 3)  # of exit codes


def names_of(config: EncodeConfig) -> list[str]:
    """The devices asked for; one, or auto, in most runs."""
    return config.device.split(",")


def run(config: EncodeConfig, family: str) -> int:
    """Encode on several devices; returns the exit code (SPEC 7)."""
    names = names_of(config)
    if "" in names or "auto" in names:
        raise UsageError(f"--device {config.device}: name each, as in --device cuda:0,cuda:1")
    if config.limit is not None:
        raise UsageError("--limit works with one --device only: drop it, or name one device")
    open_parts(config, family)  # every refusal that needs no weights, said once
    with tempfile.TemporaryDirectory(prefix="featprep-") as folder:
        runs = [
            (title, replace(own, summary=os.path.join(folder, str(number))))
            for number, (title, own) in enumerate(zip(_titles(names), parted(config), strict=True))
        ]
        codes = _go(runs, family)
        figures = {title: _read(own.summary) for title, own in runs}
    _close(config, figures)
    stopped = [code for code in codes if code > 128]
    return stopped[0] if stopped else next((one for one in _WORST_FIRST if one in codes), 0)


def parted(config: EncodeConfig) -> list[EncodeConfig]:
    """The same run for each device: its shard, and its share of the decoding workers. Of a run that
    is a shard itself, shards of that one: a hash that is I modulo N is one of them modulo N·k."""
    names, (index, count) = names_of(config), config.shard or (1, 1)
    workers, _ = devices.choose_workers(config.workers)
    return [
        replace(
            config,
            device=name,
            shard=(index + count * number, count * len(names)),
            workers=max(1, workers // len(names)),
        )
        for number, name in enumerate(names)
    ]


def _titles(names: Sequence[str]) -> list[str]:
    """A device may be named twice: two processes feed it better than one."""
    counts, seen = Counter(names), Counter[str]()
    titles = []
    for name in names:
        seen[name] += 1
        titles.append(name if counts[name] == 1 else f"{name} ({seen[name]})")
    return titles


def _go(runs: Sequence[tuple[str, EncodeConfig]], family: str) -> list[int]:
    context = multiprocessing.get_context("spawn")
    share = max(1, devices.available_cores() // len(runs))
    processes = [
        context.Process(target=_work, args=(own, family, title, os.getpid(), share), name=title)
        for title, own in runs
    ]
    with _passing_on(processes):
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    return [_code(process) for process in processes]


def _work(config: EncodeConfig, family: str, title: str, parent: int, cores: int) -> None:
    """What the process of one device does."""
    os.setpgrp()  # Ctrl-C reaches the parent alone, which passes it on once
    threading.Thread(target=_stop_with, args=(parent,), daemon=True).start()
    console.title_lines(title)
    if config.device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    try:
        code = encode_run.run(config, family)
    except FeatprepError as error:
        say("error", printable(str(error)))
        code = error.exit_code
    except KeyboardInterrupt:  # before the run listens to signals
        code = 128 + signal.SIGINT
    raise SystemExit(code)


def _stop_with(parent: int) -> None:
    """A parent killed outright passes nothing on: its processes stop as if told to."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _passing_on(processes: Sequence[SpawnProcess]) -> Iterator[None]:
    """Within, SIGINT and SIGTERM go to the processes, which end cleanly at the first."""
    names = (signal.SIGINT, signal.SIGTERM)

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number)

    before = {name: signal.signal(name, pass_on) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _code(process: SpawnProcess) -> int:
    code = process.exitcode or 0
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    say("error", f"the process of {process.name} died ({name}); the same command goes on from here")
    return 128 - code if -code in (signal.SIGINT, signal.SIGTERM) else 1


def _read(path: str | None) -> dict[str, Any] | None:
    """The figures of one process, which one that failed early has not written."""
    if path is None or not os.path.exists(path):
        return None
    figures: dict[str, Any] = json.loads(Path(path).read_bytes())
    return figures


def _close(config: EncodeConfig, each: dict[str, dict[str, Any] | None]) -> None:
    """The last line, and --summary: sums over the processes, whose own stand below `devices`."""
    found = [figures for figures in each.values() if figures is not None]
    if not found:
        return
    total = {name: sum(figures[name] for figures in found)
             for name in ("images", "encoded", "skipped", "failed")}  # fmt: skip
    seconds = max(figures["seconds"] for figures in found)
    rate = round((total["encoded"] + total["failed"]) / max(seconds, 1e-9), 3)
    what = f"{total['encoded']:,} encoded, {total['skipped']:,} skipped, {total['failed']:,} failed"
    say("in all", f"{what}, by {len(each)} processes; {seconds:.1f} s, {rate:,.1f} a second")
    if config.summary:
        more = {
            "ignored": found[0]["ignored"],
            "stopped": any(figures["stopped"] for figures in found),
            "seconds": seconds,
            "images_per_s": rate,
            "devices": each,
        }
        text = json.dumps({**total, **more}, indent=1) + "\n"
        write_whole(os.path.abspath(config.summary), [text.encode()])
