"""The default store: one .npy a map, mirroring the input tree. README.md has it byte for byte.

OUT/a/b_mask.npy   written first
OUT/a/b.json       then, with --save_meta
OUT/a/b@5.npy      then the maps of further layers, with --layer 11,5
OUT/a/b_vec.npz    then, with --prefix, --pooled or --masked_pool
OUT/a/b.npy        last: an image is done when its feature file stands
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from featprep.errors import ImageError
from featprep.naming import RESERVED, is_reserved, printable, sort_key
from featprep.records import AnyArray, Result
from featprep.stores.base import (
    EVERYTHING,
    Parts,
    Written,
    is_temporary,
    output_error,
    put_whole,
    result_error,
)
from featprep.stores.npy_files import FEATURE, npy, npz, read_array, read_json, read_npz

MASK, META, VECTORS = "_mask.npy", ".json", "_vec.npz"
_REMEMBERED = 1000  # folders; a data set may have one an image


class NpyTreeStore:
    """Feature maps as a tree of .npy files below `root`."""

    def __init__(
        self,
        root: str,
        *,
        mask: bool = True,
        meta: bool = False,
        layers: Sequence[int] = (),
        vectors: bool = False,
        tag: str = EVERYTHING,
    ) -> None:
        """`layers`: those beside the first one. `tag` names the shard that writes; temporary files
        carry it."""
        self.root, self.mask, self.meta, self.tag = root, mask, meta, tag
        self.layers, self.vectors = tuple(sorted(layers)), vectors
        self._before = os.path.join(root, "")
        self._real_root = os.path.realpath(root)
        self._inside: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close: every file is whole when it has its name."""

    def files(self, key: str) -> tuple[str, ...]:
        """See Store. The mask's name is taken even where none is written: beside `x.npy`, a reader
        would take the map of an image called `x_mask` for the mask of `x`."""
        return (
            key + MASK,
            *((key + META,) * self.meta),
            *(layer_file(key, layer) for layer in self.layers),
            *((key + VECTORS,) * self.vectors),
            key + FEATURE,
        )

    def path(self, file: str) -> str:
        return self._before + file

    def write(self, key: str, result: Result) -> dict[str, Written]:
        """See Store. An older feature file of this key goes first, so that no mask ever stands
        beside a map it was not made with."""
        self._check_inside(key)
        self._unlink(key + FEATURE)
        written: dict[str, Written] = {}
        if self.mask and result.mask is not None:
            written |= self._write(key + MASK, npy(result.mask))
        if self.meta:
            written |= self.write_meta(key, dict(result.meta))
        for layer in self.layers:
            written |= self._write(layer_file(key, layer), npy(result.features.maps[layer]))
        if self.vectors:
            written |= self._write(key + VECTORS, npz(result.features.vectors))
        return written | self._write(key + FEATURE, npy(result.features.map))

    def write_meta(self, key: str, meta: dict[str, Any]) -> dict[str, Written]:
        """See Store. Annotations often lie beside their images as NAME.json, and the output may be
        the input: a file that is not ours is left alone, and that is the image's failure."""
        self._check_inside(key)
        if os.path.lexists(self.path(key + META)) and self.own_meta(key) is None:
            name = printable(os.path.basename(key) + META)
            raise ImageError(f"{name} is there and not featprep's: use another --output", "store")
        text = json.dumps(meta, indent=1, sort_keys=True) + "\n"
        return self._write(key + META, [text.encode()])

    def done(self, key: str) -> bool:
        """Does a map of this key stand? A mask beside its map is none, nor is a further layer."""
        if is_reserved(key) or not self._stands(key + FEATURE):
            return False
        return not self._is_layer(key) and not (key.endswith("_mask") and self._is_mask(key))

    def read(self, key: str) -> tuple[AnyArray, AnyArray | None, dict[str, Any] | None]:
        if not self.done(key):
            raise KeyError(key)
        mask, meta = self.path(key + MASK), self.path(key + META)
        return (
            read_array(self.path(key + FEATURE)),
            read_array(mask) if os.path.exists(mask) else None,
            read_json(meta) if os.path.exists(meta) else None,
        )

    def read_layers(self, key: str) -> dict[int, AnyArray]:
        """The maps of further layers, memory-mapped. Raises as `read`, and OSError."""
        if not self.done(key):
            raise KeyError(key)
        return {layer: read_array(self.path(layer_file(key, layer))) for layer in self.layers}

    def read_vectors(self, key: str) -> dict[str, AnyArray] | None:
        """NAME_vec.npz, in memory, or None where the run wrote none. Raises as `read_layers`."""
        if not self.done(key):
            raise KeyError(key)
        return read_npz(self.path(key + VECTORS)) if self.vectors else None

    def keys(self) -> Iterator[str]:
        """Keys by byte order within each folder, files before subfolders."""
        stack = [""]
        while stack:
            folder = stack.pop()
            with os.scandir(self.path(folder) if folder else self.root) as listing:
                entries = sorted(listing, key=lambda entry: sort_key(entry.name))
            names = {entry.name for entry in entries if entry.is_file()}
            yield from (f"{folder}{stem}" for stem in self._stems(folder, names))
            below = [e for e in entries if e.is_dir(follow_symlinks=False)]
            stack.extend(
                f"{folder}{entry.name}/"
                for entry in reversed(below)
                if folder or entry.name != RESERVED
            )

    def remove(self, key: str) -> None:
        """See Store. A key that could not have been written has no result."""
        if self.leads_out(key):
            return
        self._unlink(key + FEATURE)
        if self.own_meta(key) is not None:
            self._unlink(key + META)
        for file in self.files(key):
            if file not in (key + FEATURE, key + META):
                self._unlink(file)

    def own_meta(self, key: str) -> dict[str, Any] | None:
        """NAME.json, if it stands and featprep wrote it."""
        try:
            meta = read_json(self.path(key + META))
        except (OSError, ValueError, RecursionError):
            return None
        return meta if meta.get("key") == key and {"format", "encoder"} <= meta.keys() else None

    def list_folder(self, folder: str, *, sweep: bool = False) -> set[str]:
        """Names that stand in a folder of the output; none if it is not there. `sweep` removes what
        a killed run of this shard had not renamed: only for who holds its lock."""
        path = self.path(folder) if folder else self.root
        try:
            names = set(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except OSError as error:
            raise output_error(path, error, "list") from error
        if sweep and not self.leads_out(f"{folder}/x" if folder else "x"):
            for name in names:
                if is_temporary(name, self.tag):
                    self._unlink(f"{folder}/{name}" if folder else name)
        return names

    def _write(self, file: str, parts: Parts) -> dict[str, Written]:
        try:
            return {file: put_whole(self.path(file), parts, self.tag)}
        except OSError as error:
            raise result_error(self.path(file), error) from error

    def _unlink(self, file: str) -> None:
        try:
            os.unlink(self.path(file))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return
        except OSError as error:
            raise result_error(self.path(file), error) from error

    def _check_inside(self, key: str) -> None:
        if is_reserved(key):
            raise ImageError("its key names no place in the output; rename the image", "store")
        if self.leads_out(key):
            raise ImageError("a link in the output leads outside it; remove the link", "store")

    def leads_out(self, key: str) -> bool:
        """No key and no linked folder in the output may carry results out of it."""
        folder = key.rpartition("/")[0]
        if is_reserved(key):
            return True
        if folder in self._inside:
            return False
        real = os.path.realpath(self.path(folder) if folder else self.root)
        if real != self._real_root and not real.startswith(self._real_root.rstrip("/") + "/"):
            return True
        if len(self._inside) >= _REMEMBERED:
            self._inside.clear()
        self._inside.add(folder)
        return False

    def _stems(self, folder: str, names: set[str]) -> list[str]:
        stems = {name[: -len(FEATURE)] for name in names if name.endswith(FEATURE)}
        maps = [
            stem
            for stem in stems
            if not stem.startswith("._")  # what macOS leaves beside files on foreign disks
            and not self._is_layer(folder + stem, lambda file: file[len(folder) :] in names)
            and not (stem.endswith("_mask") and self._is_mask(folder + stem))
        ]
        return sorted(maps, key=sort_key)

    def _stands(self, file: str) -> bool:
        return os.path.exists(self.path(file))

    def _is_layer(self, key: str, stands: Callable[[str], bool] | None = None) -> bool:
        """`x@5.npy` beside `x.npy` is a layer of it; alone, it is the map of an image called `x@5`
        if that one's own layers stand, else what a killed run left."""
        stem, _, layer = key.rpartition("@")
        if not stem or layer not in map(str, self.layers):
            return False
        stands = stands or self._stands
        return stands(stem + FEATURE) or not all(
            stands(layer_file(key, further)) for further in self.layers
        )

    def _is_mask(self, key: str) -> bool:
        """`x_mask.npy` beside `x.npy` is a mask, and so is one that a killed run left alone."""
        if self._stands(key.removesuffix("_mask") + FEATURE):
            return True
        try:
            return read_array(self.path(key + FEATURE)).ndim == 2
        except (OSError, ValueError):
            return False


def layer_file(key: str, layer: int) -> str:
    return f"{key}@{layer}{FEATURE}"
