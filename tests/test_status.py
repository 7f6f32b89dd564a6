"""Status: what is done, failed and pending is counted from records, names and lengths."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest
from fakes import FakeEncoder
from featprep import cli
from featprep.lock import RunLock
from test_encode_run import Bench, bench  # noqa: F401 (a fixture)


@pytest.fixture
def made(bench: Bench) -> Bench:  # noqa: F811
    """Of seven images two are done, one changed, one was cut short, two failed, one is new."""
    for name in ("a", "b", "c", "sub/d"):
        bench.image(f"{name}.png")
    for name, data in (("e.png", b""), ("f.png", b"\x89PNG\r\n\x1a\nbroken")):
        (bench.input / name).write_bytes(data)
    assert bench.run("--size", "32", "--background", "white") == 3
    bench.image("b.png", (1, 2, 3), (64, 64))
    os.truncate(bench.output / "c.npy", 200)
    bench.image("g.png")
    os.utime(bench.output / ".featprep/results-all.jsonl", (1_700_000_000, 1_700_000_000))
    return bench


def status(bench: Bench, *flags: str) -> str:  # noqa: F811
    assert cli.main(["status", str(bench.output), *flags]) == 0
    said = bench.capsys.readouterr()
    assert said.err == ""
    return said.out


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_lines_say_how_far_it_is_and_in_which_settings(made: Bench) -> None:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1_700_000_000))
    lines = status(made).splitlines()
    reasons = {line["key"]: line["reason"] for line in made.lines("failures.jsonl")}
    device = json.loads((made.output / ".featprep/run.json").read_text())["about"]["device"]
    assert lines == [
        f"output   {made.output}  12 files, {_size(made.output) / 1000:.1f} kB",
        "encoder  fake:mean  weights ffffffff",
        "settings layer 0  feature patch  norm final  resize crop  size 32,32  grid 4,4  "
        "background 255,255,255  mask any  compute float32  storage float32",
        f"device   {device}  batch 4",
        f"input    {made.input}  7 images: 2 done, 2 to be made again, 2 failed, 1 pending",
        f"failed   1 × decode: {reasons['e']}",
        f"failed   1 × decode: {reasons['f']}",
        f"results  4 recorded, the last one {when}",
        "at work  nobody",
    ]


def test_failures_that_differ_in_numbers_alone_are_one_reason(made: Bench) -> None:
    lines = [
        {"key": f"k{n}", "source": f"k{n}.png", "stage": "read", "reason": f"{n} bytes of 1,000"}
        for n in range(25)
    ]
    lines += [{**lines[0], "key": f"o{n}", "reason": chr(97 + n) * 3} for n in range(12)]
    path = made.output / ".featprep/failures.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = [line for line in status(made).splitlines() if line.startswith("failed")]
    assert told[0] == "failed   25 × read: 0 bytes of 1,000"
    assert (len(told), told[-1]) == (11, "failed   … 3 more reasons")


def test_notes_of_results_are_counted_and_a_compiled_run_says_so(made: Bench) -> None:
    folder = made.output / ".featprep"
    lines = [json.loads(line) for line in (folder / "results-all.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["notes"] = [f"made smaller, to {64 + number}×32", *["odd"] * (number == 1)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "results-all.jsonl").write_text(text)
    run = json.loads((folder / "run.json").read_text())
    run["about"] |= {"compile": True}
    (folder / "run.json").write_text(json.dumps(run))
    told = status(made).splitlines()
    assert [line for line in told if line.startswith("noted")] == [
        "noted    4 × made smaller, to 64×32",
        "noted    1 × odd",
    ]
    assert f"device   {run['about']['device']}  batch 4, compiled" in told
    found = json.loads(status(made, "--json"))
    assert found["."]["notes"] == {"made smaller, to 64×32": 4, "odd": 1}


def test_where_the_input_is_gone_what_is_recorded_is_still_told(made: Bench) -> None:
    shutil.rmtree(made.input)
    said = status(made)
    assert f"input    {made.input}  pending images are not known: " in said
    assert "results  4 recorded" in said


def test_who_works_there_is_named_and_no_lock_of_the_dead(made: Bench) -> None:
    dead = {"host": "node7", "machine": "x", "pid": 4711, "started": "1", "run": ""}
    (made.output / ".featprep/lock-2-of-4").write_text(json.dumps(dead))
    os.utime(made.output / ".featprep/lock-2-of-4", (1, 1))
    with RunLock(str(made.output / ".featprep"), "1-of-4"):
        assert status(made).splitlines()[-1] == (
            f"at work  pid {os.getpid()} on host {socket.gethostname()}, shard 1-of-4"
        )


def test_json_of_several_encoders_has_each_by_its_folder(
    bench: Bench,  # noqa: F811
) -> None:
    bench.others = {"hf": FakeEncoder(digest="e" * 64)}
    bench.image("a.png")
    assert bench.run("--model", "clip:tiny,hf:tiny", "--size", "32") == 0
    bench.image("b.png")
    found = json.loads(status(bench, "--json"))
    assert list(found) == ["clip_tiny", "hf_tiny"]
    assert found["hf_tiny"]["fingerprint"]["weights"] == "e" * 64
    assert found["hf_tiny"]["images"] == {"done": 1, "again": 0, "failed": 0, "pending": 1}
    assert found["hf_tiny"]["failures"] == []


def test_an_input_that_no_path_can_name_is_a_damaged_run(made: Bench) -> None:
    path = made.output / ".featprep/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "input": "a\0b"}))
    assert cli.main(["status", str(made.output)]) == 2
    assert made.capsys.readouterr().err == (
        f"featprep: {path} is damaged: use another --output, or remove that file together with "
        "the results\n"
    )


def test_a_mask_folder_that_no_path_can_name_is_told(made: Bench) -> None:
    path = made.output / ".featprep/run.json"
    run = json.loads(path.read_text())
    run["fingerprint"]["mask_dir"] = "a\0b"
    path.write_text(json.dumps(run))
    assert cli.main(["status", str(made.output)]) == 0
    assert "pending images are not known: embedded null byte" in made.capsys.readouterr().out
