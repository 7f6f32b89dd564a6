"""A short run of the fuzzer, and that it sees what it looks for. scripts/fuzz.sh runs it at length;
what it found stands as a case in the test of its module."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fuzz import fuzz
from fuzz_inputs import image_seeds
from fuzz_targets import BadWordsError, Outcome, Target, check_words

HARNESS = Path(__file__).parent / "fuzz.py"


def test_a_thousand_damaged_inputs_are_results_or_refusals_of_one_line() -> None:
    done = subprocess.run(
        [sys.executable, HARNESS, "--inputs", "1200", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert told["found"] == []
    assert told["inputs"] > 1100
    assert min(told["targets"]["image"][name] for name in ("result", "refused")) > 10
    assert all("lines" in counts and len(counts) > 1 for counts in told["targets"].values())


def test_there_is_an_image_of_every_format() -> None:
    heads = {data[:2] for data in image_seeds()}
    assert heads >= {b"\x89P", b"\xff\xd8", b"RI", b"BM", b"II", b"MM", b"GI", b"\0\0"}


@pytest.mark.parametrize("text", ["", "a\nb", "\x1b[2J", "\u202e", "x" * 1001])
def test_words_that_no_one_can_read_are_no_refusal(text: str) -> None:
    with pytest.raises(BadWordsError):
        check_words(text)


def _prints(data: bytes, folder: Path) -> Outcome:
    print("complaint", file=sys.stderr)
    return "result"


def _raises(data: bytes, folder: Path) -> Outcome:
    raise KeyError("x")


def _eats(data: bytes, folder: Path) -> Outcome:
    np.ones(60_000_000)
    return "result"


def _sleeps(data: bytes, folder: Path) -> Outcome:
    time.sleep(30)
    return "result"


def _dies(data: bytes, folder: Path) -> Outcome:
    os.kill(os.getpid(), signal.SIGKILL)
    return "result"


@pytest.mark.parametrize(
    ("run", "found"),
    [
        (_prints, "noise: complaint"),
        (_raises, "KeyError at test_fuzz.py:"),
        (_eats, "memory"),
        (_sleeps, "hung"),
        (_dies, "the process ended with -9"),
    ],
)
def test_the_fuzzer_sees_what_it_looks_for(
    run: object, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuzz.SLOW_S", 300)  # a machine that others use is slow by itself
    monkeypatch.setattr("fuzz.HUNG_S", 1 if run is _sleeps else 300)
    state = fuzz("t", Target(1, lambda: [b"seed"], run), 1, 1, time.monotonic() + 60)  # type: ignore[arg-type]
    assert [one["what"].startswith(found) for one in state.found] == [True]
    assert bytes.fromhex(state.found[0]["input"])
