"""Rows of one length in the order they came, only ever added to. Knows no key: a journal says whose
each row is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from featprep.records import AnyArray
from featprep.stores.base import output_error, write_all


class RowFile:
    """Rows of `dim` values in the order they came, only ever added to; whose each is, and its
    digest, a journal says. For one writer at a time, which holds the run's lock."""

    def __init__(self, path: str, dim: int, dtype: str) -> None:
        self.path, self._dtype = path, np.dtype(dtype)
        self._bytes = dim * self._dtype.itemsize

    def append(self, rows: AnyArray) -> tuple[int, list[str]]:
        """The number of the first of them, and the xxh3-128 of each."""
        rows = np.ascontiguousarray(rows, self._dtype)
        try:
            with Path(self.path).open("ab", buffering=0) as file:
                first = os.fstat(file.fileno()).st_size // self._bytes
                file.truncate(first * self._bytes)  # a row that a kill cut short
                write_all(file.fileno(), rows.tobytes())
        except OSError as error:
            raise output_error(self.path, error) from error
        return first, [digest_of(row) for row in rows]

    def read(self, numbers: Sequence[int]) -> AnyArray:
        """(len(numbers), D). A row that is not there is zeros: its digest tells."""
        try:
            with Path(self.path).open("rb") as file:
                parts = [os.pread(file.fileno(), self._bytes, n * self._bytes) for n in numbers]
        except FileNotFoundError:
            parts = [b"" for _ in numbers]
        except OSError as error:
            raise output_error(self.path, error, "read") from error
        whole = b"".join(part.ljust(self._bytes, b"\0") for part in parts)
        return np.frombuffer(whole, self._dtype).reshape(len(parts), -1)

    def clear(self) -> None:
        try:
            Path(self.path).unlink(missing_ok=True)
        except OSError as error:
            raise output_error(self.path, error) from error


def digest_of(row: AnyArray) -> str:
    return xxhash.xxh3_128_hexdigest(row.tobytes())
