"""A table of vectors as one file, .parquet or .npy: its writer and its reader.

stores/README.md has the format. Knows no model and no run.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from featprep.errors import InputError, OutputError, UsageError
from featprep.extras import need
from featprep.naming import printable
from featprep.records import AnyArray
from featprep.stores.base import sweep, write_whole

SUFFIXES = (".parquet", ".npy")
BATCH = 4096  # rows held at once, and a row group of a parquet file
_ABOUT = b"featprep"  # where a parquet file's metadata say what the run was


@dataclass(frozen=True, slots=True)
class VectorBatch:
    """`vectors`: (B, D) float32 or float16, row i of `keys[i]` and of the image file `paths[i]`."""

    keys: list[str]
    paths: list[str]
    vectors: AnyArray


def check_suffix(path: str, flag: str) -> None:
    """Refuse a name whose format cannot be told, or cannot be written here. Raises UsageError."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{flag} {printable(path)}: allowed is a file called NAME.parquet or NAME.npy; for "
            f"example {flag} vectors.parquet"
        )
    if os.path.isdir(path):
        raise UsageError(f"{flag} {printable(path)}: a folder; name a file in it")
    if suffix == ".parquet":
        _parquet(path, flag)


def _parquet(path: str, flag: str) -> Any:
    instead = "" if flag != "--output" else f"; or write {os.path.splitext(path)[0]}.npy"
    return need("pyarrow.parquet", "vectors", f"{flag} {printable(path)}", instead)


def keys_file(path: str) -> str:
    """Beside NAME.npy: NAME.keys.json."""
    return os.path.splitext(path)[0] + ".keys.json"


def write_table(
    path: str,
    count: int,
    dim: int,
    dtype: str,
    about: Mapping[str, Any],
    batches: Callable[[], Iterator[VectorBatch]],
) -> None:
    """Write the table in one piece, `count` rows in the order they are given. `about`: what the
    run was; its `model` stands in every row of a parquet file. For one writer at a time, which
    holds the run's lock. Raises OutputError."""
    # Of this table alone: another run may be writing another one into the same folder.
    tag = xxhash.xxh3_64_hexdigest(os.fsencode(os.path.basename(path)))
    sweep(os.path.dirname(path) or ".", tag)

    def rows() -> Iterator[VectorBatch]:
        return _exactly(count, batches(), path)

    if path.lower().endswith(".parquet"):
        write_whole(path, _parquet_parts(path, dim, dtype, about, rows()), tag)
        return
    digest, _ = write_whole(path, _npy_parts((count, dim), dtype, rows()), tag)
    write_whole(keys_file(path), _keys_parts({**about, "xxh3": digest}, rows()), tag)


def _exactly(count: int, batches: Iterator[VectorBatch], path: str) -> Iterator[VectorBatch]:
    """A header says how many rows there are before they are read again."""
    for batch in batches:
        count -= len(batch.keys)
        yield batch
    if count:
        raise OutputError(
            f"{printable(path)}: the input changed while it was written, and nothing was kept of "
            "it; the same command writes it again"
        )


class _Drain(io.RawIOBase):
    """A file that a library writes and we take the bytes from."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._at += len(part)
        return len(part)

    def tell(self) -> int:
        return self._at

    def taken(self) -> list[bytes]:
        parts, self._parts = self._parts, []
        return parts


def _parquet_parts(
    path: str, dim: int, dtype: str, about: Mapping[str, Any], batches: Iterator[VectorBatch]
) -> Iterator[bytes]:
    parquet, arrow = _parquet(path, "--output"), need("pyarrow", "vectors", path)
    value = {"float32": arrow.float32(), "float16": arrow.float16()}[dtype]
    kinds = {"key": arrow.string(), "path": arrow.string(), "model": arrow.string()}
    fields = [*kinds.items(), ("vector", arrow.list_(value, dim))]
    schema = arrow.schema(fields, {_ABOUT: json.dumps(about).encode()})
    drain = _Drain()
    # Vectors do not compress, and a dictionary of them would only be thrown away.
    squeezed = dict.fromkeys(kinds, "zstd") | {"vector.list.element": "none"}
    with parquet.ParquetWriter(
        drain, schema, compression=squeezed, use_dictionary=["model"]
    ) as writer:
        for batch in batches:
            values = arrow.array(np.ascontiguousarray(batch.vectors).reshape(-1), value)
            columns = [
                arrow.array(list(map(as_text, batch.keys))),
                arrow.array(list(map(as_text, batch.paths))),
                arrow.array([about["model"]] * len(batch.keys)),
                arrow.FixedSizeListArray.from_arrays(values, dim),
            ]
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
            yield from drain.taken()
    yield from drain.taken()


def as_text(name: str) -> str:
    """A name as a table may hold it: bytes of it that are not UTF-8 as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _npy_parts(
    shape: tuple[int, int], dtype: str, batches: Iterator[VectorBatch]
) -> Iterator[bytes]:
    header = io.BytesIO()
    what = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, what)
    yield header.getvalue()
    for batch in batches:
        yield np.ascontiguousarray(batch.vectors).tobytes()


