"""A run that is killed at any moment leaves only whole files, and the same command goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent / "kill_harness.py"


@pytest.mark.parametrize(
    ("flags", "earlier", "least"),
    [
        ("--save_meta", "", 40),
        ("--layer=-1,1,0 --prefix --pooled --masked_pool", "", 70),
        (
            "--overwrite --background=white",
            "--background=black --layer=1,3 --prefix",
            60,
        ),
    ],
    ids=["a first run", "of several layers", "while --overwrite replaces another setting"],
)
def test_a_run_killed_at_any_step_resumes_to_the_same_bytes(
    tmp_path: Path, flags: str, earlier: str, least: int
) -> None:
    words = [str(tmp_path), f"--flags={flags}", f"--earlier={earlier}"]
    done = subprocess.run(
        [sys.executable, HARNESS, *words], capture_output=True, text=True, timeout=300
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["kills"] >= least
