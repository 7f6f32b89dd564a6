"""The default store: one .npy a map, mirroring the input tree. README.md has it byte for byte.

OUT/a/b_mask.npy   written first
OUT/a/b.json       then, with --save_meta
OUT/a/b.npy        last: an image is done when its feature file stands
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np

from featprep.errors import ImageError
from featprep.records import AnyArray, Result
from featprep.stores.base import EVERYTHING, is_temporary, output_error, write_whole

FEATURE, MASK, META = ".npy", "_mask.npy", ".json"


class NpyTreeStore:
    """Feature maps as a tree of .npy files below `root`."""

    def __init__(
        self, root: str, *, mask: bool = True, meta: bool = False, tag: str = EVERYTHING
    ) -> None:
        """`tag` names the shard that writes; temporary files carry it."""
        self.root, self.mask, self.meta, self.tag = root, mask, meta, tag
        self._real_root = os.path.realpath(root)
        self._inside: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to close: every file is whole when it has its name."""

    def files(self, key: str) -> tuple[str, ...]:
        mask = (key + MASK,) * self.mask
        return (*mask, *((key + META,) * self.meta), key + FEATURE)

    def path(self, file: str) -> str:
        return os.path.join(self.root, *file.split("/"))

    def write(self, key: str, result: Result) -> dict[str, str]:
        """See Store. An older feature file of this key goes first, so that no mask ever stands
        beside a map it was not made with."""
        self._check_inside(key)
        self._unlink(key + FEATURE)
        digests = {}
        if self.mask and result.mask is not None:
            digests[key + MASK] = self._write_array(key + MASK, result.mask)
        if self.meta:
            digests |= self.write_meta(key, dict(result.meta))
        digests[key + FEATURE] = self._write_array(key + FEATURE, result.feature)
        return digests

    def write_meta(self, key: str, meta: dict[str, Any]) -> dict[str, str]:
        self._check_inside(key)
        text = json.dumps(meta, indent=1, sort_keys=True) + "\n"
        return {key + META: self._write(key + META, [text.encode()])}

    def done(self, key: str) -> bool:
        return os.path.exists(self.path(key + FEATURE))

    def read(self, key: str) -> tuple[AnyArray, AnyArray | None, dict[str, Any] | None]:
        if not self.done(key):
            raise KeyError(key)
        mask, meta = self.path(key + MASK), self.path(key + META)
        return (
            _load(self.path(key + FEATURE)),
            _load(mask) if os.path.exists(mask) else None,
            read_json(meta) if os.path.exists(meta) else None,
        )

    def keys(self) -> Iterator[str]:
        """Keys by byte order within each folder. `x_mask.npy` beside `x.npy` is a mask."""
        stack = [""]
        while stack:
            folder = stack.pop()
            with os.scandir(self.path(folder) if folder else self.root) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
            names = {entry.name for entry in entries if entry.is_file()}
            yield from (f"{folder}{name}" for name in _feature_stems(names))
            below = [e for e in entries if e.is_dir(follow_symlinks=False) and e.name[0] != "."]
            stack.extend(f"{folder}{entry.name}/" for entry in reversed(below))

    def remove(self, key: str) -> None:
        self._check_inside(key)
        for suffix in (FEATURE, META, MASK):
            self._unlink(key + suffix)

    def list_folder(self, folder: str) -> set[str]:
        """Names that stand in a folder of the output; temporary files that a killed run of this
        shard left are removed. A folder that is not there has none."""
        path = self.path(folder) if folder else self.root
        try:
            names = set(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except OSError as error:
            raise output_error(path, error) from error
        left = {name for name in names if is_temporary(name, self.tag)}
        for name in left:
            self._unlink(f"{folder}/{name}" if folder else name)
        return names - left

    def _write_array(self, file: str, array: AnyArray) -> str:
        header = io.BytesIO()
        array = np.ascontiguousarray(array)
        np.lib.format.write_array_header_1_0(
            header, np.lib.format.header_data_from_array_1_0(array)
        )
        return self._write(file, [header.getvalue(), array.data.cast("B")])

    def _write(self, file: str, parts: list[bytes | memoryview]) -> str:
        return write_whole(self.path(file), parts, self.tag)

    def _unlink(self, file: str) -> None:
        try:
            os.unlink(self.path(file))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise output_error(self.path(file), error) from error

    def _check_inside(self, key: str) -> None:
        """A linked folder in the output must not carry results out of it."""
        folder = key.rpartition("/")[0]
        if folder in self._inside:
            return
        real = os.path.realpath(self.path(folder) if folder else self.root)
        if real != self._real_root and not real.startswith(self._real_root.rstrip("/") + "/"):
            raise ImageError("a link in the output leads outside it; remove the link", "store")
        self._inside.add(folder)


def _feature_stems(names: set[str]) -> list[str]:
    stems = {name[: -len(FEATURE)] for name in names if name.endswith(FEATURE) and name[0] != "."}
    ours = [s for s in stems if not (s.endswith("_mask") and s[: -len("_mask")] in stems)]
    return sorted(ours, key=os.fsencode)


def _load(path: str) -> AnyArray:
    array: AnyArray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def read_json(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        loaded: dict[str, Any] = json.load(file)
    return loaded
