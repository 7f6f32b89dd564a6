"""What a run is and what it has done: OUT/.featprep, from the first check to the last line.

    run.json            the fingerprint; beside it, for people: input, device, versions, batch size
    results-*.jsonl     one line a finished image; a record, not the truth: the feature file is
    failures*.jsonl     one line an image that failed and still stands failed
    lock-*              who works here now (lock.py)

Knows no image and no network: fingerprints are flat dicts of plain values, compared field by field
(differences.py).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import xxhash

from featprep.differences import Fingerprint, differences
from featprep.errors import FingerprintError, LockError, UsageError
from featprep.journal import Line, LineIndex, append_lines, rewrite
from featprep.lock import RunLock
from featprep.naming import RESERVED, is_in_shard, printable
from featprep.records import Failure, ImageRef
from featprep.stores.base import EVERYTHING, output_error, write_whole

State = Literal["missing", "done", "changed", "damaged", "unrecorded"]
# What a line must have for its result to count as recorded.
_WHOLE = {"source": str, "sha256": str, "shape": list, "dtype": str, "files": dict, "notes": list}


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What makes two runs the same, and beside it what people like to know."""

    fingerprint: Fingerprint
    input: str  # real path
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LedgerOptions:
    """`taken`: for how many images a file of a result's name stands in the output by now."""

    shard: tuple[int, int] | None = None
    overwrite: bool = False
    moved: bool = False
    break_lock: bool = False
    taken: int = 0


# Told how many results of other settings stand here, their keys, and the fingerprints of the runs
# that may have made them: removes them.
Clear = Callable[[int, Iterator[str], list[Fingerprint]], None]


def tag_of(shard: tuple[int, int] | None) -> str:
    return EVERYTHING if shard is None else f"{shard[0]}-of-{shard[1]}"


def folder_of(output: str) -> str:
    return os.path.join(output, RESERVED)


def read_run(output: str) -> dict[str, Any] | None:
    """run.json of an output, or None. A damaged one is refused, never guessed."""
    path = os.path.join(folder_of(output), "run.json")
    try:
        run = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise UsageError(f"--output {printable(output)}: not a folder; give a folder") from error
    except OSError as error:
        raise output_error(path, error, "read") from error
    except (ValueError, RecursionError):
        run = None
    kinds = {"fingerprint": dict, "input": str, "about": dict}
    run = {"input": "", "about": {}, **run} if isinstance(run, dict) else {}
    is_whole = all(isinstance(run.get(name), kind) for name, kind in kinds.items())
    if not is_whole or "\0" in run["input"]:
        raise FingerprintError(
            f"{printable(path)} is damaged: use another --output, or remove that file together "
            "with the results"
        )
    return run


def is_record(line: Line) -> bool:
    """Does a line have all that belongs to a result? Else the key's record holds no more."""
    return all(isinstance(line.get(name), kind) for name, kind in _WHOLE.items())


