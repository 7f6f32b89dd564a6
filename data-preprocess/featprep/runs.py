"""What a run wrote, read back: a mapping from key to feature, mask and metadata, memory-mapped."""

from __future__ import annotations

import difflib
import itertools
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

_SEARCHED = 10_000  # keys, for the nearest to one that there is not


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

    def __repr__(self) -> str:
        mask = "no mask" if self.mask is None else f"mask {_array_text(self.mask)}"
        meta = "no metadata" if self.meta is None else "metadata"
        return f"<result {self._key}: map {_array_text(self.feature)}, {mask}, {meta}>"


class NoSuchKeyError(KeyError):
    """Of a run; the nearest keys are looked for when they are read."""

    def __init__(self, run: Run, key: str) -> None:
        super().__init__(key)
        self._run = run

    def __str__(self) -> str:
        key: str = self.args[0]
        return f"{self._run.path}: no result of key {key!r}.{self._run.nearest(key)}"


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
        self.about: dict[str, Any] = run.get("about") or {}  # for people: device, versions …
        self.layers = layers_of(self.fingerprint)
        self.store = NpyTreeStore(
            self.path, layers=self.layers[1:], vectors=has_vectors(self.fingerprint)
        )

    def __getitem__(self, key: str) -> StoredResult:
        try:
            result = StoredResult(*self.store.read(key))
        except KeyError:
            raise NoSuchKeyError(self, key) from None
        result._run, result._key = self, key
        return result

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.store.done(key)

    def __iter__(self) -> Iterator[str]:
        return self.store.keys()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def nearest(self, key: str) -> str:
        """' Did you mean X?', up to three keys: of the same file name, else alike; or nothing."""
        keys = list(itertools.islice(self, _SEARCHED))
        names = {os.path.basename(key), os.path.splitext(os.path.basename(key))[0]}
        alike = [there for there in keys if os.path.basename(there) in names][:3]
        alike = alike or difflib.get_close_matches(key, keys, n=3, cutoff=0.6)
        return f" Did you mean {' or '.join(map(printable, alike))}?" if alike else ""

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
        self.close()

    def close(self) -> None:
        """Nothing to close: each array holds its own mapping."""

    def __repr__(self) -> str:
        layers = ",".join(map(str, self.layers))
        return f"<featprep run {self.path}: {self.fingerprint.get('encoder')}, layer {layers}>"


def _array_text(array: AnyArray) -> str:
    return f"({', '.join(map(str, array.shape))}) {array.dtype}"


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
