"""Between store and ledger: what is left to do, and what a finished image leaves behind.

`Recorder` is the runner's sink and the reader of earlier runs' results; it prints nothing.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import xxhash

from featprep.batching import Row
from featprep.errors import ImageError
from featprep.journal import Line
from featprep.ledger import Ledger
from featprep.records import AnyArray, Failure, Features, ImageRef, Prepared, Result
from featprep.resolve import Resolved
from featprep.sources import Entry
from featprep.standing import Standing
from featprep.stores.base import Written
from featprep.stores.npy_files import FEATURE, read_array, read_npz
from featprep.stores.npy_tree import MASK, META, VECTORS, NpyTreeStore, layer_file
from featprep.tallies import Tally


def entries_left(
    recorders: Sequence[Recorder], folders: Iterable[list[Entry]]
) -> Iterator[tuple[Entry, tuple[int, ...]]]:
    """What each recorder's run has to encode, by the recorders' numbers, and the failures found on
    the way, which are every run's."""
    for entries in folders:
        refs = [entry for entry in entries if isinstance(entry, ImageRef)]
        found = [
            (recorder, Standing(recorder.store, (ref.key for ref in refs), sweep=True))
            for recorder in recorders
        ]
        for entry in entries:
            left = tuple(
                number
                for number, (recorder, standing) in enumerate(found)
                if recorder.is_left(entry, standing)
            )
            if left:
                yield entry, left


