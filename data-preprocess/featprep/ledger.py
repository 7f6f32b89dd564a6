"""What a run is and what it has done: OUT/.featprep, from the first check to the last line.

    run.json            the fingerprint; beside it, for people: input, device, versions, batch size
    results-*.jsonl     one line a finished image; a record, not the truth: the feature file is
    failures*.jsonl     one line an image that failed and still stands failed
    lock-*              who works here now (lock.py)

Knows no image and no network: fingerprints are flat dicts of plain values, compared field by field.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from featprep.errors import FingerprintError, LockError
from featprep.journal import Line, LineIndex, append_lines, rewrite
from featprep.lock import RunLock
from featprep.naming import RESERVED, is_in_shard
from featprep.records import Failure, ImageRef
from featprep.stores.base import EVERYTHING, output_error, write_whole

State = Literal["missing", "done", "changed", "unrecorded"]
Fingerprint = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What makes two runs the same, and beside it what people like to know."""

    fingerprint: Fingerprint
    input: str  # real path
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LedgerOptions:
    shard: tuple[int, int] | None = None
    overwrite: bool = False
    moved: bool = False
    break_lock: bool = False


# Told how many results of other settings stand here, and their keys: removes them.
Clear = Callable[[int, Iterator[str]], None]


def tag_of(shard: tuple[int, int] | None) -> str:
    return EVERYTHING if shard is None else f"{shard[0]}-of-{shard[1]}"


def folder_of(output: str) -> str:
    return os.path.join(output, RESERVED)


