"""What a run wrote, read back: a mapping from key to feature, mask and metadata, memory-mapped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

from featprep.errors import InputError
from featprep.journal import LineIndex
from featprep.ledger import folder_of, read_run
from featprep.records import AnyArray
from featprep.stores.npy_tree import NpyTreeStore


class StoredResult(NamedTuple):
    """`feature`: (hidden_dim, grid_h, grid_w) float32 or float16, read-only, memory-mapped. `mask`:
    (grid_h, grid_w) uint8 or float32, or None. `meta`: NAME.json as a dict, or None."""

    feature: AnyArray
    mask: AnyArray | None
    meta: dict[str, Any] | None


class Run(Mapping[str, StoredResult]):
    """A folder of results. Nothing is read before it is asked for; keys come in byte order."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        run = read_run(self.path)
        if run is None:
            raise InputError(f"{self.path}: no featprep run here (no .featprep/run.json in it)")
        self.fingerprint: dict[str, Any] = run["fingerprint"]
        self.input: str = run.get("input", "")
        self._store = NpyTreeStore(self.path)

    def __getitem__(self, key: str) -> StoredResult:
        return StoredResult(*self._store.read(key))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._store.done(key)

    def __iter__(self) -> Iterator[str]:
        return self._store.keys()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def record(self, key: str) -> dict[str, Any] | None:
        """The ledger's line of a key: source, sizes, digests (stores/README.md), or None."""
        results = LineIndex(folder_of(self.path), "results-*.jsonl")
        try:
            return results.get(key)
        finally:
            results.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close: each array holds its own mapping."""


def open_run(path: str | os.PathLike[str]) -> Run:
    """`featprep.open`: the results below `path`. Raises InputError if no run wrote there."""
    return Run(path)