class Ledger:
    """Open from `__enter__` (lock, then identity) to `__exit__`; several threads may record.

    Raises LockError, FingerprintError and OutputError, all before anything is touched.
    """

    def __init__(
        self, output: str, identity: RunIdentity, options: LedgerOptions, clear: Clear
    ) -> None:
        self.output, self.identity, self.options, self._clear = output, identity, options, clear
        self.folder = folder_of(output)
        # As JSON gives it back, so that a tuple there and a list here are no difference.
        self._fingerprint: dict[str, Any] = json.loads(json.dumps(dict(identity.fingerprint)))
        self.tag = tag_of(options.shard)
        whole = json.dumps([self._fingerprint, identity.input]).encode()
        run = xxhash.xxh3_64_hexdigest(whole)
        self.lock = RunLock(self.folder, self.tag, break_lock=options.break_lock, run=run)
        self.results_path = os.path.join(self.folder, f"results-{self.tag}.jsonl")
        self.failures_path = os.path.join(self.folder, _failures_name(self.tag))
        self._appending = threading.Lock()  # the writers append, and the start adopts
        self._is_held = False
        self.is_complete = False  # set by the run once every image of it was tried

    def check(self) -> None:
        """Raise FingerprintError if results of other settings or images stand here, UsageError if
        the ledger would be written somewhere else."""
        if os.path.islink(self.folder):
            raise UsageError(
                f"--output {printable(self.output)}: its {RESERVED} is a link, which may lead "
                "anywhere; remove it, or use another --output"
            )
        self._refuse_strangers(read_run(self.output))

    def to_remove(self) -> int:
        """Results that --overwrite removes before anything is encoded: all of another run's."""
        before = read_run(self.output)
        if not (self.options.overwrite and self._strangeness(before)):
            return 0
        with contextlib.closing(LineIndex(self.folder, "results-*.jsonl")) as results:
            return self._count(results)

    def _count(self, results: LineIndex) -> int:
        return len(results) or self.options.taken

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Its lock, without touching a result: for who opens several, or none."""
        self.check()  # before a file is made
        with self.lock:
            self._is_held = True
            yield

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        if not self._is_held:
            self._stack.enter_context(self.held())
        try:
            # Shards of one array start together: one clears, the others wait here and find it done.
            with self._guarded():
                self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and os.path.isdir(self.folder):  # it may have been deleted meanwhile
                self._settle_failures()
        finally:
            for index in (self._results, self._failures, self._failed_now):
                index.close()
            self._stack.close()

    @property
    def failures(self) -> int:
        return len(self._failures)

    def check_there(self) -> None:
        """Raise OutputError if the output was deleted under the run: results written after that
        would stand without a record of the run that made them, and the next run refuse them."""
        if not os.path.isdir(self.folder):
            gone = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            raise output_error(self.folder, gone)

    def state(
        self, ref: ImageRef, has_feature: bool, is_whole: Callable[[Line], bool] = lambda line: True
    ) -> State:
        """What is known of an image, given whether its feature file stands, and a way to ask
        whether the files of a record are what it says."""
        if not has_feature:
            return "missing"
        line = self.line(ref.key)
        if line is None:
            return "unrecorded"
        there = (line["source"], line.get("size"), line.get("mtime_ns"))
        if there != (ref.source, ref.size, ref.mtime_ns):
            return "changed"
        return "done" if is_whole(line) else "damaged"

    def line(self, key: str) -> Line | None:
        """The record of a result, if there is one with all that belongs to it."""
        line = self._results.get(key)
        return line if line and is_record(line) else None

    def record(self, lines: Iterable[Line]) -> None:
        """Append finished images, after their files have their names."""
        lines = list(lines)
        self._append(self.results_path, lines)
        self._results.put(lines)
        for line in lines:
            self._failures.drop(line["key"])
            self._failed_now.drop(line["key"])

    def forget(self, key: str) -> None:
        """Say that the record of a key holds no more, once its files are gone and before new ones
        come: a run killed before their line must not leave old digests beside new files."""
        line = {"key": key, "replaced": True}
        self._append(self.results_path, [line])
        self._results.put([line])

    def fail(self, failure: Failure) -> None:
        """Record a failure at once, so that a killed run still tells of it."""
        self._append(self.failures_path, [asdict(failure)])
        self._failures.put([asdict(failure)])
        self._failed_now.put([asdict(failure)])

    def _append(self, path: str, lines: list[Line]) -> None:
        self.lock.check()
        with self._appending:
            append_lines(path, lines)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with self.lock.guard:
                yield
        except OSError as error:
            raise output_error(self.folder, error) from error

    def _begin(self) -> None:
        before = read_run(self.output)
        self._refuse_strangers(before)
        if self._strangeness(before) or (before and before.get("clearing")):
            self._refuse_while_others_work()
            older = _older(before)
            self._write_run(older)  # killed while it removes, the next run goes on removing
            self._remove_results(older)
        self._write_run()
        self._results = LineIndex(self.folder, "results-*.jsonl", self._may_hold_ours)
        self._catch_up()
        self._failures = LineIndex(self.folder, os.path.basename(self.failures_path))
        self._failed_now = LineIndex(self.folder, "")

    def _catch_up(self) -> None:
        """Say again in our file what another one says later of the same key: ours is about to be
        written, and the file last written has the last word."""
        own = os.path.basename(self.results_path)
        others = [name for name in os.listdir(self.folder) if name.startswith("results-")]
        if not any(name != own and self._may_hold_ours(name) for name in others):
            return
        with contextlib.closing(LineIndex(self.folder, own)) as lines:
            for line in lines:
                later = self._results.get(line["key"])
                if later is not None and later != line:
                    self._append(self.results_path, [later])

    def _may_hold_ours(self, name: str) -> bool:
        """Other shards of this split record other images: theirs need not be read."""
        return self.lock.overlaps(_tag_in(name))

    def _remove_results(self, older: list[Fingerprint]) -> None:
        with contextlib.closing(LineIndex(self.folder, "results-*.jsonl")) as results:
            self._clear(self._count(results), (line["key"] for line in results), older)
        for name in os.listdir(self.folder):
            if name.startswith(("results-", "failures")):
                Path(self.folder, name).unlink()

    def _settle_failures(self) -> None:
        """Leave the failures that stand: after a complete run its own, else the older ones too;
        and take this shard's out of files that other splits left."""
        standing = self._failed_now if self.is_complete else self._failures
        rewrite(self.failures_path, standing, self.tag)
        if not self.is_complete:
            return
        with self._guarded():
            for name in sorted(os.listdir(self.folder)):
                is_other = name.startswith("failures") and name != _failures_name(self.tag)
                if is_other and self.lock.overlaps(_tag_in(name)):  # so no living run writes it
                    self._drop_own(os.path.join(self.folder, name))

    def _drop_own(self, path: str) -> None:
        name = os.path.basename(path)
        with (
            contextlib.closing(LineIndex(self.folder, name)) as there,
            contextlib.closing(LineIndex(self.folder, "")) as left,
        ):
            left.put(line for line in there if not is_in_shard(line["key"], self.options.shard))
            if len(left) < len(there):
                rewrite(path, left, self.tag)

    def _refuse_strangers(self, before: dict[str, Any] | None) -> None:
        strangeness = self._strangeness(before)
        if strangeness and not self.options.overwrite:
            raise FingerprintError(f"{printable(self.output)} holds {strangeness}")

    def _strangeness(self, before: dict[str, Any] | None) -> str | None:
        """Why what is there is not this run's, with the way out; None if it is."""
        if before is None:
            return _unknown_files(self.options.taken) if self.options.taken else None
        different = differences(before["fingerprint"], self._fingerprint)
        if different:
            return (
                f"features of other settings: {different}use another --output, or --overwrite to "
                "replace them"
            )
        if before["input"] != self.identity.input and not self.options.moved:
            return (
                f"features of the images in {printable(before['input'])}, not of "
                f"{printable(self.identity.input)}: use another --output, --moved if the images "
                "moved, or --overwrite to replace them"
            )
        return None

    def _refuse_while_others_work(self) -> None:
        others = self.lock.others()
        if others:
            raise LockError(
                f"shard {printable(others[0].replace('-of-', '/'))} of the older run still works "
                f"on {printable(self.output)}: stop it before --overwrite replaces its results"
            )

    def _write_run(self, clearing: list[Fingerprint] | None = None) -> None:
        run: dict[str, Any] = {
            "fingerprint": self._fingerprint,
            "input": self.identity.input,
            "about": dict(self.identity.about),
        }
        if clearing is not None:
            run["clearing"] = clearing or True
        text = json.dumps(run, indent=1) + "\n"
        write_whole(os.path.join(self.folder, "run.json"), [text.encode()], self.tag)


def _older(before: dict[str, Any] | None) -> list[Fingerprint]:
    """The settings whose results are to go: those that stand, and those that a killed run had not
    done with removing."""
    if before is None:
        return []
    left = before.get("clearing")
    return [before["fingerprint"], *(left if isinstance(left, list) else [])]


def _failures_name(tag: str) -> str:
    return "failures.jsonl" if tag == EVERYTHING else f"failures-{tag}.jsonl"


def _tag_in(name: str) -> str:
    """results-1-of-4.jsonl → 1-of-4; failures.jsonl → all."""
    return name.removesuffix(".jsonl").partition("-")[2] or EVERYTHING


def _unknown_files(count: int) -> str:
    return (
        f"files where {count:,} results would go, and no record of the run that made them "
        "(.featprep/run.json). Nothing was touched: use another --output, or --overwrite to "
        "replace them"
    )
