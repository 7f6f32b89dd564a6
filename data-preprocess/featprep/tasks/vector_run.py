"""A run over many images: each model's part of a vector comes down its own lane and is joined here;
whole rows go into the run's files, a batch at a time, and at the end into the table.

What is done is the ledger's: a journal line an image, which says where its row stands and what
digest it has, so that a row that a kill or a full disk cut short is made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featprep.batching import Row
from featprep.errors import ImageError
from featprep.journal import Line
from featprep.ledger import Ledger
from featprep.records import AnyArray, Failure, ImageRef
from featprep.sources import Entry
from featprep.stores.row_file import RowFile, digest_of
from featprep.stores.vector_files import BATCH, VectorBatch, write_table
from featprep.tasks.vectors import Ensemble, vector_of

ROWS = "rows"  # the file's name in the run's folder


def folder_of(output: str) -> str:
    """Where a run keeps what it has done, beside the table: NAME.parquet.run."""
    return output + ".run"


@dataclass(slots=True)
class _Waiting:
    """An image some of whose vectors are there. `left`: members that have not told of it yet."""

    vectors: list[AnyArray | None]
    left: int
    failure: Failure | None = None
    notes: list[str] = field(default_factory=list)


class VectorRecorder:
    """Joins the lanes' rows, records the whole ones, knows what is done. All but `is_left` and
    `write` is for the runner's writer thread."""

    def __init__(self, ensemble: Ensemble, ledger: Ledger, rows: RowFile) -> None:
        self.ensemble, self.ledger, self.rows = ensemble, ledger, rows
        self.encoded = self.failed = self.skipped = 0
        self.on_done: Callable[[ImageRef], None] = lambda ref: None
        self.on_replaced: Callable[[], None] = lambda: None
        self.on_failure: Callable[[Failure], None] = lambda failure: None
        self._waiting: dict[str, _Waiting] = {}
        self._whole: list[tuple[Line, AnyArray]] = []

    def sinks(self) -> list[_Sink]:
        """One a member, in their order."""
        return [_Sink(self, number) for number in range(len(self.ensemble.members))]

    def left(self, folders: Iterable[list[Entry]]) -> Iterator[tuple[Entry, tuple[int, ...]]]:
        """What is still to be done, down every lane."""
        lanes = tuple(range(len(self.ensemble.members)))
        for entries in folders:
            for entry in entries:
                if isinstance(entry, Failure) or not self._is_done(entry):
                    yield entry, lanes
                else:
                    self.skipped += 1

    def _is_done(self, ref: ImageRef) -> bool:
        line = self.ledger.line(ref.key)
        if line is None:
            return False
        if self.ledger.state(ref, has_feature=True) == "done" and self._stands(line):
            return True
        self.on_replaced()
        return False

    def _stands(self, line: Line) -> bool:
        recorded: str | None = line["files"].get(ROWS)
        return digest_of(self.rows.read([line["row"]])[0]) == recorded

    def take(self, number: int, row: Row) -> None:
        image, features, notes = row
        waiting = self._of(image.ref.key)
        kind = self.ensemble.members[number].kind
        waiting.vectors[number] = vector_of(kind, features)
        waiting.notes += [*image.meta["notes"], *notes]
        self._told(image.ref.key, image.ref, image.sha256)

    def miss(self, failure: Failure) -> None:
        waiting = self._of(failure.key)
        waiting.failure = waiting.failure or failure
        self._told(failure.key, None, "")

    def flush(self) -> None:
        if not self._whole:
            return
        first, digests = self.rows.append(np.stack([row for _, row in self._whole]))
        lines = [
            {**line, "row": first + i, "files": {ROWS: digest}}
            for i, ((line, _), digest) in enumerate(zip(self._whole, digests, strict=True))
        ]
        self._whole = []
        self.ledger.record(lines)

    def write(self, output: str, folders: Callable[[], Iterable[list[Entry]]], root: str) -> int:
        """The table of every image that has a row, in the order of the input; returns how many."""
        count = sum(len(rows) for rows in self._rows(folders()))
        ensemble = self.ensemble
        about = {**ensemble.about(), "input": root, "fingerprint": self.ledger.identity.fingerprint}
        write_table(
            output, count, ensemble.dim, ensemble.dtype, about, lambda: self._batches(folders())
        )
        return count

    def _batches(self, folders: Iterable[list[Entry]]) -> Iterator[VectorBatch]:
        for rows in self._rows(folders):
            vectors = self.rows.read([number for _, _, number in rows])
            yield VectorBatch([key for key, _, _ in rows], [path for _, path, _ in rows], vectors)

    def _rows(self, folders: Iterable[list[Entry]]) -> Iterator[list[tuple[str, str, int]]]:
        """(key, path, number of its row) of the images that have one, BATCH at a time."""
        rows: list[tuple[str, str, int]] = []
        for entries in folders:
            for entry in entries:
                line = self.ledger.line(entry.key) if isinstance(entry, ImageRef) else None
                if line is not None and isinstance(entry, ImageRef):
                    rows.append((entry.key, entry.path, line["row"]))
                if len(rows) == BATCH:
                    yield rows
                    rows = []
        if rows:
            yield rows

    def _of(self, key: str) -> _Waiting:
        count = len(self.ensemble.members)
        return self._waiting.setdefault(key, _Waiting([None] * count, count))

    def _told(self, key: str, ref: ImageRef | None, sha256: str) -> None:
        """A lane has told of an image; once all have, it is a row or a failure."""
        waiting = self._waiting[key]
        waiting.left -= 1
        if waiting.left:
            return
        del self._waiting[key]
        if waiting.failure is not None:
            self._fail(waiting.failure)
            return
        assert ref is not None, "a lane told of neither a vector nor a failure"
        try:
            row = self.ensemble.join([vector for vector in waiting.vectors if vector is not None])
        except ImageError as error:
            self._fail(Failure(key, ref.source, error.stage, str(error)))
            return
        self._whole.append((_line(ref, sha256, row, waiting.notes), row))
        self.encoded += 1
        self.on_done(ref)

    def _fail(self, failure: Failure) -> None:
        if self.ledger.line(failure.key) is not None:  # of an image that is no more
            self.ledger.forget(failure.key)
        self.ledger.fail(failure)
        self.failed += 1
        self.on_failure(failure)


@dataclass(frozen=True, slots=True)
class _Sink:
    """One lane's end: runner.Sink."""

    recorder: VectorRecorder
    number: int

    def write(self, row: Row) -> None:
        self.recorder.take(self.number, row)

    def flush(self) -> None:
        self.recorder.flush()

    def fail(self, failure: Failure) -> None:
        self.recorder.miss(failure)


def _line(ref: ImageRef, sha256: str, row: AnyArray, notes: list[str]) -> dict[str, Any]:
    return {
        "key": ref.key,
        "source": ref.source,
        "size": ref.size,
        "mtime_ns": ref.mtime_ns,
        "sha256": sha256,
        "shape": list(row.shape),
        "dtype": str(row.dtype),
        "notes": list(dict.fromkeys(notes)),
    }


def rows_path(output: str) -> str:
    return os.path.join(folder_of(output), ROWS)
