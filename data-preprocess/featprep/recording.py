"""Between store and ledger: what is left to do, and what a finished image leaves behind.

`Recorder` is the runner's sink and the reader of earlier runs' results; it prints nothing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import xxhash

from featprep.batching import Row
from featprep.journal import Line
from featprep.ledger import Ledger
from featprep.records import AnyArray, Failure, ImageRef, Prepared, Result
from featprep.resolve import Resolved
from featprep.sources import Entry
from featprep.stores.npy_tree import FEATURE, MASK, META, NpyTreeStore


def count_done(store: NpyTreeStore, keys: list[str]) -> int:
    """How many of one folder's keys have a feature file; one listing where they share a folder."""
    standing = Standing(store, keys)
    return sum(standing.has(key + FEATURE) for key in keys)


class Standing:
    """Which files of the output stand. The keys of a walked folder share one folder of the output,
    whose listing costs less than a question a file; a list's keys may lie anywhere."""

    def __init__(self, store: NpyTreeStore, keys: Iterable[str]) -> None:
        self._store = store
        folders = {key.rpartition("/")[0] for key in keys}
        self._names = store.list_folder(folders.pop()) if len(folders) == 1 else None

    def has(self, file: str) -> bool:
        if self._names is None:
            return os.path.exists(self._store.path(file))
        return file.rpartition("/")[2] in self._names


class Recorder:
    """Takes rows from the runner into store and ledger; knows which images are done."""

    def __init__(
        self,
        store: NpyTreeStore,
        ledger: Ledger,
        run_meta: dict[str, Any],
        resolved: Resolved,
        *,
        overwrite: bool = False,
    ) -> None:
        self.store, self.ledger, self.run_meta = store, ledger, run_meta
        self.resolved, self.overwrite = resolved, overwrite
        self.skipped = 0
        self.on_replaced: Callable[[], None] = lambda: None
        self._lines: list[Line] = []
        self._stale: set[str] = set()  # on their way: maps of a source that has changed since

    def todo(self, folders: Iterable[list[Entry]]) -> Iterator[Entry]:
        """What this run has to encode, and the failures found on the way."""
        for entries in folders:
            refs = [entry for entry in entries if isinstance(entry, ImageRef)]
            standing = Standing(self.store, (ref.key for ref in refs))
            for entry in entries:
                if isinstance(entry, Failure) or self._is_left(entry, standing):
                    yield entry
                else:
                    self.skipped += 1

    def without_meta(self, folders: Iterable[list[Entry]]) -> Iterator[ImageRef]:
        """Finished images whose metadata file is missing."""
        for entries in folders:
            refs = [entry for entry in entries if isinstance(entry, ImageRef)]
            standing = Standing(self.store, (ref.key for ref in refs))
            for ref in refs:
                state = self.ledger.state(ref, standing.has(ref.key + FEATURE))
                if state == "done" and not standing.has(ref.key + META):
                    yield ref

    def write_meta(self, image: Prepared) -> None:
        """Metadata for a map that stands, from its record and its source."""
        line = dict(self.ledger.line(image.ref.key) or {})
        meta = self._meta(image, line["shape"], line["dtype"], line["notes"])
        line["files"] = {**line["files"], **self.store.write_meta(image.ref.key, meta)}
        self.ledger.record([line])

    def write(self, row: Row) -> None:
        image, feature, notes = row
        meta = self._meta(image, list(feature.shape), str(feature.dtype), notes)
        result = Result(image.ref, feature, image.mask, image.sha256, meta, notes)
        digests = self.store.write(image.ref.key, result)
        self._stale.discard(image.ref.key)
        self._lines.append(
            _line(image.ref, image.sha256, feature, digests, [*image.meta["notes"], *notes])
        )

    def flush(self) -> None:
        if self._lines:
            self.ledger.record(self._lines)
            self._lines = []

    def fail(self, failure: Failure) -> None:
        self.ledger.fail(failure)
        if failure.key in self._stale:  # what stands there is of an image that is no more
            self.store.remove(failure.key)
            self._stale.discard(failure.key)

    def _meta(
        self, image: Prepared, shape: list[int], dtype: str, notes: Iterable[str]
    ) -> dict[str, Any]:
        feature = {"shape": shape, "dtype": dtype, "hidden_dim": shape[0], "grid": shape[1:]}
        noted = list(dict.fromkeys([*image.meta["notes"], *notes]))
        return {"key": image.ref.key, **image.meta, **self.run_meta, **feature, "notes": noted}

    def _is_left(self, ref: ImageRef, standing: Standing) -> bool:
        has_feature = standing.has(ref.key + FEATURE)
        if self.overwrite:
            return True
        state = self.ledger.state(ref, has_feature)
        if state == "unrecorded" and self._adopt(ref, standing):
            return False
        if state == "changed":
            self._stale.add(ref.key)
        if has_feature and state != "done":
            self.on_replaced()
        return state != "done"

    def _adopt(self, ref: ImageRef, standing: Standing) -> bool:
        """Record a result whose line was lost: killed between rename and append."""
        files = [ref.key + FEATURE]
        files += [ref.key + MASK] * self.store.mask
        files += [ref.key + META] * standing.has(ref.key + META)
        try:
            feature = np.load(self.store.path(files[0]), mmap_mode="r", allow_pickle=False)
            digests = {file: _digest(self.store.path(file)) for file in files}
            sha256 = _sha256(ref.path)
        except (OSError, ValueError):
            return False  # not whole or not ours: it is encoded again
        if not self._is_ours(feature):
            return False
        self.ledger.record([_line(ref, sha256, feature, digests, [])])
        return True

    def _is_ours(self, feature: AnyArray) -> bool:
        want, shape = self.resolved.want.dtype, self.resolved.map_shape
        if feature.dtype != want or feature.ndim != 3:
            return False
        return feature.shape[0] == self.resolved.channels and shape in (None, feature.shape)


def _line(
    ref: ImageRef, sha256: str, feature: AnyArray, digests: dict[str, str], notes: list[str]
) -> Line:
    return {
        "key": ref.key,
        "source": ref.source,
        "size": ref.size,
        "mtime_ns": ref.mtime_ns,
        "sha256": sha256,
        "shape": list(feature.shape),
        "dtype": str(feature.dtype),
        "files": digests,
        "notes": notes,
    }


def _digest(path: str) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
