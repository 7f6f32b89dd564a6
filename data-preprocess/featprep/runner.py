"""read → decode → batch → encode → store: the loop, its clocks and its way out.

Given builders of stages, it only moves images along: decoding in worker processes, encoding in as
many threads as batches are encoded at a time, writing in others, each behind a bounded queue. An
image may be for several encoders: it is decoded once and goes down the lane of each. Knows no
format and no model. Memory is bounded by batch × queue depth, whatever the number of images.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

from featprep.batching import BatchEncoder, Row, SizeQueues
from featprep.errors import ImageError
from featprep.records import Failure, Features, ImageRef, Prepared

Item = TypeVar("Item")
Lanes = tuple[int, ...]  # of one run's encoders, by number
# (images and their lanes, how many may be in flight or unclaimed) → what became of each in each of
# its lanes, in any order.
Decode = Callable[
    [Iterable[tuple[ImageRef, Lanes]], int], Iterator[Mapping[int, Prepared | Failure]]
]


class Sink(Protocol):
    """Where rows go; called from the writer threads alone, with several from all of them at once.

    `write` stores one image; ImageError is that image's failure, anything else ends the run.
    `flush` is called a batch at a time, after its writes and in their thread. `fail` records a
    failure.
    """

    def write(self, row: Row) -> None: ...
    def flush(self) -> None: ...
    def fail(self, failure: Failure) -> None: ...


class Events:
    """What a run tells while it goes, one thing at a time; the base class listens to nothing."""

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
    hands: int = 1
    writers: int = 1
    stopped: bool = False
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("read", "decode", "encode", "write"), 0.0)
    )

    def busy(self) -> dict[str, float]:
        """Share of the wall time each stage was at work, per worker of it, 0 … 1."""
        hands = {
            "read": self.workers, "decode": self.workers, "encode": self.hands,
            "write": self.writers,
        }  # fmt: skip
        wall = max(self.wall_s, 1e-9)
        return {name: s / wall / hands.get(name, 1) for name, s in self.seconds.items()}


@dataclass(slots=True)
class Runner:
    """One run. `stop` may be set from a signal handler: what is in flight is finished and kept.

    `hands`: batches encoded at a time, by encoders that bear it. `on_hand`: called first in each of
    the threads that encode. `writers`: batches written at a time, by sinks that bear it.
    """

    decode: Decode
    lanes: Sequence[Lane]
    workers: int = 1
    hands: int = 1
    on_hand: Callable[[], None] = lambda: None
    writers: int = 1
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, entries: Iterable[tuple[ImageRef | Failure, Lanes]]) -> Totals:
        totals = Totals(workers=self.workers, hands=self.hands, writers=self.writers)
        began = time.perf_counter()
        with Writer(totals) as writer, Hands(self, writer, totals) as hands:
            for lane, batch in self._batches(entries, writer, totals):
                lane.events.on_batch(lane.encoder.size, batch)
                hands.put(lane, batch)
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
        ahead = max((1 + self.hands) * max(queue.size for queue in queues), 4 * self.workers)
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


class Crew(ABC, Generic[Item]):
    """Threads that work on what is put. `room` jobs may wait; the first error surfaces at the next
    `put`, and nothing is worked on after it."""

    def __init__(
        self, name: str, count: int, room: int, start: Callable[[], None] = lambda: None
    ) -> None:
        self._queue: queue.Queue[tuple[Lane, Item] | None] = queue.Queue(room)
        self._start = start  # called first in each thread
        self.error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._live, name=f"{name} {number}") for number in range(count)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if kind is None:
            self._raise()

    def put(self, lane: Lane, item: Item) -> None:
        self._raise()
        self._queue.put((lane, item))

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def _live(self) -> None:
        try:
            self._start()
        except BaseException as error:
            self.error = error
        while (waiting := self._queue.get()) is not None:
            if self.error is None:
                try:
                    self.work(*waiting)
                except BaseException as error:
                    # the first one tells; goes on taking, so that `put` cannot block for ever
                    self.error = self.error or error

    @abstractmethod
    def work(self, lane: Lane, item: Item) -> None: ...


class Hands(Crew[list[Prepared]]):
    """The threads that encode, a batch each at a time; as many batches may wait, which a stop
    leaves. One hand is the thread that puts."""

    def __init__(self, run: Runner, writer: Writer, totals: Totals) -> None:
        self._count = run.hands if run.hands > 1 else 0
        super().__init__("hand", self._count, run.hands, run.on_hand)
        self._stop, self._writer, self._totals = run.stop, writer, totals
        self._lock = threading.Lock()

    def put(self, lane: Lane, item: list[Prepared]) -> None:
        super().put(lane, item) if self._count else self.work(lane, item)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:  # what waits would be lost work before the error is told
            self.error = self.error or RuntimeError("the run ended")
        super().__exit__(kind, *rest)

    def work(self, lane: Lane, item: list[Prepared]) -> None:
        if self._stop.is_set():
            return
        began = time.perf_counter()
        rows = list(lane.encoder.encode(item))
        with self._lock:
            self._totals.seconds["encode"] += time.perf_counter() - began
        self._writer.put(lane, rows)


class Writer(Crew[Sequence[Row | Failure]]):
    """The threads that store, a batch each at a time."""

    def __init__(self, totals: Totals) -> None:
        super().__init__("writer", totals.writers, 2)
        self._totals = totals
        self._lock = threading.Lock()  # of the counts, and of what is told

    def work(self, lane: Lane, item: Sequence[Row | Failure]) -> None:
        began = time.perf_counter()
        try:
            for row in item:
                self._fail(lane, row) if isinstance(row, Failure) else self._write(lane, row)
        finally:
            lane.sink.flush()  # also before an error: what has its name is recorded
            with self._lock:
                self._totals.seconds["write"] += time.perf_counter() - began

    def _write(self, lane: Lane, row: Row) -> None:
        image, features, _ = row
        try:
            lane.sink.write(row)
        except ImageError as error:
            self._fail(lane, Failure(image.ref.key, image.ref.source, error.stage, str(error)))
            return
        with self._lock:
            lane.encoded += 1
            self._totals.encoded += 1
            lane.events.on_row(image, features)

    def _fail(self, lane: Lane, failure: Failure) -> None:
        lane.sink.fail(failure)
        with self._lock:
            lane.failed += 1
            self._totals.failed += 1
            lane.events.on_failure(failure)
