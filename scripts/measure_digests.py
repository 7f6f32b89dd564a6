"""What digests cost a run: the same images encoded with and without them, and with other hashes.

    python scripts/measure_digests.py FOLDER [--rounds 9] [--repeat 4] [--model ARCHITECTURE]

A timm architecture with full-size random weights, by default CLIP B/32's tower. The switch is here
alone: digests are replaced in this process, which decodes too, so that every cost falls on one
clock. Rounds alternate and each begins with another variant, since machines drift. Prints what each
variant adds to a run without digests, in processor seconds, per round and as the median.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data-preprocess"))

import xxhash
from featprep import cli, decoding, session
from featprep.commands import encode_run
from featprep.encoders.random_modules import write_timm
from featprep.images import SUFFIXES
from featprep.session import Session
from featprep.stores import base


class Nothing:
    """A hash that reads nothing."""

    def __init__(self, data: bytes = b"") -> None: ...

    def update(self, data: bytes) -> None: ...

    def hexdigest(self) -> str:
        return "0" * 32


# of the source image, of the files written
VARIANTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "none": (Nothing, Nothing),
    "sha256 of sources alone": (hashlib.sha256, Nothing),
    "sha256, files xxh3 (shipped)": (hashlib.sha256, xxhash.xxh3_128),
    "sha256, files sha256": (hashlib.sha256, hashlib.sha256),
    "sha256, files blake2b": (hashlib.sha256, hashlib.blake2b),
}


class InlinePool:
    """Decodes here, one image after the other."""

    workers = 1

    def __init__(self, workers: int, timeout_s: float) -> None: ...

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, jobs: Any, rules: Any, ahead: int) -> Iterator[Any]:
        for ref, lanes in jobs:
            outcomes = decoding.prepare_job(ref, [rules[n] for n in lanes])
            yield dict(zip(lanes, outcomes, strict=True))


def rates() -> None:
    data = os.urandom(1 << 24)
    for name, make in (("xxh3_128", xxhash.xxh3_128), ("sha256", hashlib.sha256),
                       ("blake2b", hashlib.blake2b)):  # fmt: skip
        took = []
        for _ in range(9):
            began = time.process_time()
            make(data).hexdigest()
            took.append(time.process_time() - began)
        print(f"{name:<10} {len(data) / statistics.median(took) / 1e9:6.2f} GB/s")


def seconds(words: list[str], variant: str) -> float:
    """Processor seconds of one run into a new folder."""
    of_source, of_files = VARIANTS[variant]
    with (
        tempfile.TemporaryDirectory() as output,
        mock.patch.object(decoding, "hashlib", SimpleNamespace(sha256=of_source)),
        mock.patch.object(base, "xxhash", SimpleNamespace(xxh3_128=of_files)),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        began = time.process_time()
        code = cli.main(["encode", "--output", output, "--quiet", *words])
        took = time.process_time() - began
    if code != 0:
        raise SystemExit(f"the run ended with {code}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=4, help="times each image is taken")
    parser.add_argument("--model", default="vit_base_patch32_clip_224", help="timm's name")
    flags = parser.parse_args()
    rates()
    mock.patch.object(encode_run, "DecodePool", InlinePool).start()
    with tempfile.TemporaryDirectory() as root:
        os.environ["XDG_CACHE_HOME"] = root
        source, weights = Path(root, "in"), write_timm(flags.model, Path(root, "weights"))
        source.mkdir()
        paths = [p for p in sorted(flags.folder.rglob("*")) if p.suffix.lower() in SUFFIXES]
        for number in range(flags.repeat):
            for path in paths:
                (source / f"{number}-{path.name}").symlink_to(path.resolve())
        model = f"timm:{flags.model}={weights}"
        words = ["--input", str(source), "--model", model, "--device", "cpu", "--names", "full"]
        keep_encoder()
        seconds(words, "none")  # imports, caches
        compare(words, flags.rounds, len(paths) * flags.repeat)


def keep_encoder() -> None:
    """Loaded once: what is compared is the time of images."""
    kept: list[Session] = []

    def open_session(*asked: Any, **options: Any) -> Session:
        kept.extend([] if kept else [session.open_session(*asked, **options)])
        return kept[0]

    mock.patch.object(encode_run, "open_session", open_session).start()


def compare(words: list[str], rounds: int, images: int) -> None:
    names = list(VARIANTS)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            taken[name].append(seconds(words, name))
    none = taken["none"]
    print(f"{images} images, {rounds} rounds, {statistics.median(none):.2f} s of processor without")
    for name in names[1:]:
        added = sorted(a / b - 1 for a, b in zip(taken[name], none, strict=True))
        median = statistics.median(added)
        print(f"{name:<30} {median:+7.2%}   from {added[0]:+.2%} to {added[-1]:+.2%}")


if __name__ == "__main__":
    main()
