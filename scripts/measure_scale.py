"""Does a run stay as fast, and as small, however many images there are?

    python scripts/measure_scale.py [--images 1000,10000,100000] [--folder 1000] [--in DIR]

Runs `featprep encode` over hard links of a small image, `--folder` of them a directory, with the
encoder that the tests have (mean colours, computed at once), so that listing, records, files and
queues are all that is measured. Per number of images: the whole run; then, with one image's result
removed again, a resume over all the others. `first batch`: from the command to the first batch
encoded, as far as images decide it (the encoder is there at once), by the clock and in processor
time of the main thread, which does that work. `core-ms each`: processor time of all processes, an
image. 100,000 images take 1 GB and some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "data-preprocess")]

MOST_LINKS = 30_000  # to one file; ext4 allows 65,000


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. Memory is the peak of the main process; the decoding worker's stands beside it."""

    images: int
    encoded: int
    first_batch_s: float
    first_core_s: float
    wall_s: float
    core_s: float
    main_bytes: int
    worker_bytes: int


def make_images(folder: Path, count: int, a_folder: int) -> None:
    from PIL import Image

    original = folder / "0.png"
    for number in range(count):
        below = folder / f"{number // a_folder:06d}"
        if number % a_folder == 0:
            below.mkdir(parents=True)
        path = below / f"{number:09d}.png"
        if number % MOST_LINKS == 0:
            original = path
            Image.new("RGB", (40, 32), (200, 100, 50)).save(path)
        else:
            os.link(original, path)


def measure(source: Path, output: Path) -> Measured:
    words = [sys.executable, __file__, "--child", str(source), str(output)]
    done = subprocess.run(
        [*words, repr(time.monotonic())], check=True, capture_output=True, text=True
    )
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def child(source: str, output: str, began: float) -> dict[str, Any]:
    """One run in this process, which nothing else ran in before."""
    from fakes import FakeEncoder, describe, fake_session  # type: ignore[import-not-found]
    from featprep import encoders
    from featprep.commands import encode, encode_run

    encoder = FakeEncoder()
    first: list[float] = []

    def note(pixels: object) -> None:
        if not first:
            first.extend((time.monotonic(), time.thread_time()))

    encoder.before = note
    setattr(encode_run, "open_session", fake_session(encoder))  # noqa: B010
    setattr(encoders, "describe", describe)  # noqa: B010
    with tempfile.TemporaryDirectory() as folder:
        summary = f"{folder}/summary.json"
        words = ["--input", source, "--output", output, "--model", "clip:tiny", "--size", "32"]
        words += ["--batch_size", "8", "--workers", "1", "--quiet", "--summary", summary]
        if encode.main(words) != 0:
            raise SystemExit("the run did not end well")
        told = json.loads(Path(summary).read_text())
    unit = 1 if sys.platform == "darwin" else 1024
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "images": told["images"],
        "encoded": told["encoded"],
        "first_batch_s": first[0] - began,
        "first_core_s": first[1],
        "wall_s": time.monotonic() - began,
        "core_s": sum(one.ru_utime + one.ru_stime for one in used),
        "main_bytes": used[0].ru_maxrss * unit,
        "worker_bytes": used[1].ru_maxrss * unit,
    }


def measure_count(root: Path, count: int, a_folder: int) -> tuple[Measured, Measured]:
    """(the whole run, the resume over all but one) in a folder that is removed."""
    folder = Path(tempfile.mkdtemp(prefix=f"scale-{count}-", dir=root))
    try:
        make_images(folder / "in", count, a_folder)
        whole = measure(folder / "in", folder / "out")
        last = max((folder / "out").glob("[0-9]*"))
        max(last.glob("*[0-9].npy")).unlink()
        return whole, measure(folder / "in", folder / "out")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


HEAD = ("images", "run", "encoded", "wall s", "core-ms each", "first batch s", "its core-s",
        "main MB", "worker MB")  # fmt: skip
FORMAT = "{:>9}  {:<7}{:>9}  {:>9}  {:>12}  {:>13}  {:>10}  {:>8}  {:>9}"


def row(name: str, run: Measured) -> str:
    figures = (
        f"{run.images:,}",
        name,
        f"{run.encoded:,}",
        f"{run.wall_s:.1f}",
        f"{1000 * run.core_s / run.images:.3f}",
        f"{run.first_batch_s:.2f}",
        f"{run.first_core_s:.2f}",
        f"{run.main_bytes / 1e6:.1f}",
        f"{run.worker_bytes / 1e6:.1f}",
    )
    return FORMAT.format(*figures)


def verdict(runs: list[tuple[Measured, Measured]]) -> list[str]:
    (small, _), (large, resumed) = runs[0], runs[-1]
    slower = (large.core_s / large.images) / (small.core_s / small.images)
    grown = (large.main_bytes - small.main_bytes) / 1e6
    return [
        f"an image of {large.images:,} costs {slower:.2f} times one of {small.images:,} "
        "(start-up included)",
        f"the main process grew by {grown:.1f} MB",
        f"a resume over {resumed.images - 1:,} finished images adds "
        f"{resumed.first_batch_s - large.first_batch_s:.2f} s before its first batch, of which "
        f"{resumed.first_core_s - large.first_core_s:.2f} core-s are ours",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_AsItStands)
    parser.add_argument("--images", default="1000,10000,100000")
    parser.add_argument("--folder", type=int, default=1000, help="images a directory")
    parser.add_argument("--in", dest="root", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        source, output, began = flags.child
        print(json.dumps(child(source, output, float(began))))
        return
    print(FORMAT.format(*HEAD))
    runs = []
    for count in map(int, flags.images.split(",")):
        runs.append(measure_count(flags.root, count, flags.folder))
        print(row("whole", runs[-1][0]), row("resume", runs[-1][1]), sep="\n", flush=True)
    print(*verdict(runs), sep="\n")


class _AsItStands(argparse.RawDescriptionHelpFormatter):
    """The docstring's own lines."""


if __name__ == "__main__":
    main()
