"""Which files of an output stand, and whether each is as long as it was written: cheap questions,
asked of every image before a run. Reads no file of a result.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from featprep.journal import Line, LineIndex
from featprep.ledger import folder_of
from featprep.records import ImageRef
from featprep.sources import Source
from featprep.stores.npy_files import FEATURE
from featprep.stores.npy_tree import META, NpyTreeStore


def count_done(store: NpyTreeStore, keys: list[str]) -> tuple[int, int]:
    """How many of one folder's keys have a feature file, and how many any file of a result."""
    standing = Standing(store, keys)
    done = sum(standing.has(key + FEATURE) for key in keys)
    return done, sum(any(map(standing.has, store.files(key))) for key in keys)


def count_changed(store: NpyTreeStore, source: Source) -> tuple[int, int]:
    """How many images with a result differ in size or time from when it was made, and how many of
    the others have a result that is no longer whole."""
    results = LineIndex(folder_of(store.root), "results-*.jsonl")
    changed = damaged = 0
    for entries in source.folders() if len(results) else ():
        refs = [entry for entry in entries if isinstance(entry, ImageRef)]
        standing = Standing(store, (ref.key for ref in refs))
        for ref in refs:
            line = results.get(ref.key)
            if line is None or not standing.has(ref.key + FEATURE):
                continue
            is_same = (line.get("size"), line.get("mtime_ns")) == (ref.size, ref.mtime_ns)
            changed += not is_same
            damaged += is_same and not standing.is_whole(line)
    results.close()
    return changed, damaged


class Standing:
    """Which files of the output stand. The keys of a walked folder share one folder of the output,
    whose listing costs less than a question a file; a list's keys may lie anywhere."""

    def __init__(self, store: NpyTreeStore, keys: Iterable[str], *, sweep: bool = False) -> None:
        """`sweep`: see NpyTreeStore.list_folder."""
        self._store = store
        folders = {key.rpartition("/")[0] for key in keys}
        self._names: set[str] | None = None
        if len(folders) == 1 or sweep:
            for folder in folders:
                names = store.list_folder(folder, sweep=sweep)
                self._names = names if len(folders) == 1 else None

    def has(self, file: str) -> bool:
        if self._names is None:
            return os.path.exists(self._store.path(file))
        return file.rpartition("/")[2] in self._names

    def is_whole(self, line: Line) -> bool:
        """Do the files of a record stand, each as long as it was written? A question a file, and
        no byte read: what has the right length is left to `featprep verify`. Metadata is people's
        to edit and to remove; lines of older versions record no lengths."""
        sizes = line.get("bytes")
        if not isinstance(sizes, dict):
            return True
        path = self._store.path
        try:
            for file, size in sizes.items():
                if not file.endswith(META) and os.stat(path(file)).st_size != size:
                    return False
        except OSError:
            return False
        return True