class _Lines(threading.local):
    """What a writer thread has written and not yet recorded."""

    def __init__(self) -> None:
        self.lines: list[Line] = []


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
        self.noted = Tally()
        self.on_replaced: Callable[[], None] = lambda: None
        self._written = _Lines()
        self._stale: set[str] = set()  # on their way: maps of a source that has changed since

    def todo(self, folders: Iterable[list[Entry]]) -> Iterator[Entry]:
        """What this run has to encode, and the failures found on the way."""
        for entry, _ in entries_left([self], folders):
            yield entry

    def is_left(self, entry: Entry, standing: Standing) -> bool:
        """Is there still work on it? Counts what is skipped."""
        if isinstance(entry, Failure) or self._is_left(entry, standing):
            return True
        self.skipped += 1
        return False

    def without_meta(self, folders: Iterable[list[Entry]]) -> Iterator[ImageRef]:
        """Finished images whose metadata file is missing."""
        for entries in folders:
            refs = [entry for entry in entries if isinstance(entry, ImageRef)]
            standing = Standing(self.store, (ref.key for ref in refs))
            for ref in refs:
                state = self.ledger.state(ref, standing.has(ref.key + FEATURE))
                if state == "done" and not standing.has(ref.key + META):
                    yield ref

    def write_meta(self, image: Prepared) -> bool:
        """Metadata for a map that stands, from its record and its source. Was it written?"""
        ref, line = image.ref, self.ledger.line(image.ref.key)
        if line is None or line["sha256"] != image.sha256:
            reason = "changed while the run went on; the next run encodes it again"
            self.fail(Failure(ref.key, ref.source, "read", reason))
            return False
        meta = self._meta(image, line["shape"], line["dtype"], line["notes"])
        try:
            written = self.store.write_meta(ref.key, meta)
        except ImageError as error:
            self.fail(Failure(ref.key, ref.source, error.stage, str(error)))
            return False
        self.ledger.record([line | _files_of(written, line)])
        return True

    def write(self, row: Row) -> None:
        image, features, notes = row
        key, feature = image.ref.key, features.map
        self.ledger.check_there()
        if self.ledger.line(key) is not None:
            self.store.remove(key)
            self.ledger.forget(key)
        shape, dtype = list(feature.shape), self.resolved.want.dtype
        meta = self._meta(image, shape, dtype, notes) if self.store.meta else {}
        result = Result(image.ref, features, image.mask, image.sha256, meta, notes)
        written = self.store.write(key, result)
        self._stale.discard(key)
        noted = _noted(image, notes)
        for note in noted:
            self.noted.add(note)
        self._written.lines.append(_line(image.ref, image.sha256, shape, dtype, written, noted))

    def flush(self) -> None:
        lines, self._written.lines = self._written.lines, []
        if lines:
            self.ledger.record(lines)

    def fail(self, failure: Failure) -> None:
        self.ledger.fail(failure)
        if failure.key in self._stale:  # what stands there is of an image that is no more
            self.store.remove(failure.key)
            self._stale.discard(failure.key)

    def _meta(
        self, image: Prepared, shape: list[int], dtype: str, notes: Iterable[str]
    ) -> dict[str, Any]:
        feature = {"shape": shape, "dtype": dtype, "hidden_dim": shape[0], "grid": shape[1:]}
        own = {"key": image.ref.key, "notes": _noted(image, notes)}
        return {**image.meta, **self.run_meta, **feature, **own}

    def _is_left(self, ref: ImageRef, standing: Standing) -> bool:
        has_feature = standing.has(ref.key + FEATURE)
        state = self.ledger.state(ref, has_feature, standing.is_whole)
        if state == "done":
            return self.overwrite
        if not self.overwrite and state == "unrecorded" and self._adopt(ref, standing):
            return False
        if has_feature:
            self._stale.add(ref.key)
            if not self.overwrite:
                self.on_replaced()
        return True

    def _adopt(self, ref: ImageRef, standing: Standing) -> bool:
        """Record a result whose line was lost: killed between rename and append."""
        key, path = ref.key, self.store.path
        meta = self.store.own_meta(key) if standing.has(key + META) else None
        without = {key + META} if meta is None else set()
        without |= set() if self.store.mask else {key + MASK}
        files = [file for file in self._files(key) if file not in without]
        try:
            if os.stat(path(key + FEATURE)).st_mtime_ns < ref.mtime_ns:
                return False  # the image may have changed since
            features = self._read(key)
            mask = read_array(path(key + MASK)) if self.store.mask else None
            written = {file: _read_again(path(file)) for file in files}
            sha256 = _sha256(ref.path)
        except (OSError, ValueError):
            return False  # not whole or not ours: it is encoded again
        told = meta or {"sha256": sha256, "notes": []}
        if not self._is_ours(features, mask) or told.get("sha256") != sha256:
            return False
        notes = list(told.get("notes", []))
        shape, dtype = list(features.map.shape), str(features.map.dtype)
        self.ledger.record([_line(ref, sha256, shape, dtype, written, notes)])
        return True

    def _files(self, key: str) -> list[str]:
        """In the order they are written; metadata may stand though this run writes none."""
        files = list(self.store.files(key))
        return files if self.store.meta else [files[0], key + META, *files[1:]]

    def _read(self, key: str) -> Features:
        path, first = self.store.path, self.resolved.want.layers[0]
        maps = {first: read_array(path(key + FEATURE))}
        maps |= {layer: read_array(path(layer_file(key, layer))) for layer in self.store.layers}
        return Features(maps, read_npz(path(key + VECTORS)) if self.store.vectors else {})

    def _is_ours(self, features: Features, mask: AnyArray | None) -> bool:
        resolved = self.resolved
        dtype, shape = resolved.want.dtype, resolved.map_shape
        channels = {resolved.want.layers[0]: resolved.channels, **resolved.more_channels}
        for layer, map_ in features.maps.items():
            if map_.dtype != dtype or map_.ndim != 3 or map_.shape[0] != channels[layer]:
                return False
            if map_.shape[1:] != features.map.shape[1:]:
                return False
        if mask is not None and mask.shape != features.map.shape[1:]:
            return False
        has_vectors = set(features.vectors) == set(resolved.vector_sizes)
        return has_vectors and shape in (None, features.map.shape)


def _noted(image: Prepared, notes: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*image.meta["notes"], *notes]))


def _line(
    ref: ImageRef,
    sha256: str,
    shape: list[int],
    dtype: str,
    written: dict[str, Written],
    notes: list[str],
) -> Line:
    return {
        "key": ref.key,
        "source": ref.source,
        "size": ref.size,
        "mtime_ns": ref.mtime_ns,
        "sha256": sha256,
        "shape": shape,
        "dtype": dtype,
        **_files_of(written),
        "notes": notes,
    }


def _files_of(written: dict[str, Written], before: Line | None = None) -> Line:
    """What a line says of its files: `files`, their digests, and `bytes`, their lengths. Of a line
    `before` that records no lengths, those of all its files stay unknown."""
    line = before or {"files": {}, "bytes": {}}
    parts = {"files": {**line["files"], **{file: one.digest for file, one in written.items()}}}
    if isinstance(line.get("bytes"), dict):
        parts["bytes"] = {**line["bytes"], **{file: one.size for file, one in written.items()}}
    return parts


def _read_again(path: str) -> Written:
    digest, size = xxhash.xxh3_128(), 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return Written(digest.hexdigest(), size)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
