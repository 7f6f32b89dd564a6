"""read → decode → batch → encode → store: the loop, its clocks and its way out.

Given builders of stages, it only moves images along: decoding in worker processes, encoding here,
writing in a thread behind a bounded queue. An image may be for several encoders: it is decoded once
and goes down the lane of each. Knows no format and no model. Memory is bounded by batch × queue
depth, whatever the number of images.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from featprep.batching import BatchEncoder, Row, SizeQueues
from featprep.errors import ImageError
from featprep.records import Failure, Features, ImageRef, Prepared

Lanes = tuple[int, ...]  # of one run's encoders, by number
# (images and their lanes, how many may be in flight or unclaimed) → what became of each in each of
# its lanes, in any order.
Decode = Callable[
    [Iterable[tuple[ImageRef, Lanes]], int], Iterator[Mapping[int, Prepared | Failure]]
]


class Sink(Protocol):
    """Where rows go; called from the writer thread alone.

    `write` stores one image; ImageError is that image's failure, anything else ends the run.
    `flush` is called a batch at a time, after its writes. `fail` records a failure.
    """

    def write(self, row: Row) -> None: ...
    def flush(self) -> None: ...
    def fail(self, failure: Failure) -> None: ...


class Events:
    """What a run tells while it goes; the base class listens to nothing."""

    def on_row(self, image: Prepared, features: Features) -> None: ...
    def on_failure(self, failure: Failure) -> None: ...
    def on_batch(self, batch: int, images: Sequence[Prepared]) -> None: ...


@dataclass(slots=True)
class Lane:
    """One encoder of a run, where its results go, and how many there were."""

    encoder: BatchEncoder
    sink: Sink
    events: Events
    encoded: int = 0
    failed: int = 0


@dataclass(slots=True)
class Totals:
    """What a run did, in all its lanes. Stage seconds are summed over the workers of the stage."""

    encoded: int = 0
    failed: int = 0
    wall_s: float = 0.0
    workers: int = 1
    stopped: bool = False
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("read", "decode", "encode", "write"), 0.0)
    )

    def busy(self) -> dict[str, float]:
        """Share of the wall time each stage was at work, per worker of it, 0 … 1."""
        hands = {"read": self.workers, "decode": self.workers}
        wall = max(self.wall_s, 1e-9)
        return {name: s / wall / hands.get(name, 1) for name, s in self.seconds.items()}


@dataclass(slots=True)
class Runner:
    """One run. `stop` may be set from a signal handler: what is in flight is finished and kept."""

    decode: Decode
    lanes: Sequence[Lane]
    workers: int = 1
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, entries: Iterable[tuple[ImageRef | Failure, Lanes]]) -> Totals:
        totals = Totals(workers=self.workers)
        began = time.perf_counter()
        with Writer(totals) as writer:
            for lane, batch in self._batches(entries, writer, totals):
                self._encode(lane, batch, writer, totals)
                if self.stop.is_set():
                    break
        totals.stopped = self.stop.is_set()
        totals.wall_s = time.perf_counter() - began
        return totals

    def _batches(
        self, entries: Iterable[tuple[ImageRef | Failure, Lanes]], writer: Writer, totals: Totals
    ) -> Iterator[tuple[Lane, list[Prepared]]]:
        """A queue a lane and size of input."""
        queues = [SizeQueues(lane.encoder.size, most=4 * lane.encoder.size) for lane in self.lanes]
        ahead = max(2 * max(queue.size for queue in queues), 4 * self.workers)
        for outcomes in self.decode(self._refs(entries, writer), ahead):
            for number, outcome in outcomes.items():
                lane = self.lanes[number]
                if isinstance(outcome, Failure):
                    writer.put(lane, [outcome])
                    continue
                totals.seconds["read"] += outcome.read_s
                totals.seconds["decode"] += outcome.decode_s
                batch = queues[number].add(outcome)
                if batch:
                    yield lane, batch
            if self.stop.is_set():
                return
        for lane, waiting in zip(self.lanes, queues, strict=True):
            yield from ((lane, batch) for batch in waiting.rest())

    def _refs(
        self, entries: Iterable[tuple[ImageRef | Failure, Lanes]], writer: Writer
    ) -> Iterator[tuple[ImageRef, Lanes]]:
        """The images to decode; what failed before it was opened goes straight to the writer."""
        for entry, lanes in entries:
            if self.stop.is_set():
                return
            if isinstance(entry, ImageRef):
                yield entry, lanes
                continue
            for number in lanes:
                writer.put(self.lanes[number], [entry])

    def _encode(self, lane: Lane, batch: list[Prepared], writer: Writer, totals: Totals) -> None:
        lane.events.on_batch(lane.encoder.size, batch)
        began = time.perf_counter()
        rows = list(lane.encoder.encode(batch))
        totals.seconds["encode"] += time.perf_counter() - began
        writer.put(lane, rows)


class Writer:
    """The thread that stores. Two batches may wait; its first error surfaces at the next `put`."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._queue: queue.Queue[tuple[Lane, Sequence[Row | Failure]] | None] = queue.Queue(2)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="writer")

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def put(self, lane: Lane, rows: Sequence[Row | Failure]) -> None:
        self._raise()
        self._queue.put((lane, rows))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (waiting := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._store(*waiting)
                except BaseException as error:
                    self._error = error  # goes on taking, so that `put` cannot block for ever

    def _store(self, lane: Lane, rows: Sequence[Row | Failure]) -> None:
        began = time.perf_counter()
        try:
            for row in rows:
                self._fail(lane, row) if isinstance(row, Failure) else self._write(lane, row)
        finally:
            lane.sink.flush()  # also before an error: what has its name is recorded
            self._totals.seconds["write"] += time.perf_counter() - began

    def _write(self, lane: Lane, row: Row) -> None:
        image, features, _ = row
        try:
            lane.sink.write(row)
        except ImageError as error:
            self._fail(lane, Failure(image.ref.key, image.ref.source, error.stage, str(error)))
            return
        lane.encoded += 1
        self._totals.encoded += 1
        lane.events.on_row(image, features)

    def _fail(self, lane: Lane, failure: Failure) -> None:
        lane.sink.fail(failure)
        lane.failed += 1
        self._totals.failed += 1
        lane.events.on_failure(failure)