def _keys_parts(about: Mapping[str, Any], batches: Iterator[VectorBatch]) -> Iterator[bytes]:
    """One row a line, so that it can be looked at, and the whole is JSON."""
    yield f'{{"about": {json.dumps(about)},\n"rows": ['.encode()
    comma = b"\n"
    for batch in batches:
        for key, path in zip(batch.keys, batch.paths, strict=True):
            yield comma + json.dumps([as_text(key), as_text(path)]).encode()
            comma = b",\n"
    yield b"\n]}\n"


class VectorFile:
    """A table that `write_table` wrote. `about`: what the run was. Raises InputError."""

    def __init__(self, path: str) -> None:
        self.path = path
        check_suffix(path, "VECTORS")
        if not os.path.isfile(path):
            raise InputError(f"{printable(path)}: no such file; check the path")
        is_parquet = path.lower().endswith(".parquet")
        self.about, self.count, self._batches = self._parquet() if is_parquet else self._npy()

    def batches(self, size: int = BATCH) -> Iterator[VectorBatch]:
        """The rows in their order."""
        return self._batches(size)

    def _parquet(self) -> tuple[dict[str, Any], int, Callable[[int], Iterator[VectorBatch]]]:
        arrow = need("pyarrow", "vectors", self.path)
        try:
            file = _parquet(self.path, "VECTORS").ParquetFile(self.path)
            about = json.loads(file.schema_arrow.metadata[_ABOUT])
        except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as error:
            raise self._not_ours() from error

        def batches(size: int) -> Iterator[VectorBatch]:
            for part in file.iter_batches(size, columns=["key", "path", "vector"]):
                keys, paths, vectors = part.columns
                values = vectors.flatten().to_numpy(zero_copy_only=False)
                matrix = values.reshape(len(keys), -1)
                yield VectorBatch(keys.to_pylist(), paths.to_pylist(), matrix)

        return about, file.metadata.num_rows, batches

    def _npy(self) -> tuple[dict[str, Any], int, Callable[[int], Iterator[VectorBatch]]]:
        try:
            told = json.loads(Path(keys_file(self.path)).read_bytes())
            about, rows = told["about"], [(key, path) for key, path in told["rows"]]
            matrix = np.load(self.path, mmap_mode="r" if rows else None, allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise self._not_ours() from error
        if matrix.ndim != 2 or len(matrix) != len(rows) or about.get("xxh3") != _digest(self.path):
            raise InputError(
                f"{printable(self.path)}: it and {printable(keys_file(self.path))} are not of one "
                "run; run image_vectorizer.py again, which writes both"
            )

        def batches(size: int) -> Iterator[VectorBatch]:
            for start in range(0, len(rows), size):
                keys, paths = zip(*rows[start : start + size], strict=True)
                part = np.array(matrix[start : start + size])
                yield VectorBatch(list(keys), list(paths), part)

        return about, len(rows), batches

    def _not_ours(self) -> InputError:
        beside = "" if self.path.lower().endswith(".parquet") else ", with its .keys.json beside it"
        return InputError(
            f"{printable(self.path)}: not a table that image_vectorizer.py wrote{beside}; give one"
        )


def _digest(path: str) -> str:
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
