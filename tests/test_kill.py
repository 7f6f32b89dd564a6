"""A run that is killed at any moment leaves only whole files, and the same command goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent / "kill_harness.py"
MOMENTS = Path(__file__).parent / "kill_moments.py"


@pytest.mark.parametrize(
    ("flags", "earlier", "every", "least"),
    [
        ("--save_meta", "", 1, 40),
        ("--model=clip:tiny,hf:tiny", "", 2, 40),
        ("--layer=-1,1,0 --prefix --pooled --masked_pool", "", 1, 70),
        (
            "--overwrite --background=white",
            "--background=black --layer=1,3 --prefix",
            1,
            60,
        ),
        ("--table=v.npy --overwrite --normalize=all", "--normalize=each", 2, 14),
    ],
    ids=[
        "a first run",
        "of two encoders",
        "of several layers",
        "while --overwrite replaces another setting",
        "while --overwrite replaces vectors of another setting",
    ],
)
def test_a_run_killed_at_any_step_resumes_to_the_same_bytes(
    tmp_path: Path, flags: str, earlier: str, every: int, least: int
) -> None:
    table = [flag for flag in flags.split() if flag.startswith("--table=")]
    flags = " ".join(flag for flag in flags.split() if flag not in table)
    words = [str(tmp_path), f"--flags={flags}", f"--earlier={earlier}", f"--every={every}", *table]
    done = subprocess.run(
        [sys.executable, HARNESS, *words], capture_output=True, text=True, timeout=300
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["kills"] >= least


def test_real_runs_ended_at_random_moments_by_signals_go_on_to_the_same_bytes(
    tmp_path: Path,
) -> None:
    """Two here; `python tests/kill_moments.py FOLDER` ends two hundred."""
    words = [str(tmp_path), "--kills", "2", "--at_once", "1", "--seed", "5"]
    done = subprocess.run(
        [sys.executable, MOMENTS, *words], capture_output=True, text=True, timeout=900
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["kills"] == 2
    assert found["results compared"] > 800
    assert found["shards at once"] == 4
