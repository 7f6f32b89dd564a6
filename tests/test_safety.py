"""Nothing leads out of the output, nothing that is read runs, nothing printed moves the cursor."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from featprep import cli
from test_encode_run import Bench, bench  # noqa: F401 (a fixture)

EVIL = "\x1b[2J\x1b]0;title\x07\n\u202e"


def outside(bench: Bench) -> Path:  # noqa: F811
    path = bench.root / "theirs"
    path.write_bytes(b"theirs, without a last newline")
    return path


@pytest.mark.parametrize("name", ["results-all.jsonl", "failures.jsonl"])
def test_records_are_not_written_through_a_link(bench: Bench, name: str) -> None:  # noqa: F811
    bench.image("a.png")
    (bench.input / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    theirs = outside(bench)
    (bench.output / ".featprep").mkdir(parents=True)
    (bench.output / ".featprep" / name).symlink_to(theirs)
    assert bench.run("--size", "32") == 4
    assert bench.said.splitlines()[-1] == (
        f"featprep: cannot write {bench.output}/.featprep/{name}: Too many levels of symbolic "
        "links. Free space or mend the folder's permissions; the same command goes on from here"
    )
    assert theirs.read_bytes() == b"theirs, without a last newline"


@pytest.mark.parametrize("name", ["run.json", "lock-all"])
def test_what_is_replaced_as_a_whole_replaces_a_link_and_not_its_target(
    bench: Bench,  # noqa: F811
    name: str,
) -> None:
    bench.image("a.png")
    theirs = bench.root / "theirs"
    (bench.output / ".featprep").mkdir(parents=True)
    (bench.output / ".featprep" / name).symlink_to(theirs)
    assert bench.run("--size", "32") == 0
    assert not theirs.exists()


def test_a_ledger_that_is_a_link_is_refused_before_any_work(bench: Bench) -> None:  # noqa: F811
    bench.image("a.png")
    (bench.root / "elsewhere").mkdir()
    bench.output.mkdir()
    (bench.output / ".featprep").symlink_to(bench.root / "elsewhere")
    assert bench.run("--size", "32") == 2
    assert bench.said.splitlines()[-1] == (
        f"featprep: --output {bench.output}: its .featprep is a link, which may lead anywhere; "
        "remove it, or use another --output"
    )
    assert os.listdir(bench.root / "elsewhere") == []


def test_no_line_of_a_run_moves_the_cursor_whatever_files_are_called(
    bench: Bench,  # noqa: F811
) -> None:
    bench.image(f"{EVIL}.png")
    (bench.input / f"b{EVIL}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (bench.input / f"c.x{EVIL}").write_bytes(b"")
    output = bench.root / f"out{EVIL}"
    bench.monkeypatch.setattr(type(bench), "output", output)
    for more in ((), ("--plan",), ("--background", "white")):
        bench.run("--size", "32", "--verbose", *more)
        assert all(map(str.isprintable, bench.said.removesuffix("\n").split("\n"))), bench.said
    (output / f"{EVIL}.npy").write_bytes(b"")
    for words in (["verify", str(output)], ["status", str(output)]):
        cli.main(words)
        said = bench.capsys.readouterr()
        told = (said.out + said.err).removesuffix("\n").split("\n")
        assert all(map(str.isprintable, told)), told
        assert "\\x1b[2J" in said.out


def test_paths_of_a_list_never_name_a_result_outside_the_output(
    bench: Bench,  # noqa: F811
) -> None:
    image = bench.image("x/a.png")
    (bench.root / "deep").mkdir()
    lines = [f"../in/x/../x/{image.name}", str(image), "../../../../../../etc/none.png"]
    (bench.root / "deep/list.txt").write_text("\n".join(lines) + "\n")
    before = {path for path in bench.root.rglob("*") if bench.output not in path.parents}
    assert bench.run("--size", "32", "--input", str(bench.root / "deep/list.txt")) == 3
    after = {path for path in bench.root.rglob("*") if bench.output not in path.parents}
    assert after - before == {bench.output}
    (made,) = (path for path in bench.tree() if path.endswith("a.npy"))
    assert made == f"{image.with_suffix('.npy')}".lstrip("/")


def test_a_run_leaves_the_environment_as_it_was(bench: Bench) -> None:  # noqa: F811
    bench.image("a.png")
    before = json.dumps(dict(os.environ))
    assert bench.run("--size", "32") == 0
    assert json.dumps(dict(os.environ)) == before
