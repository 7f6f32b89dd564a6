"""read → decode → batch → encode → store: the loop, its clocks and its way out.

Given builders of stages, it only moves images along: decoding in worker processes, encoding here,
writing in a thread behind a bounded queue. Knows no format and no model. Memory is bounded by batch
× queue depth, whatever the number of images.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from featprep.batching import BatchEncoder, Row, SizeQueues
from featprep.errors import ImageError
from featprep.records import Failure, Features, ImageRef, Prepared

# (images, how many may be in flight or unclaimed) → what became of each, in any order.
Decode = Callable[[Iterable[ImageRef], int], Iterator[Prepared | Failure]]


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
class Totals:
    """What a run did. Stage seconds are summed over the workers of the stage."""

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
    encoder: BatchEncoder
    sink: Sink
    events: Events
    workers: int = 1
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, entries: Iterable[ImageRef | Failure]) -> Totals:
        totals = Totals(workers=self.workers)
        began = time.perf_counter()
        with Writer(self.sink, self.events, totals) as writer:
            for batch in self._batches(entries, writer, totals):
                self._encode(batch, writer, totals)
                if self.stop.is_set():
                    break
        totals.stopped = self.stop.is_set()
        totals.wall_s = time.perf_counter() - began
        return totals

    def _batches(
        self, entries: Iterable[ImageRef | Failure], writer: Writer, totals: Totals
    ) -> Iterator[list[Prepared]]:
        size = self.encoder.size
        queues = SizeQueues(size, most=4 * size)
        refs = self._refs(entries, writer)
        for outcome in self.decode(refs, max(2 * size, 4 * self.workers)):
            if isinstance(outcome, Failure):
                writer.put([outcome])
                continue
            totals.seconds["read"] += outcome.read_s
            totals.seconds["decode"] += outcome.decode_s
            batch = queues.add(outcome)
            if batch:
                yield batch
            if self.stop.is_set():
                return
        yield from queues.rest()

    def _refs(self, entries: Iterable[ImageRef | Failure], writer: Writer) -> Iterator[ImageRef]:
        """The images to decode; what failed before it was opened goes straight to the writer."""
        for entry in entries:
            if self.stop.is_set():
                return
            if isinstance(entry, Failure):
                writer.put([entry])
            else:
                yield entry

    def _encode(self, batch: list[Prepared], writer: Writer, totals: Totals) -> None:
        self.events.on_batch(self.encoder.size, batch)
        began = time.perf_counter()
        rows = list(self.encoder.encode(batch))
        totals.seconds["encode"] += time.perf_counter() - began
        writer.put(rows)


class Writer:
    """The thread that stores. Two batches may wait; its first error surfaces at the next `put`."""

    def __init__(self, sink: Sink, events: Events, totals: Totals) -> None:
        self._sink, self._events, self._totals = sink, events, totals
        self._queue: queue.Queue[Sequence[Row | Failure] | None] = queue.Queue(maxsize=2)
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

    def put(self, rows: Sequence[Row | Failure]) -> None:
        self._raise()
        self._queue.put(rows)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (rows := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._store(rows)
                except BaseException as error:
                    self._error = error  # goes on taking, so that `put` cannot block for ever

    def _store(self, rows: Sequence[Row | Failure]) -> None:
        began = time.perf_counter()
        try:
            for row in rows:
                self._fail(row) if isinstance(row, Failure) else self._write(row)
        finally:
            self._sink.flush()  # also before an error: what has its name is recorded
            self._totals.seconds["write"] += time.perf_counter() - began

    def _write(self, row: Row) -> None:
        image, features, _ = row
        try:
            self._sink.write(row)
        except ImageError as error:
            self._fail(Failure(image.ref.key, image.ref.source, error.stage, str(error)))
            return
        self._totals.encoded += 1
        self._events.on_row(image, features)

    def _fail(self, failure: Failure) -> None:
        self._sink.fail(failure)
        self._totals.failed += 1
        self._events.on_failure(failure)