def read_run(output: str) -> dict[str, Any] | None:
    """run.json of an output, or None. A damaged one is refused, never guessed."""
    path = os.path.join(folder_of(output), "run.json")
    try:
        with open(path, encoding="utf-8") as file:
            run = json.load(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise output_error(path, error) from error
    except (ValueError, RecursionError):
        run = None
    if not isinstance(run, dict) or not isinstance(run.get("fingerprint"), dict):
        raise FingerprintError(
            f"{path} is damaged: use another --output, or remove that file together with the results"
        )
    return run


class Ledger:
    """Open from `__enter__` (lock, then identity) to `__exit__`; one thread at a time may write.

    Raises LockError, FingerprintError and OutputError, all before anything is touched.
    """

    def __init__(
        self, output: str, identity: RunIdentity, options: LedgerOptions, clear: Clear
    ) -> None:
        self.output, self.identity, self.options, self._clear = output, identity, options, clear
        self.folder = folder_of(output)
        tag = tag_of(options.shard)
        self.lock = RunLock(self.folder, tag, break_lock=options.break_lock)
        self.results_path = os.path.join(self.folder, f"results-{tag}.jsonl")
        name = "failures.jsonl" if options.shard is None else f"failures-{tag}.jsonl"
        self.failures_path = os.path.join(self.folder, name)
        self._appending = threading.Lock()  # the writer thread appends, and the start adopts
        self.is_complete = False  # set by the run once every image of it was tried

    def __enter__(self) -> Self:
        self._refuse_strangers(read_run(self.output))  # before a file is made
        self.lock.__enter__()
        try:
            # Shards of one array start together: one clears, the others wait here and find it done.
            with self.lock.guard:
                self._begin()
        except BaseException:
            self.lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if os.path.isdir(self.folder):
                self._settle_failures()
        finally:
            for index in (self._results, self._failures, self._failed_now):
                index.close()
            self.lock.__exit__(kind, error, trace)

    @property
    def failures(self) -> int:
        return len(self._failures)

    def state(self, ref: ImageRef, has_feature: bool) -> State:
        """What is known of an image, given whether its feature file stands."""
        if not has_feature:
            return "missing"
        line = self._results.get(ref.key)
        if line is None:
            return "unrecorded"
        there = (line.get("source"), line.get("size"), line.get("mtime_ns"))
        return "done" if there == (ref.source, ref.size, ref.mtime_ns) else "changed"

    def line(self, key: str) -> Line | None:
        return self._results.get(key)

    def record(self, lines: Iterable[Line]) -> None:
        """Append finished images, after their files have their names."""
        lines = list(lines)
        with self._appending:
            append_lines(self.results_path, lines)
        self._results.put(lines)
        for line in lines:
            self._failures.drop(line["key"])

    def fail(self, failure: Failure) -> None:
        """Record a failure at once, so that a killed run still tells of it."""
        with self._appending:
            append_lines(self.failures_path, [asdict(failure)])
        self._failures.put([asdict(failure)])
        self._failed_now.put([asdict(failure)])

    def _begin(self) -> None:
        before = read_run(self.output)
        self._refuse_strangers(before)
        if before is not None and (before.get("clearing") or self._strangeness(before)):
            self._refuse_while_others_work()
            self._write_run(clearing=True)  # killed while it removes, the next run goes on removing
            self._remove_results()
        self._write_run(clearing=False)
        self._results = LineIndex(self.folder, "results-*.jsonl")
        self._failures = LineIndex(self.folder, os.path.basename(self.failures_path))
        self._failed_now = LineIndex(self.folder, "")

    def _remove_results(self) -> None:
        results = LineIndex(self.folder, "results-*.jsonl")
        self._clear(len(results), (line["key"] for line in results))
        results.close()
        for name in os.listdir(self.folder):
            if name.startswith(("results-", "failures")):
                os.unlink(os.path.join(self.folder, name))

    def _settle_failures(self) -> None:
        """Leave the failures that stand: after a complete run its own, else the older ones too;
        and take this shard's out of files that other splits left."""
        rewrite(self.failures_path, self._failed_now if self.is_complete else self._failures)
        if not self.is_complete:
            return
        with self.lock.guard:
            for name in sorted(os.listdir(self.folder)):
                path = os.path.join(self.folder, name)
                if name.startswith("failures") and path != self.failures_path:
                    self._drop_own(path)

    def _drop_own(self, path: str) -> None:
        others = LineIndex(self.folder, os.path.basename(path))
        for line in list(others):
            if is_in_shard(line["key"], self.options.shard):
                others.drop(line["key"])
        rewrite(path, others)
        others.close()

    def _refuse_strangers(self, before: dict[str, Any] | None) -> None:
        strangeness = self._strangeness(before) if before else None
        if strangeness and not self.options.overwrite:
            raise FingerprintError(strangeness)

    def _strangeness(self, before: dict[str, Any]) -> str | None:
        """Why the results there are not this run's, with the way out; None if they are."""
        there, mine = before["fingerprint"], self.identity.fingerprint
        different = [
            f"{name} {_show(there.get(name))} there, {_show(mine.get(name))} asked"
            for name in dict.fromkeys([*mine, *there])
            if there.get(name) != mine.get(name)
        ]
        if different:
            return (
                f"{self.output} holds features of other settings: {'; '.join(different)}. Nothing "
                "was touched: use another --output, or --overwrite to replace them"
            )
        if before.get("input") != self.identity.input and not self.options.moved:
            return (
                f"{self.output} holds features of the images in {before.get('input')}, not of "
                f"{self.identity.input}: use another --output, --moved if the images moved, or "
                "--overwrite to replace them"
            )
        return None

    def _refuse_while_others_work(self) -> None:
        others = self.lock.others()
        if others:
            raise LockError(
                f"shard {others[0].replace('-of-', '/')} of the older run still works on "
                f"{self.output}: stop it before --overwrite replaces its results"
            )

    def _write_run(self, *, clearing: bool) -> None:
        run: dict[str, Any] = {
            "fingerprint": dict(self.identity.fingerprint),
            "input": self.identity.input,
            "about": dict(self.identity.about),
        }
        if clearing:
            run["clearing"] = True
        text = json.dumps(run, indent=1) + "\n"
        write_whole(os.path.join(self.folder, "run.json"), [text.encode()])


def _show(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text[:12] if len(text) == 64 else text
