"""Decoding in processes of its own: what hangs or dies costs its image alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from featprep import decode_pool
from featprep.decode_pool import Chunk, DecodePool, prepare_chunk
from featprep.decoding import DecodeRules, Outcome
from featprep.errors import DecodersError
from featprep.geometry import Geometry
from featprep.records import Failure, ImageRef, Prepared
from PIL import Image

RULES = DecodeRules(Geometry("crop", (32, 32), 8, (4, 4)))
GONE = Failure("gone", "gone.png", "read", "No such file or directory")


def _ref(path: Path, size: int | None = None) -> ImageRef:
    there = path.stat().st_size if path.exists() else -1
    return ImageRef(path.stem, path.name, str(path), there if size is None else size, 0)


def _image(path: Path) -> Path:
    Image.new("RGB", (40, 32), (9, 8, 7)).save(path)
    return path


def hang_or_die(chunk: Chunk, rules: Sequence[DecodeRules]) -> list[tuple[Outcome, ...]]:
    """Stands for a decoder with a defect; spawned workers import it from this file."""
    keys = [ref.key for ref, _ in chunk]
    if "hangs" in keys:
        time.sleep(600)
    if "dies" in keys:
        os.kill(os.getpid(), signal.SIGSEGV)
    return prepare_chunk(chunk, rules)


def count_keys(chunk: Chunk, rules: Sequence[DecodeRules]) -> list[tuple[Outcome, ...]]:
    """Failures that say how many images their job had."""
    return [(Failure(ref.key, "", "decode", str(len(chunk))),) for ref, _ in chunk]


@pytest.mark.parametrize(("ahead", "jobs"), [(4, "alone"), (32, "together")])
def test_a_decoder_that_hangs_or_dies_costs_its_image_alone(
    ahead: int, jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a", "hangs", "b", "dies", "c", "d"]
    refs = [_ref(_image(tmp_path / f"{name}.png")) for name in names]
    monkeypatch.setattr(decode_pool, "prepare_chunk", hang_or_die)
    with DecodePool(workers=2, timeout_s=1.5) as pool:
        outcomes = list(pool.map(refs, RULES, ahead))
    failed = {o.key: (o.stage, o.reason) for o in outcomes if isinstance(o, Failure)}
    assert failed == {
        "hangs": ("decode", "decoding took longer than 1.5 s (--decode_timeout)"),
        "dies": ("decode", "the decoder died (SIGSEGV)"),
    }
    assert sorted(o.ref.key for o in outcomes if isinstance(o, Prepared)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("ahead", "size", "together"),
    [
        (2, 1000, {"1"}),  # a worker has the next while one is encoded
        (24, 1000, {"12", "4"}),
        (400, 1000, {"16", "12"}),
        (400, 3_000_000, {"2"}),  # large files take long enough by themselves
    ],
)
def test_small_images_share_a_job(
    ahead: int, size: int, together: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_pool, "prepare_chunk", count_keys)
    refs = [ImageRef(str(i), "", "", size, 0) for i in range(28)]
    with DecodePool(workers=1, timeout_s=60) as pool:
        outcomes = list(pool.map(refs, RULES, ahead))
    assert {o.reason for o in outcomes if isinstance(o, Failure)} == together
    assert [o.key for o in outcomes if isinstance(o, Failure)] == [str(i) for i in range(28)]


@pytest.mark.parametrize("ahead", [3, 8])
def test_no_more_images_are_taken_ahead_than_allowed(ahead: int, tmp_path: Path) -> None:
    path, taken = _image(tmp_path / "a.png"), []

    def refs() -> Iterator[ImageRef]:
        for i in range(40):
            taken.append(i)
            yield ImageRef(str(i), "a.png", str(path), 0, 0)

    with DecodePool(workers=1, timeout_s=60) as pool:
        outcomes = pool.map(refs(), RULES, ahead)
        for done in range(1, 30):
            next(outcomes)
            assert len(taken) <= done + ahead


def test_workers_import_no_torch(tmp_path: Path) -> None:
    with DecodePool(workers=1, timeout_s=60) as pool:
        next(iter(pool.map([_ref(_image(tmp_path / "a.png"))], RULES, ahead=1)))
        loaded = pool._pool.schedule(_loaded_modules).result()
    assert loaded == []


def _loaded_modules() -> list[str]:
    return [name for name in ("torch", "transformers", "clip", "cv2") if name in sys.modules]


def test_each_image_is_decoded_under_the_rules_of_the_networks_that_want_it(tmp_path: Path) -> None:
    fine = DecodeRules(Geometry("crop", (16, 16), 8, (2, 2)))
    jobs = [(_ref(_image(tmp_path / "a.png")), (0, 1)), (_ref(tmp_path / "gone.png"), (1,))]
    with DecodePool(workers=1, timeout_s=60) as pool:
        both, one = pool.run(jobs, (RULES, fine), ahead=4)
    shapes = {n: o.pixels.shape for n, o in both.items() if isinstance(o, Prepared)}
    assert shapes == {0: (3, 32, 32), 1: (3, 16, 16)}
    assert one == {1: GONE}


def test_a_pool_whose_processes_stand_still_between_two_images_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after one was killed while it held what all of them share."""
    monkeypatch.setattr(decode_pool, "_PATIENCE_S", 2.0)
    refs = [_ref(_image(tmp_path / f"{name}.png")) for name in "abcdef"]
    with DecodePool(workers=2, timeout_s=3) as pool:
        assert isinstance(next(iter(pool.map(refs[:1], RULES, ahead=1))), Prepared)
        for process in multiprocessing.active_children():
            psutil.Process(process.pid).suspend()
        outcomes = list(pool.map(refs, RULES, ahead=4))
    assert sorted(one.ref.key for one in outcomes if isinstance(one, Prepared)) == list("abcdef")
    end = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.1)
    assert multiprocessing.active_children() == []


def end_at_once(parent: int) -> None:
    """Stands for a machine without memory for another process."""
    os._exit(3)


def test_processes_that_never_decode_end_the_run_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_pool, "_start_worker", end_at_once)
    monkeypatch.setattr(decode_pool, "_MOST_POOLS", 2)
    refs = [_ref(_image(tmp_path / f"{name}.png")) for name in "abc"]
    with (
        pytest.raises(DecodersError) as caught,
        DecodePool(workers=1, timeout_s=60) as pool,
    ):
        list(pool.map(refs, RULES, ahead=2))
    assert caught.value.exit_code == 4
    assert str(caught.value) == (
        "the processes that decode end before they decode anything, 2 times in a row: is there "
        "memory for them? Fewer --workers take less; the same command goes on from here"
    )
