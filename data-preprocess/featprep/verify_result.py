"""Is one result what its record says? Each file of it: there, as long, openable, of the recorded
shape and type, in agreement with the others; with `deep` every byte and every value too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash

from featprep.journal import Line
from featprep.naming import is_reserved
from featprep.records import AnyArray
from featprep.resolve import has_vectors, layers_of
from featprep.stores.npy_files import FEATURE, read_array, read_json, read_npz
from featprep.stores.npy_tree import MASK, META, VECTORS, layer_file

Kind = Literal["damaged", "unrecorded", "temporary", "run"]
_MASK_DTYPE = {"any": "uint8", "coverage": "float32"}
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """What is not as it should be. `file`: below the output. `key`: of the result that is damaged,
    empty for a file of none."""

    kind: Kind
    file: str
    text: str
    key: str = ""


class WrongFileError(Exception):
    """Why a file is not what its record says."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run's settings promise of every result."""

    storage: str | None  # of maps; None: not known
    mask: str  # any, coverage or none
    layers: tuple[int, ...]  # beside the first
    vectors: frozenset[str]
    about: Mapping[str, Any]  # what its metadata repeats of the run

    def files(self, key: str) -> list[str]:
        """In the order they are written; metadata may stand or not."""
        return [
            *([key + MASK] if self.mask != "none" else []),
            *(layer_file(key, layer) for layer in self.layers),
            *([key + VECTORS] if self.vectors else []),
            key + FEATURE,
        ]


def expected_of(fingerprint: Mapping[str, Any]) -> Expected:
    layers = tuple(sorted(layers_of(fingerprint)[1:]))
    masked = ["masked", *(f"masked@{layer}" for layer in layers), "empty"]
    names = [name for name in ("prefix", "pooled") if fingerprint.get(name)]
    names += masked if fingerprint.get("masked_pool") else []
    about = {name: fingerprint.get(name) for name in ("format", "encoder", "weights")}
    vectors = frozenset(names if has_vectors(fingerprint) else ())
    mask = str(fingerprint.get("mask", "any"))
    return Expected(fingerprint.get("storage"), mask, layers, vectors, about)


def check_result(root: str, line: Line, expected: Expected, *, deep: bool) -> Iterator[Finding]:
    """What is wrong with the result of a record, at most one finding a file."""
    key, files = line["key"], line["files"]
    if is_reserved(key):
        yield Finding("damaged", key + FEATURE, "its record names no place in the output", key)
        return
    missing = [file for file in expected.files(key) if file not in files]
    for file in missing:
        yield Finding("damaged", file, "its record does not name it", key)
    if not _is_shape(line["shape"]) or expected.storage not in (None, line["dtype"]):
        what = f"{_shown(line['shape'])} {_shown(line['dtype'])}"
        yield Finding("damaged", key + FEATURE, f"no map of this run is {what}, as recorded", key)
        return
    for file in files:
        try:
            _check_file(os.path.join(root, *file.split("/")), file, line, expected, deep)
        except WrongFileError as error:
            yield Finding("damaged", file, str(error), key)


def _check_file(path: str, file: str, line: Line, expected: Expected, deep: bool) -> None:
    """Raises WrongFileError."""
    check = _CHECKS.get(file.removeprefix(line["key"]))
    if file in (layer_file(line["key"], layer) for layer in expected.layers):
        check = _check_layer
    if check is None or not file.startswith(line["key"]):
        raise WrongFileError("its record names it, and no result of that key has such a file")
    try:
        _check_length(path, line.get("bytes"), file)
        digest = _digest(path) if deep else line["files"][file]
        check(path, line, expected, deep)
        if digest != line["files"][file]:
            raise WrongFileError(
                "its bytes are not those that were written (their xxh3-128 differs)"
            )
    except FileNotFoundError:
        raise WrongFileError("is not there") from None
    except OSError as error:
        raise WrongFileError(f"cannot be read: {error.strerror or error}") from None


def _check_length(path: str, sizes: object, file: str) -> None:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise WrongFileError("is no file")
    recorded = sizes.get(file) if isinstance(sizes, dict) else None
    if recorded is not None and recorded != found.st_size:
        written = f"{recorded:,}" if isinstance(recorded, int) else _shown(recorded)
        raise WrongFileError(f"is {found.st_size:,} bytes long, {written} were written")


def _check_feature(path: str, line: Line, expected: Expected, deep: bool) -> None:
    _check_array(_open(path), tuple(line["shape"]), line["dtype"], deep)


def _check_layer(path: str, line: Line, expected: Expected, deep: bool) -> None:
    """Channels differ from stage to stage of a CNN; the grid does not."""
    array = _open(path)
    channels = array.shape[:1] or (0,)
    _check_array(array, (*channels, *line["shape"][1:]), line["dtype"], deep)


def _check_mask(path: str, line: Line, expected: Expected, deep: bool) -> None:
    mask = _open(path)
    dtype = _MASK_DTYPE.get(expected.mask, str(mask.dtype))
    _check_array(mask, tuple(line["shape"][1:]), dtype, deep)
    if deep and (mask.min() < 0 or mask.max() > 1):
        raise WrongFileError("holds values outside 0 … 1")


def _check_vectors(path: str, line: Line, expected: Expected, deep: bool) -> None:
    try:
        arrays = read_npz(path)
    except ValueError:
        raise WrongFileError("is no whole .npz file") from None
    if set(arrays) != expected.vectors:
        raise WrongFileError(f"holds {_listed(arrays)}; the run took {_listed(expected.vectors)}")
    for name, array in arrays.items():
        dtype = "bool" if name == "empty" else line["dtype"]
        try:
            _check_array(array, array.shape, dtype, deep)
        except WrongFileError as error:
            raise WrongFileError(f"{name}: {error}") from None


def _check_meta(path: str, line: Line, expected: Expected, deep: bool) -> None:
    try:
        meta = read_json(path)
    except (ValueError, RecursionError):
        raise WrongFileError("is no whole JSON object") from None
    recorded = {name: line[name] for name in ("key", "sha256", "shape", "dtype")}
    for name, value in {**recorded, **expected.about}.items():
        if value is not None and meta.get(name) != value:
            raise WrongFileError(
                f"says {name} {_shown(meta.get(name))}, recorded is {_shown(value)}"
            )


_CHECKS = {
    FEATURE: _check_feature,
    MASK: _check_mask,
    META: _check_meta,
    VECTORS: _check_vectors,
}


def _open(path: str) -> AnyArray:
    """Memory-mapped; a file with anything after its array is none of ours."""
    try:
        array = read_array(path)
    except ValueError:
        raise WrongFileError("is no whole .npy file") from None
    over = os.stat(path).st_size - getattr(array, "offset", 0) - array.nbytes
    if over > 0:
        raise WrongFileError(f"has {over:,} bytes after its array")
    return array


def _check_array(array: AnyArray, shape: tuple[int, ...], dtype: str, deep: bool) -> None:
    if array.shape != shape or str(array.dtype) != dtype:
        raise WrongFileError(
            f"is {_like(array.shape, array.dtype)}, recorded is {_like(shape, dtype)}"
        )
    if deep and not np.isfinite(array).all():
        raise WrongFileError("holds values that are not finite")


def _digest(path: str) -> str:
    """By reading, not through a mapping: a bad sector is an error, and not a signal."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _is_shape(shape: list[Any]) -> bool:
    return len(shape) == 3 and all(isinstance(side, int) and side > 0 for side in shape)


def _like(shape: tuple[int, ...], dtype: object) -> str:
    return f"({','.join(map(str, shape))}) {dtype}"


def _listed(names: Mapping[str, Any] | frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
