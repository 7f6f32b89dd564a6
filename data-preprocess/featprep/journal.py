"""Append-only .jsonl files: what was done and what failed, read back after any kill.

A line is whole when its newline stands; a torn last line is passed over and cut before the next
append. Lookups go through a private SQLite database on disk, so that memory stays flat however many
lines there are. Knows nothing of encoders and runs.
"""

from __future__ import annotations

import glob
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from featprep.stores.base import output_error, write_whole

Line = dict[str, Any]


def read_lines(path: str) -> Iterator[Line]:
    """The whole lines of a file that are objects with a key; none if it is not there."""
    try:
        with open(path, "rb") as file:
            for raw in file:
                line = _parse(raw)
                if line is not None:
                    yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise output_error(path, error) from error


def _parse(raw: bytes) -> Line | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None  # damaged: its image is found unrecorded and read again
    return line if isinstance(line, dict) and isinstance(line.get("key"), str) else None


def append_lines(path: str, lines: Iterable[Line]) -> None:
    """Append in one write, after cutting off a torn last line."""
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    try:
        with open(path, "ab+") as file:
            _cut_torn_line(file.fileno())
            file.write(data)
    except OSError as error:
        raise output_error(path, error) from error


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

    def __init__(self, folder: str, pattern: str) -> None:
        """An empty `pattern` starts with nothing."""
        self._lock = threading.Lock()  # the writer records while the main thread asks
        self._db = sqlite3.connect("", check_same_thread=False)  # "": a private file, gone at close
        self._db.execute("CREATE TABLE lines (key BLOB PRIMARY KEY, line TEXT) WITHOUT ROWID")
        self._db.execute("PRAGMA journal_mode=OFF")
        paths = glob.glob(os.path.join(glob.escape(folder), pattern)) if pattern else []
        for path in sorted(paths, key=os.path.getmtime):  # the file last written has the last word
            self.put(read_lines(path))

    def put(self, lines: Iterable[Line]) -> None:
        rows = ((_blob(line["key"]), json.dumps(line)) for line in lines)
        with self._lock:
            self._db.executemany("INSERT OR REPLACE INTO lines VALUES (?, ?)", rows)

    def get(self, key: str) -> Line | None:
        with self._lock:
            found = self._db.execute("SELECT line FROM lines WHERE key = ?", (_blob(key),))
            row = found.fetchone()
        return json.loads(row[0]) if row else None

    def drop(self, key: str) -> None:
        with self._lock:
            self._db.execute("DELETE FROM lines WHERE key = ?", (_blob(key),))

    def __iter__(self) -> Iterator[Line]:
        for row in self._db.execute("SELECT line FROM lines ORDER BY key"):
            yield json.loads(row[0])

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM lines").fetchone()[0])

    def close(self) -> None:
        self._db.close()


def _blob(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def rewrite(path: str, lines: LineIndex) -> None:
    """Replace a file by what the index holds, in one piece; an empty index removes it."""
    try:
        if len(lines):
            write_whole(path, [json.dumps(line).encode() + b"\n" for line in lines])
        elif os.path.exists(path):
            os.unlink(path)
    except OSError as error:
        raise output_error(path, error) from error
