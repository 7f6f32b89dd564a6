"""What decoding in processes of its own costs: the same images decoded here and in one worker.

    python scripts/measure_decoding.py FOLDER [--rounds 5] [--repeat 1]

Prints images/s of both, per round and as medians, and their ratio; rounds alternate, since machines
drift.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data-preprocess"))

from featprep.decode_pool import DecodePool
from featprep.decoding import DecodeRules, prepare
from featprep.geometry import Geometry
from featprep.images import SUFFIXES
from featprep.records import Failure, ImageRef

RULES = DecodeRules(Geometry("crop", (224, 224), 14, (16, 16)))


def seconds(outcomes: Iterable[object]) -> float:
    began = time.perf_counter()
    failed = sum(isinstance(outcome, Failure) for outcome in outcomes)
    if failed:
        print(f"{failed} images failed", file=sys.stderr)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=1, help="times each image is taken")
    flags = parser.parse_args()
    paths = [p for p in sorted(flags.folder.rglob("*")) if p.suffix.lower() in SUFFIXES]
    refs = [ImageRef(p.stem, p.name, str(p), 0, 0) for p in paths] * flags.repeat
    here, pooled = [], []
    with DecodePool(workers=1, timeout_s=60) as pool:
        list(pool.map(refs[:2], RULES, ahead=2))  # started and warm
        for _ in range(flags.rounds):
            here.append(len(refs) / seconds(prepare(ref, RULES) for ref in refs))
            pooled.append(len(refs) / seconds(pool.map(refs, RULES, ahead=16)))
            print(f"here {here[-1]:8.1f} images/s   one worker {pooled[-1]:8.1f} images/s")
    ratio = statistics.median(b / a for a, b in zip(here, pooled, strict=True))
    alone, worker = statistics.median(here), statistics.median(pooled)
    print(f"median: here {alone:.1f}, one worker {worker:.1f}, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
