"""How far an output is: what is done, failed and pending, in which settings, how large, whose lock.

Reads records, names and sizes, and no result. Prints nothing and changes nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from featprep.errors import UsageError
from featprep.images import SUFFIXES
from featprep.journal import LineIndex
from featprep.ledger import folder_of, is_record
from featprep.lock import RunLock, title_of
from featprep.records import ImageRef
from featprep.runs import Run
from featprep.sources import Selection, Source
from featprep.standing import Standing
from featprep.stores.npy_files import FEATURE
from featprep.tallies import Tally


@dataclass(slots=True)
class Images:
    """What the input holds now, each image counted once."""

    done: int = 0
    again: int = 0  # with a result, of an image that changed since or with a file cut short
    failed: int = 0
    pending: int = 0


@dataclass(slots=True)
class Status:
    """Of one output. `images` is None, and `trouble` says why, where the input cannot be listed.
    `results`: recorded ones whose map stands. `failures`: (stage, reason) → how many, digits that
    differ left out of the comparison; `notes`: likewise, of the results. `last`: seconds since the
    epoch."""

    fingerprint: dict[str, Any]
    input: str
    about: dict[str, Any]
    results: int = 0
    failures: Counter[tuple[str, ...]] = field(default_factory=Counter)
    notes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    images: Images | None = None
    trouble: str = ""
    files: int = 0
    size: int = 0
    last: float | None = None
    holders: list[str] = field(default_factory=list)


def read_status(output: str) -> Status:
    """Raises InputError where no run wrote, FingerprintError where run.json is damaged."""
    run = Run(output)
    status = Status(run.fingerprint, run.input, run.about)
    status.files, status.size = _disk(output)
    holders = RunLock(folder_of(output)).holders()
    status.holders = [f"{title_of(holder)}, shard {tag}" for tag, holder, lives in holders if lives]
    with (
        closing(LineIndex(folder_of(output), "results-*.jsonl")) as results,
        closing(LineIndex(folder_of(output), "failures*.jsonl")) as failures,
    ):
        status.last = _last(output)
        status.results, status.notes = _recorded(run, results)
        status.failures = _failed(failures)
        try:
            status.images = _images(run, results, failures)
        except (UsageError, OSError, ValueError) as error:  # ValueError: a name with a NUL
            status.trouble = str(error)
    return status


def _images(run: Run, results: LineIndex, failures: LineIndex) -> Images:
    found = Images()
    for entries in _source(run).folders():
        refs = [entry for entry in entries if isinstance(entry, ImageRef)]
        standing = Standing(run.store, (ref.key for ref in refs))
        for ref in refs:
            line = results.get(ref.key)
            if standing.has(ref.key + FEATURE):
                there = (line or {}).get("size"), (line or {}).get("mtime_ns")
                is_same = line is None or there == (ref.size, ref.mtime_ns)
                is_done = is_same and (line is None or standing.is_whole(line))
                found.done += is_done
                found.again += not is_done
            else:
                is_failed = failures.get(ref.key) is not None
                found.failed += is_failed
                found.pending += not is_failed
        found.failed += len(entries) - len(refs)
    return found


def _source(run: Run) -> Source:
    """The images of all shards, as the run lists them."""
    masks = run.fingerprint.get("mask_dir")
    excluded = {os.path.realpath(masks)} if isinstance(masks, str) else set()
    selection = Selection(
        suffixes=SUFFIXES,
        outputs=run.store.files,
        names=run.fingerprint.get("names", "stem"),
        excluded=frozenset(excluded - {os.path.realpath(run.input)}),
    )
    return Source(run.input, selection)


def _recorded(run: Run, results: LineIndex) -> tuple[int, Counter[tuple[str, ...]]]:
    """Of the results whose map stands: how many, and what is noted of them."""
    count, notes = 0, Tally()
    for line in results:
        if is_record(line) and os.path.exists(run.store.path(line["key"] + FEATURE)):
            count += 1
            for note in line["notes"]:
                notes.add(str(note))
    return count, notes.counts()


def _failed(failures: LineIndex) -> Counter[tuple[str, ...]]:
    """(stage, reason) → how many."""
    tally = Tally()
    for line in failures:
        tally.add(str(line.get("stage")), str(line.get("reason")))
    return tally.counts()


def _disk(output: str) -> tuple[int, int]:
    """(files, bytes) of everything there, the ledger's too."""
    files = size = 0
    for folder, _, names in os.walk(output):
        for name in names:
            try:
                size += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # gone since it was listed
                continue
            files += 1
    return files, size


def _last(output: str) -> float | None:
    """When a result was last recorded, by the file system's clock."""
    with os.scandir(folder_of(output)) as listing:
        names = [entry for entry in listing if entry.name.startswith("results-")]
        return max((entry.stat().st_mtime for entry in names), default=None)
