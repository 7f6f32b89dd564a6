"""`--device A,B`: disjoint shards of one output, a process each, and one outcome."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from featprep.commands import encode_devices
from featprep.commands.console import say
from featprep.commands.encode_devices import parted
from featprep.config import EncodeConfig
from featprep.naming import is_in_shard
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
KEYS = [f"a/{i}" for i in range(200)]


def _config(**more: Any) -> EncodeConfig:
    return EncodeConfig(input="in", output="out", model="hf:tiny", **more)


def _featprep(*words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "featprep", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "data-preprocess")}
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, **options)


def _images(folder: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (40, 32, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def _maps(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("*.npy")}


@pytest.mark.parametrize("shard", [None, (2, 3)])
def test_devices_take_disjoint_shards_that_make_up_the_run(shard: tuple[int, int] | None) -> None:
    runs = parted(_config(device="cuda:0,cuda:1", workers=5, shard=shard))
    assert [run.device for run in runs] == ["cuda:0", "cuda:1"]
    assert [run.workers for run in runs] == [2, 2]
    for key in KEYS:
        of = [is_in_shard(key, run.shard) for run in runs]
        assert sum(of) == is_in_shard(key, shard)


def test_a_device_named_twice_has_two_processes_with_names_of_their_own() -> None:
    titles = encode_devices._titles(["cuda:0", "cuda:1", "cuda:0"])
    assert titles == ["cuda:0 (1)", "cuda:1", "cuda:0 (2)"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"device": "cuda:0,auto"},
            "--device cuda:0,auto: name each, as in --device cuda:0,cuda:1",
        ),
        ({"device": "cuda:0,"}, "--device cuda:0,: name each, as in --device cuda:0,cuda:1"),
        (
            {"device": "cpu,cpu", "limit": 3},
            "--limit works with one --device only: drop it, or name one device",
        ),
    ],
)
def test_what_several_devices_cannot_do_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(encode_devices.UsageError) as caught:
        encode_devices.run(_config(**more), "any")
    assert str(caught.value) == said


def test_two_processes_write_what_one_writes_and_tell_it_together(tmp_path: Path) -> None:
    source = _images(tmp_path / "in", 12)
    (source / "bad.png").write_bytes(b"bad")
    usual = ["encode", "--input", str(source), "--model", "hf:tiny", "--size", "28"]
    one = _featprep(*usual, "--output", str(tmp_path / "one"))
    two = _featprep(
        *usual, "--output", str(tmp_path / "two"), "--device", "cpu,cpu",
        "--summary", str(tmp_path / "two.json"),
    )  # fmt: skip
    said = two.communicate(timeout=240)[1]
    one.communicate(timeout=240)
    assert (one.returncode, two.returncode) == (3, 3)
    assert _maps(tmp_path / "one") == _maps(tmp_path / "two")
    assert len(_maps(tmp_path / "two")) == 24
    last = said.splitlines()[-1]
    assert last.startswith("in all   12 encoded, 0 skipped, 1 failed, by 2 processes; ")
    assert {line[:7] for line in said.splitlines()[:-1]} == {"cpu (1)", "cpu (2)"}
    summary = json.loads((tmp_path / "two.json").read_text())
    counts = {name: summary[name] for name in ("images", "encoded", "skipped", "failed", "stopped")}
    assert counts == {"images": 13, "encoded": 12, "skipped": 0, "failed": 1, "stopped": False}
    assert set(summary["devices"]) == {"cpu (1)", "cpu (2)"}
    again = _featprep(*usual, "--output", str(tmp_path / "two"))  # one device goes on with it
    assert "12 done before" in again.communicate(timeout=240)[1]


def test_a_line_goes_out_whole_since_other_processes_write_there_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        sys, "stderr", SimpleNamespace(write=written.append, flush=lambda: written.append("flush"))
    )
    say("done", "all")
    assert [text for text in written if text] == ["done     all\n", "flush"]


def test_a_signal_to_the_parent_stops_every_process_cleanly(tmp_path: Path) -> None:
    source, output = _images(tmp_path / "in", 400), tmp_path / "out"
    words = ["--input", str(source), "--output", str(output), "--model", "hf:tiny", "--size", "224"]
    run = _featprep("encode", *words, "--device", "cpu,cpu")
    deadline = time.monotonic() + 200
    begun = [output / ".featprep" / f"results-{shard}-of-2.jsonl" for shard in (1, 2)]
    while not all(path.exists() for path in begun) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=120)[1]
    assert run.returncode == 130
    assert said.count("stopping   finishing what is in flight") == 2
    assert said.count("the same command goes on from here") == 2
    assert 0 < len(_maps(output)) // 2 < 400
    assert not list(output.rglob("*.tmp"))


def test_a_refusal_that_needs_no_weights_is_said_once(tmp_path: Path) -> None:
    run = _featprep(
        "encode", "--input", str(tmp_path), "--output", str(tmp_path / "out"), "--model", "hf:tiny",
        "--device", "cpu,cpu",
    )  # fmt: skip
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 2
    assert said.startswith("featprep: --input")
    assert said.count("no image") == 1
