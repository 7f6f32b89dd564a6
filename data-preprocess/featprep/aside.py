"""Damaged results, moved out of the way: into OUT/.featprep/aside/WHEN, each with its record, so
that the next run makes them again. Nothing is deleted, and nothing else is touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path

from featprep.journal import Line, LineIndex, append_lines, take_out
from featprep.ledger import folder_of, is_record
from featprep.stores.base import output_error
from featprep.stores.npy_files import FEATURE
from featprep.stores.npy_tree import META, NpyTreeStore
from featprep.verify_result import Expected


def move_aside(output: str, keys: Collection[str], expected: Expected) -> str:
    """Where they are now. Only for who holds the lock of the whole output. Raises OutputError.

    Records are copied first and leave last, and of a result the feature file goes first: stopped
    at any moment, what is left is told by verify again, and a key without its map is encoded.
    """
    aside = _new_folder(os.path.join(folder_of(output), "aside"))
    store = NpyTreeStore(output)
    with closing(LineIndex(folder_of(output), "results-*.jsonl")) as records:
        for key in keys:
            line = records.get(key)
            append_lines(os.path.join(aside, "results.jsonl"), [line] if line else [])
            for file in () if store.leads_out(key) else _files(key, line, expected):
                _move(store.path(file), os.path.join(aside, *file.split("/")))
    for path in sorted(Path(folder_of(output)).glob("results-*.jsonl")):
        take_out(str(path), keys)
    return aside


def _files(key: str, line: Line | None, expected: Expected) -> Iterator[str]:
    """What of a result may stand, its map first."""
    named = line["files"] if line is not None and is_record(line) else {}
    yield key + FEATURE
    yield from (file for file in expected.files(key) if file != key + FEATURE)
    yield from (file for file in named if file == key + META)


def _new_folder(above: str) -> str:
    """OUT/.featprep/aside/20261121T080912Z, or where that is there with -2 …"""
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for number in range(1, 1000):
        path = os.path.join(above, when if number == 1 else f"{when}-{number}")
        try:
            os.makedirs(path)
        except FileExistsError:
            continue
        except OSError as error:
            raise output_error(path, error) from error
        return path
    raise AssertionError(f"a thousand repairs of one output in the second {when}")


def _move(path: str, to: str) -> None:
    try:
        os.makedirs(os.path.dirname(to), exist_ok=True)
        os.rename(path, to)
    except (FileNotFoundError, NotADirectoryError):
        return  # what is damaged may be that it is not there
    except OSError as error:
        raise output_error(path, error, "move") from error
