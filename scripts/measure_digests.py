"""What digests cost a run: the same images encoded with and without them.

    python scripts/measure_digests.py FOLDER [--rounds 15] [--repeat 1] [--model ARCHITECTURE]

A timm architecture with full-size random weights, by default CLIP B/32's tower. The switch is here
alone: digests are replaced in this process, which decodes too, so that every cost falls on one
clock, the processor's. Prints what digests add to a run without, per round and as the median; the
first of a pair changes from round to round, since machines drift. Then, of one run each, the share
that the digests themselves took, with this hash of the files written and with others.
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
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
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


class Timed:
    """A hash that adds up what it costs."""

    spent: ClassVar[dict[str, float]] = {"sources": 0.0, "files": 0.0}

    def __init__(self, of: str, make: Callable[..., Any], data: bytes = b"") -> None:
        self._of = of
        began = time.thread_time()
        self._hash = make(data)
        self._add(began)

    def _add(self, began: float) -> None:
        self.spent[self._of] += time.thread_time() - began

    def update(self, data: bytes) -> None:
        began = time.thread_time()
        self._hash.update(data)
        self._add(began)

    def hexdigest(self) -> str:
        digest: str = self._hash.hexdigest()
        return digest


FILES: dict[str, Callable[..., Any]] = {
    "xxh3_128": xxhash.xxh3_128,
    "sha256": hashlib.sha256,
    "blake2b": hashlib.blake2b,
}
Hashes = tuple[Callable[..., Any], Callable[..., Any]]  # of the source image, of the files written
NONE: Hashes = (Nothing, Nothing)
SHIPPED: Hashes = (hashlib.sha256, xxhash.xxh3_128)


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
    for name, make in FILES.items():
        took = []
        for _ in range(9):
            began = time.process_time()
            make(data).hexdigest()
            took.append(time.process_time() - began)
        print(f"{name:<10} {len(data) / statistics.median(took) / 1e9:6.2f} GB/s")


def seconds(words: list[str], hashes: Hashes) -> float:
    """Processor seconds of one run into a new folder."""
    of_source, of_files = hashes
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
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeat", type=int, default=1, help="times each image is taken")
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
        seconds(words, NONE)  # imports, caches
        print(f"{len(paths) * flags.repeat} images, {flags.rounds} rounds")
        compare(words, flags.rounds)
        shares(words)


def keep_encoder() -> None:
    """Loaded once: what is compared is the time of images."""
    kept: list[Session] = []

    def open_session(*asked: Any, **options: Any) -> Session:
        kept.extend([] if kept else [session.open_session(*asked, **options)])
        return kept[0]

    mock.patch.object(encode_run, "open_session", open_session).start()


def compare(words: list[str], rounds: int) -> None:
    added, without = [], []
    for number in range(rounds):
        pair = (NONE, SHIPPED) if number % 2 else (SHIPPED, NONE)
        took = {hashes: seconds(words, hashes) for hashes in pair}
        added.append(took[SHIPPED] / took[NONE] - 1)
        without.append(took[NONE])
    told = statistics.median(added), *statistics.quantiles(added)[::2], min(added), max(added)
    print(f"without digests {statistics.median(without):.2f} s of processor")
    print("with them {:+.2%}, quartiles {:+.2%} {:+.2%}, from {:+.2%} to {:+.2%}".format(*told))


def shares(words: list[str]) -> None:
    for name, make in FILES.items():
        Timed.spent.update(sources=0.0, files=0.0)
        took = seconds(
            words, (partial(Timed, "sources", hashlib.sha256), partial(Timed, "files", make))
        )
        parts = (f"{of} {spent / took:.3%}" for of, spent in Timed.spent.items())
        print(f"files by {name:<10} share of the run: {', '.join(parts)}")


if __name__ == "__main__":
    main()
