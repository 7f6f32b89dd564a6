"""What a run wrote, read back: a mapping from key to feature, mask and metadata, memory-mapped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

from featprep.errors import InputError
from featprep.journal import LineIndex
from featprep.ledger import folder_of, read_run
from featprep.naming import RESERVED, printable
from featprep.records import AnyArray
from featprep.resolve import has_vectors, layers_of
from featprep.stores.npy_tree import NpyTreeStore


class _Triple(NamedTuple):
    feature: AnyArray
    mask: AnyArray | None
    meta: dict[str, Any] | None


class StoredResult(_Triple):
    """`feature`: (hidden_dim, grid_h, grid_w) float32 or float16, read-only, memory-mapped. `mask`:
    (grid_h, grid_w) uint8 or float32, or None. `meta`: NAME.json as a dict, or None.

    Unpacks into these three. `layers` and `vectors` are read when they are first asked for, and
    raise ValueError where a file of them is damaged, OSError where it is gone.
    """

    _run: Run
    _key: str

    @cached_property
    def layers(self) -> Mapping[int, AnyArray]:
        """Layer, counted from 0 → its map, memory-mapped; that of `feature` first."""
        first = self._run.layers[:1]
        return dict.fromkeys(first, self.feature) | self._run.store.read_layers(self._key)

    @cached_property
    def vectors(self) -> Mapping[str, AnyArray] | None:
        """NAME_vec.npz: `prefix` (P, C), CLS first, `pooled` (D,), `masked` (C,) and `masked@L`,
        `empty` (a bool: no cell was set), as far as the run took them; None if it took none."""
        return self._run.store.read_vectors(self._key)


class Run(Mapping[str, StoredResult]):
    """A folder of results. Nothing is read before it is asked for; keys come in byte order."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        run = read_run(self.path)
        if run is None:
            missing = f"no featprep run here (no .featprep/run.json in it){_below(self.path)}"
            raise InputError(f"{self.path}: {missing}")
        self.fingerprint: dict[str, Any] = run["fingerprint"]
        self.input: str = run.get("input", "")
        self.about: dict[str, Any] = run.get("about", {})
        self.layers = layers_of(self.fingerprint)
        self.store = NpyTreeStore(
            self.path, layers=self.layers[1:], vectors=has_vectors(self.fingerprint)
        )

    def __getitem__(self, key: str) -> StoredResult:
        result = StoredResult(*self.store.read(key))
        result._run, result._key = self, key
        return result

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.store.done(key)

    def __iter__(self) -> Iterator[str]:
        return self.store.keys()

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


def outputs_in(path: str) -> list[tuple[str, str]]:
    """(title, folder) of every output there: of one encoder the folder itself, without a title;
    of several each one's folder, by its name. Raises InputError where no run wrote."""
    if read_run(path) is not None:
        return [("", path)]
    names = _encoder_folders(path)
    if not names:
        Run(path)  # which says why not
    return [(name, os.path.join(path, name)) for name in names]


def _below(path: str) -> str:
    """The way on from the output of several encoders."""
    names = _encoder_folders(path)
    return f"; give one encoder's folder in it: {', '.join(map(printable, names))}" if names else ""


def _encoder_folders(path: str) -> list[str]:
    return sorted(run.parent.parent.name for run in Path(path).glob(f"*/{RESERVED}/run.json"))


def open_run(path: str | os.PathLike[str]) -> Run:
    """`featprep.open`: the results below `path`. Raises InputError if no run wrote there."""
    return Run(path)
