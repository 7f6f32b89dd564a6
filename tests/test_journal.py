"""Append-only lines: what is read back after any kill, and that memory stays flat."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from featprep.errors import OutputError
from featprep.journal import Line, LineIndex, append_lines, read_lines, rewrite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PATHS = st.binary(min_size=1, max_size=20).map(os.fsdecode)


def line(key: str, value: object = 0) -> Line:
    return {"key": key, "value": value}


def index(folder: Path, pattern: str = "*.jsonl") -> LineIndex:
    return LineIndex(str(folder), pattern)


def read(path: Path) -> list[Line]:
    return list(read_lines(str(path)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results-all.jsonl"


# ---- files


def test_lines_are_appended_and_read_back_in_order(path: Path) -> None:
    append_lines(str(path), [line("b"), line("a", {"shape": [1, 2], "x": None})])
    append_lines(str(path), [line("b", "é")])
    assert read(path) == [line("b"), line("a", {"shape": [1, 2], "x": None}), line("b", "é")]
    assert path.read_bytes().splitlines()[0] == b'{"key": "b", "value": 0}'


def test_a_file_that_is_not_there_has_no_lines(path: Path) -> None:
    assert read(path) == []


def test_names_that_are_not_utf_8_come_back_as_they_were(path: Path) -> None:
    append_lines(str(path), [line("\udcff\n\0é")])
    assert path.read_bytes().isascii()
    assert read(path) == [line("\udcff\n\0é")]


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_torn_last_line_is_passed_over_and_cut_before_the_next_append(
    path: Path, cut: int
) -> None:
    append_lines(str(path), [line("a"), line("b")])
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    assert read(path) == [line("a")]
    append_lines(str(path), [line("c")])
    assert read(path) == [line("a"), line("c")]
    assert path.read_bytes() == data[:25] + b'{"key": "c", "value": 0}\n'


@pytest.mark.parametrize("length", [1, 4095, 4096, 4097, 8192, 20_000])
def test_a_torn_line_of_any_length_is_cut(path: Path, length: int) -> None:
    append_lines(str(path), [line("a")])
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * length)
    append_lines(str(path), [])
    assert path.read_bytes() == whole
    path.write_bytes(b"x" * length)
    append_lines(str(path), [])
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"key"',
        b"{}",
        b'{"key": 1}',
        b'{"key": null}',
        b'{"key": ["a"]}',
        b'{"key": "\\ud800"}',
        b"\xff\xfe\x00",
        b"\x00\x00\x00{",
        b"[" * 100_000,
        b'{"key": "a", "n": ' + b"9" * 5000 + b"}",
        b'{"key": "a"} trailing',
    ],
)
def test_a_damaged_line_is_passed_over_and_its_neighbours_are_not(
    path: Path, damage: bytes
) -> None:
    append_lines(str(path), [line("a")])
    with path.open("ab") as file:
        file.write(damage + b"\n")
    append_lines(str(path), [line("b")])
    assert read(path) == [line("a"), line("b")]


def test_an_index_has_no_record_of_a_key_whose_last_line_is_damaged_within(path: Path) -> None:
    append_lines(str(path), [line("a", 1), line("b", 2), line("é", 3)])
    with path.open("ab") as file:
        file.write(b'{"key": "a", "value": \xff}\n{"key": "b"} {"key": "b"}\n')
    with closing(index(path.parent)) as lines:
        assert [lines.get(key) for key in ("a", "b", "é")] == [None, None, line("é", 3)]
        assert list(lines) == [line("é", 3)]
        assert list(lines.raw()) == [b'{"key": "\\u00e9", "value": 3}\n']


@given(data=st.binary(max_size=200))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_lines_or_passed_over(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    assert all(isinstance(found["key"], str) for found in read(path))
    append_lines(str(path), [line("a")])
    assert read(path)[-1] == line("a")
    with closing(index(path.parent)) as found:
        assert found.get("a") == line("a")


def test_a_full_disk_is_an_output_error_and_whole_lines_stay(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_lines(str(path), [line("a")])
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        if len(data) < 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, bytes(data)[:30])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OutputError) as caught:
        append_lines(str(path), [line("b"), line("c")])
    assert str(caught.value) == (
        f"cannot write {path}: No space left on device. Free space or mend the folder's "
        "permissions; the same command goes on from here"
    )
    monkeypatch.undo()
    assert read(path) == [line("a"), line("b")]
    append_lines(str(path), [line("c")])
    assert read(path) == [line("a"), line("b"), line("c")]


def test_a_folder_that_was_deleted_is_an_output_error(path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*: No such file or directory"):
        append_lines(str(path / "gone.jsonl"), [line("a")])


def test_a_file_that_cannot_be_read_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot read .*: Is a directory"):
        list(read_lines(str(tmp_path)))


# ---- the index


def test_the_last_line_of_a_key_counts(path: Path) -> None:
    append_lines(str(path), [line("a", 1), line("b", 1), line("a", 2)])
    with closing(index(path.parent)) as lines:
        assert lines.get("a") == line("a", 2)
        assert lines.get("c") is None
        assert len(lines) == 2


def test_the_file_that_was_written_last_has_the_last_word(tmp_path: Path) -> None:
    for number, name in enumerate(("b", "a", "c")):
        path = tmp_path / f"{name}.jsonl"
        append_lines(str(path), [line("x", name)])
        os.utime(path, ns=(0, number * 1_000_000_000))
    os.utime(tmp_path / "b.jsonl", ns=(0, 9_000_000_000))
    with closing(index(tmp_path)) as lines:
        assert lines.get("x") == line("x", "b")


def test_only_the_files_asked_for_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]*"  # not a pattern of its own
    folder.mkdir()
    for name in ("results-all.jsonl", "results-1-of-2.jsonl", "failures.jsonl"):
        append_lines(str(folder / name), [line(name)])
    with closing(LineIndex(str(folder), "results-*.jsonl", lambda name: "all" in name)) as lines:
        assert list(lines) == [line("results-all.jsonl")]
    with closing(LineIndex(str(folder), "")) as lines:
        assert list(lines) == []


def test_lines_are_put_got_dropped_and_come_by_the_bytes_of_their_keys(tmp_path: Path) -> None:
    keys = ["b", "\udcff", "é", "a", "B", "a\n", "\0"]
    with closing(index(tmp_path)) as lines:
        lines.put(line(key, key) for key in keys)
        assert [found["key"] for found in lines] == ["\0", "B", "a", "a\n", "b", "é", "\udcff"]
        assert all(lines.get(key) == line(key, key) for key in keys)
        lines.drop("a")
        lines.drop("never there")
        assert lines.get("a") is None
        assert len(lines) == 6


@given(steps=st.lists(st.tuples(PATHS, st.integers(0, 3)), max_size=30))
@settings(deadline=None)
def test_the_index_is_a_dictionary(steps: list[tuple[str, int]]) -> None:
    model: dict[str, Line] = {}
    with closing(LineIndex("", "")) as lines:
        for key, value in steps:
            if value:
                model[key] = line(key, value)
                lines.put([line(key, value)])
            else:
                model.pop(key, None)
                lines.drop(key)
        assert list(lines) == [model[key] for key in sorted(model, key=os.fsencode)]


def test_one_thread_asks_while_another_records(tmp_path: Path) -> None:
    problems: list[BaseException] = []
    with closing(index(tmp_path)) as lines:

        def guarded(work: Callable[[int], object]) -> Callable[[], None]:
            def run() -> None:
                try:
                    for number in range(500):
                        work(number)
                except BaseException as error:
                    problems.append(error)

            return run

        works = [
            guarded(lambda n: lines.put([line(str(n))])),
            guarded(lambda n: lines.get(str(n))),
            guarded(lambda n: lines.drop(str(n + 1000))),
            guarded(lambda n: len(lines)),
        ]
        threads = [threading.Thread(target=work) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert len(lines) == 500


def test_memory_does_not_grow_with_the_number_of_lines(path: Path) -> None:
    def peak(count: int) -> int:
        path.unlink(missing_ok=True)
        with path.open("w") as file:
            for number in range(count):
                file.write(json.dumps(line(f"folder/image_{number:08}", "x" * 200)) + "\n")
        tracemalloc.start()
        with closing(index(path.parent)) as lines:
            assert len(lines) == count
            rewrite(str(path), lines)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(500), peak(10_000)
    assert many < few + 100_000  # a line is 250 bytes: kept, they would be 2.5 MB


def test_no_room_for_the_index_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def execute(self, statement: str, keys: list[bytes]) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: Full())
    with pytest.raises(OutputError) as caught:
        index(tmp_path)
    assert str(caught.value) == (
        f"no room for the index of results in {tempfile.gettempdir()}: database or disk is full. "
        "Free space or set TMPDIR to another folder; the same command goes on from here"
    )


# ---- rewriting


def test_a_file_is_replaced_in_one_piece_by_what_the_index_holds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_lines(str(path), [line("b", 1), line("a", 1), line("b", 2)])
    seen = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (seen.append(Path(a).name), rename(a, b)))
    with closing(index(path.parent)) as lines:
        rewrite(str(path), lines, "1-of-2")
    assert read(path) == [line("a", 1), line("b", 2)]
    assert [name[:11] for name in seen] == [".fp-1-of-2-"]


def test_an_empty_index_removes_the_file(path: Path) -> None:
    append_lines(str(path), [line("a")])
    with closing(LineIndex("", "")) as nothing:
        rewrite(str(path), nothing)
        assert not path.exists()
        rewrite(str(path), nothing)


def test_a_file_that_cannot_be_removed_is_an_output_error(path: Path) -> None:
    path.mkdir()
    with closing(LineIndex("", "")) as nothing, pytest.raises(OutputError, match="cannot write"):
        rewrite(str(path), nothing)
