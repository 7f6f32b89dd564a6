"""However many images: memory as for the largest directory, and a resume that opens none of them.

scripts/measure_scale.py measures the same, and time, up to 100,000 images.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from featprep import decoding
from PIL import Image
from test_encode_run import Bench, bench  # noqa: F401 (a fixture)

SCRIPT = Path(__file__).parent.parent / "scripts" / "measure_scale.py"
A_FOLDER = 40


def _links(folder: Path, start: int, stop: int) -> None:
    original = folder / "original.png"
    if not original.exists():
        Image.new("RGB", (40, 32), (200, 100, 50)).save(original)
    for number in range(start, stop):
        path = folder / f"{number // A_FOLDER:04d}" / f"{number:05d}.png"
        path.parent.mkdir(exist_ok=True)
        os.link(original, path)


def _peak(bench: Bench) -> int:  # noqa: F811
    tracemalloc.start()
    try:
        assert bench.run("--size", "32", "--quiet") == 0
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_with_the_largest_directory_and_not_with_the_images(
    bench: Bench,  # noqa: F811
    tmp_path: Path,
) -> None:
    bench.encoder.calls = _Forgetful()
    _links(bench.input, 0, A_FOLDER)
    assert bench.run("--size", "32", "--quiet") == 0  # what is imported and kept once
    _links(bench.input, A_FOLDER, 5 * A_FOLDER)
    few = _peak(bench)
    resumed_few = _peak(bench)
    _links(bench.input, 5 * A_FOLDER, 25 * A_FOLDER)
    many = _peak(bench)
    resumed_many = _peak(bench)
    # 800 images more; one kept as a path and a line would be 500 kB
    assert many - few < 100_000
    assert resumed_many - resumed_few < 100_000


class _Forgetful(list):  # type: ignore[type-arg]
    """The fake notes each call, which would be what grows."""

    def append(self, item: object) -> None: ...


def test_a_resume_opens_no_image_that_is_done(
    bench: Bench,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _links(bench.input, 0, 100)
    assert bench.run("--size", "32", "--quiet") == 0
    opened: list[str] = []
    read = decoding._read
    monkeypatch.setattr(
        decoding, "_read", lambda ref, most: opened.append(ref.key) or read(ref, most)
    )
    _links(bench.input, 100, 101)
    assert bench.run("--size", "32", "--quiet") == 0
    assert opened == ["0002/00100"]


def test_the_measurement_runs_and_says_what_it_found() -> None:
    words = [sys.executable, str(SCRIPT), "--images", "9", "--folder", "4"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    _, whole, resume, *verdict = done.stdout.splitlines()
    assert whole.split()[:3] == ["9", "whole", "9"]
    assert resume.split()[:3] == ["9", "resume", "1"]
    assert verdict[0] == "an image of 9 costs 1.00 times one of 9 (start-up included)"
    assert verdict[2].startswith("a resume over 8 finished images adds ")
