"""Append-only .jsonl files: what was done and what failed, read back after any kill.

A line is whole when its newline stands; a torn last line is passed over and cut before the next
append. Lookups go through a private SQLite database on disk, so that memory stays flat however many
lines there are. Knows nothing of encoders and runs.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from featprep.errors import OutputError
from featprep.stores.base import EVERYTHING, output_error, write_all, write_whole

Line = dict[str, Any]

# A line as we write it, whose key needs no unescaping. A resume goes over every line there is, and
# reading them whole would be half of what it adds to the start.
_PLAIN = re.compile(rb'\{"key": "([ !#-\[\]-~]+)"[,}]')


def read_lines(path: str) -> Iterator[Line]:
    """The whole lines of a file that are objects with a key; none if it is not there."""
    for line, _ in _parsed(path):
        yield line


def append_lines(path: str, lines: Iterable[Line]) -> None:
    """Append in one write, after cutting off a torn last line."""
    data = b"".join(map(_raw, lines))
    try:
        # Never through a link: that could lead out of the output.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0) as file:
            _cut_torn_line(file.fileno())
            write_all(file.fileno(), data)
    except OSError as error:
        raise output_error(path, error) from error


def take_out(path: str, keys: Collection[str], tag: str = EVERYTHING) -> None:
    """Rewrite a file in one piece without the lines of some keys. It keeps its time, by which it
    has its turn among the others (LineIndex)."""
    if not any(line["key"] in keys for line in read_lines(path)):
        return
    try:
        before = os.stat(path)
        write_whole(path, (raw for line, raw in _parsed(path) if line["key"] not in keys), tag)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    except OSError as error:
        raise output_error(path, error) from error


def _parsed(path: str) -> Iterator[tuple[Line, bytes]]:
    try:
        with Path(path).open("rb") as file:
            for raw in file:
                line = _parse(raw)
                if line is not None:
                    yield line, raw
    except FileNotFoundError:
        return
    except OSError as error:
        raise output_error(path, error, "read") from error


def _keyed(path: str) -> Iterator[tuple[str, bytes]]:
    """Key and line of those that look whole; what is damaged within, its reader finds."""
    try:
        with Path(path).open("rb") as file:
            for raw in file:
                plain = _PLAIN.match(raw)
                if plain and raw.endswith(b"}\n"):
                    yield plain[1].decode(), raw
                elif (line := _parse(raw)) is not None:
                    yield line["key"], raw
    except FileNotFoundError:
        return
    except OSError as error:
        raise output_error(path, error, "read") from error


def _parse(raw: bytes) -> Line | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        line: Line = json.loads(raw.decode())  # faster than of bytes, whose coding it looks for
        os.fsencode(line["key"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # damaged: its image is found unrecorded and read again
    return line


def _raw(line: Line) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _cut_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    end = size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        step = min(end, 4096)
        newline = os.pread(descriptor, step, end - step).rfind(b"\n")
        end = end - step + newline + 1 if newline >= 0 else end - step
    if end != size:
        os.ftruncate(descriptor, end)


class LineIndex:
    """key → the last line of that key in every `pattern` file of a folder."""

    def __init__(
        self, folder: str, pattern: str, is_wanted: Callable[[str], bool] = lambda name: True
    ) -> None:
        """An empty `pattern` starts with nothing; `is_wanted` picks among the file names."""
        self._lock = threading.Lock()  # the writers record while the main thread asks
        self._is_empty = True
        self._db = sqlite3.connect("", check_same_thread=False)  # "": a private file, gone at close
        # An index beside the rows takes half the time of rows in key order.
        self._do("CREATE TABLE lines (key BLOB PRIMARY KEY, line BLOB)")
        self._do("PRAGMA journal_mode=OFF")
        paths = glob.glob(os.path.join(glob.escape(folder), pattern)) if pattern else []
        wanted = [path for path in paths if is_wanted(os.path.basename(path))]
        for path in sorted(wanted, key=_mtime):  # the file last written has the last word
            self._put(_keyed(path))

    def put(self, lines: Iterable[Line]) -> None:
        self._put((line["key"], _raw(line)) for line in lines)

    def get(self, key: str) -> Line | None:
        if self._is_empty:
            return None
        with self._lock:
            row = self._do("SELECT line FROM lines WHERE key = ?", key).fetchone()
        return _parse(row[0]) if row else None

    def drop(self, key: str) -> None:
        if self._is_empty:
            return
        with self._lock:
            self._do("DELETE FROM lines WHERE key = ?", key)

    def raw(self) -> Iterator[bytes]:
        """The lines as they stand in a file, by byte order of their keys."""
        for _, raw in self._whole():
            yield raw

    def __iter__(self) -> Iterator[Line]:
        for line, _ in self._whole():
            yield line

    def _whole(self) -> Iterator[tuple[Line, bytes]]:
        for row in self._do("SELECT line FROM lines ORDER BY key"):
            line = _parse(row[0])
            if line is not None:
                yield line, row[0]

    def __len__(self) -> int:
        with self._lock:
            return int(self._do("SELECT count(*) FROM lines").fetchone()[0])

    def close(self) -> None:
        self._db.close()

    def _put(self, rows: Iterable[tuple[str, bytes]]) -> None:
        blobs = ((os.fsencode(key), raw) for key, raw in rows)
        with self._lock:
            self._is_empty = False
            try:
                self._db.executemany("INSERT OR REPLACE INTO lines VALUES (?, ?)", blobs)
            except sqlite3.OperationalError as error:
                raise _full_disk(error) from error

    def _do(self, statement: str, *keys: str) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, [os.fsencode(key) for key in keys])
        except sqlite3.OperationalError as error:
            raise _full_disk(error) from error


def _full_disk(error: sqlite3.OperationalError) -> OutputError:
    return OutputError(
        f"no room for the index of results in {tempfile.gettempdir()}: {error}. Free space or "
        "set TMPDIR to another folder; the same command goes on from here"
    )


def _mtime(path: str) -> float:
    try:
        return os.path.getmtime(path)
    except OSError:  # gone since it was listed: it will have no lines
        return 0.0


def rewrite(path: str, lines: LineIndex, tag: str = EVERYTHING) -> None:
    """Replace a file by what the index holds, in one piece; an empty index removes it."""
    if len(lines):
        write_whole(path, lines.raw(), tag)
        return
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise output_error(path, error) from error
