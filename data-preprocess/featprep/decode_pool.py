"""Worker processes that decode, several images a job.

A decoder that hangs is stopped at a time limit, one that crashes takes only its worker along. Which
image of a job it was is not known then, so the job's images are tried again one by one, and either
costs its image alone. A worker that is killed between two jobs, or while it holds what all of them
share, leaves the pool broken or mute: then it is replaced, and what was in flight asked again.
Workers import no torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Self

from pebble import ProcessExpired, ProcessPool
from pebble.pool.process import WORKERS_NAME

from featprep import decoding
from featprep.codec_state import mute_decoders
from featprep.decoding import DecodeRules, Outcome
from featprep.errors import DecodersError
from featprep.records import Failure, ImageRef

Lanes = tuple[int, ...]  # numbers of the rules that an image is wanted under
Wanted = tuple[ImageRef, Lanes]
Chunk = list[Wanted]
Job = Future[list[tuple[Outcome, ...]]]
Ready = queue.SimpleQueue[Job]

# A job costs the process that asks 0.1 to 0.2 ms beside its images (scripts/measure_decoding.py).
_MOST_IMAGES = 16
_MOST_BYTES = 2**22  # of files: large ones take long enough by themselves
# A pool from which no job has come back for so much longer than one may take is mute.
_PATIENCE_S = 30.0
_MOST_POOLS = 5  # that end one after the other without a job done


def prepare_chunk(chunk: Chunk, rules: Sequence[DecodeRules]) -> list[tuple[Outcome, ...]]:
    return [decoding.prepare_job(ref, [rules[lane] for lane in lanes]) for ref, lanes in chunk]


class DecodePool:
    """A context manager. `timeout_s`: how long an image may take."""

    def __init__(self, workers: int, timeout_s: float) -> None:
        self.workers, self.timeout_s = workers, timeout_s
        self._pool = self._make()
        self._flying: dict[Job, Chunk] = {}
        self._given_up = 0  # pools since a job was done

    def _make(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self.workers,
            # spawn: a fork of a process with torch's threads can deadlock
            context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(os.getpid(),),
        )

    def __enter__(self) -> Self:
        for _ in range(self.workers):  # start them now, while the caller loads its weights
            self._pool.schedule(os.getpid)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        _end_workers()
        self._pool.join()

    def map(self, refs: Iterable[ImageRef], rules: DecodeRules, ahead: int) -> Iterator[Outcome]:
        """Outcomes in the order they are ready, at most `ahead` images in flight or unclaimed."""
        for outcomes in self.run(((ref, (0,)) for ref in refs), (rules,), ahead):
            yield outcomes[0]

    def run(
        self, jobs: Iterable[Wanted], rules: Sequence[DecodeRules], ahead: int
    ) -> Iterator[dict[int, Outcome]]:
        """The same for several networks: of each image, and the numbers of the rules it is wanted
        under, the outcome under each."""
        ready: Ready = queue.SimpleQueue()
        self._flying = {}
        most = max(1, min(_MOST_IMAGES, ahead // (2 * self.workers)))
        flying = 0
        for chunk in _chunks(jobs, most):
            self._schedule(chunk, rules, ready)
            flying += len(chunk)
            while flying > ahead - most:
                for outcomes in self._collect(rules, ready):
                    yield outcomes
                    flying -= 1
        while flying:
            for outcomes in self._collect(rules, ready):
                yield outcomes
                flying -= 1

    def _schedule(self, chunk: Chunk, rules: Sequence[DecodeRules], ready: Ready) -> None:
        args = [chunk, rules]
        try:
            job = self._pool.schedule(prepare_chunk, args=args, timeout=self.timeout_s)
        except RuntimeError:  # it broke, and those in flight have not told yet
            self._replace(rules, ready)
            job = self._pool.schedule(prepare_chunk, args=args, timeout=self.timeout_s)
        self._flying[job] = chunk
        job.add_done_callback(ready.put)

    def _replace(self, rules: Sequence[DecodeRules], ready: Ready) -> None:
        """Another pool, asked for all that was in flight."""
        self._given_up += 1
        if self._given_up > _MOST_POOLS:
            raise DecodersError(
                f"the processes that decode end before they decode anything, {_MOST_POOLS} times "
                "in a row: is there memory for them? Fewer --workers take less; the same command "
                "goes on from here"
            )
        self._pool.stop()  # type: ignore[no-untyped-call]
        _end_workers()
        threading.Thread(target=self._pool.join, name="old decoders", daemon=True).start()
        self._pool = self._make()
        chunks, self._flying = list(self._flying.values()), {}
        for chunk in chunks:
            self._schedule(chunk, rules, ready)

    def _collect(self, rules: Sequence[DecodeRules], ready: Ready) -> Iterator[dict[int, Outcome]]:
        """What the next job to end gave; nothing if its images have to be tried one by one."""
        try:
            job = ready.get(timeout=self.timeout_s + _PATIENCE_S)
            if job not in self._flying:  # of a pool that was replaced: its images are asked again
                return
            done = job.result()
        except (queue.Empty, BrokenProcessPool):
            self._replace(rules, ready)
            return
        except TimeoutError:
            reason = f"decoding took longer than {self.timeout_s:g} s (--decode_timeout)"
        except ProcessExpired as error:
            reason = f"the decoder died ({_cause_of_death(error.exitcode)})"
        else:
            self._given_up = 0
            for (_, lanes), outcomes in zip(self._flying.pop(job), done, strict=True):
                yield dict(zip(lanes, outcomes, strict=True))
            return
        chunk = self._flying.pop(job)
        if len(chunk) == 1:
            ref, lanes = chunk[0]
            yield dict.fromkeys(lanes, Failure(ref.key, ref.source, "decode", reason))
            return
        for wanted in chunk:
            self._schedule([wanted], rules, ready)


def _chunks(jobs: Iterable[Wanted], most: int) -> Iterator[Chunk]:
    chunk, size = list[Wanted](), 0
    for ref, lanes in jobs:
        chunk.append((ref, lanes))
        size += ref.size
        if len(chunk) >= most or size >= _MOST_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _end_workers() -> None:
    """Outright: one that stands still would not end otherwise, and one that only starts would
    complain that what it was to share is gone."""
    for process in multiprocessing.active_children():
        if process.name == WORKERS_NAME:
            process.kill()


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    mute_decoders()
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    """A parent killed outright cannot stop its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
