"""What decoding in processes of its own costs: the same images decoded here and in one worker,
there one image a job and, as a run has it, several.

    python scripts/measure_decoding.py FOLDER [--rounds 5] [--repeat 1]

Prints images/s of each, and the processor time that an image costs the process that asks; per round
and as medians. Rounds take turns, since machines drift.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data-preprocess"))

from featprep import decode_pool
from featprep.decode_pool import DecodePool
from featprep.decoding import DecodeRules, prepare
from featprep.geometry import Geometry
from featprep.images import SUFFIXES
from featprep.records import Failure, ImageRef

RULES = DecodeRules(Geometry("crop", (224, 224), 14, (16, 16)))


AHEAD = 384  # images in flight, as with batches of 128


def measure(outcomes: Iterable[object], count: int) -> tuple[float, float]:
    """(images/s, milliseconds of this process's processor time an image)."""
    began, cost = time.perf_counter(), time.process_time()
    failed = sum(isinstance(outcome, Failure) for outcome in outcomes)
    if failed:
        print(f"{failed} images failed", file=sys.stderr)
    spent = time.process_time() - cost
    return count / (time.perf_counter() - began), spent / count * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=1, help="times each image is taken")
    flags = parser.parse_args()
    paths = [p for p in sorted(flags.folder.rglob("*")) if p.suffix.lower() in SUFFIXES]
    refs = [ImageRef(p.stem, p.name, str(p), p.stat().st_size, 0) for p in paths] * flags.repeat
    several = decode_pool._MOST_IMAGES
    found: dict[str, list[tuple[float, float]]] = {}
    with DecodePool(workers=1, timeout_s=60) as pool:
        list(pool.map(refs[:2], RULES, ahead=2))  # started and warm
        for _ in range(flags.rounds):
            here = measure((prepare(ref, RULES) for ref in refs), len(refs))
            found.setdefault("here", []).append(here)
            for most in (1, several):
                decode_pool._MOST_IMAGES = most
                pooled = measure(pool.map(refs, RULES, AHEAD), len(refs))
                found.setdefault(f"worker, {most} a job", []).append(pooled)
            print("   ".join(f"{name} {rows[-1][0]:.1f}" for name, rows in found.items()))
    for name, rows in found.items():
        rate, cost = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"median: {name:<17} {rate:8.1f} images/s, {cost:.3f} ms here an image")


if __name__ == "__main__":
    main()
