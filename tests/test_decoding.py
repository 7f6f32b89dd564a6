"""One decode job: from a path to the network's pixels, or what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from featprep import decoding
from featprep.decoding import DecodeRules, prepare, prepare_job
from featprep.geometry import Geometry
from featprep.records import Failure, ImageRef, Prepared
from PIL import Image

RULES = DecodeRules(Geometry("crop", (32, 32), 8, (4, 4)))


def _ref(path: Path) -> ImageRef:
    found = path.stat() if path.exists() else None
    size, time_ = (found.st_size, found.st_mtime_ns) if found else (-1, 0)
    return ImageRef(path.stem, path.name, str(path), size, time_)


def _image(path: Path) -> Path:
    Image.new("RGB", (40, 32), (9, 8, 7)).save(path)
    return path


def test_one_job_gives_pixels_mask_digest_and_what_was_read(tmp_path: Path) -> None:
    path = _image(tmp_path / "a.png")
    stale = ImageRef("a", "a.png", str(path), 1, 1)  # the file changed since it was listed
    prepared = prepare(stale, RULES)
    assert isinstance(prepared, Prepared)
    assert prepared.pixels.shape == (3, 32, 32)
    assert prepared.pixels[:, 0, 0].tolist() == [9, 8, 7]
    assert prepared.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (prepared.ref.size, prepared.ref.mtime_ns) == (
        path.stat().st_size,
        path.stat().st_mtime_ns,
    )


def test_a_file_that_vanished_is_a_failure_at_reading(tmp_path: Path) -> None:
    assert prepare(_ref(tmp_path / "gone.png"), RULES) == Failure(
        "gone", "gone.png", "read", "No such file or directory"
    )


def test_one_job_decodes_once_and_draws_once_what_two_networks_see_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (40, 32), (200, 100, 50, 128)).save(path)
    calls = {"decode": 0, "render": 0}

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return real(*args, **options)

        return call

    monkeypatch.setattr(decoding.images, "decode", counted("decode", decoding.images.decode))
    monkeypatch.setattr(decoding, "render", counted("render", decoding.render))
    fine, coarse = Geometry("crop", (32, 32), 8, (4, 4)), Geometry("crop", (32, 32), 16, (2, 2))
    white = replace(fine, background=(255, 255, 255))
    rules = [DecodeRules(geometry) for geometry in (fine, coarse, white)]
    one, two, three = prepare_job(_ref(path), rules)
    assert calls == {"decode": 1, "render": 2}
    for outcome, rule in zip((one, two, three), rules, strict=True):
        alone = prepare(_ref(path), rule)
        assert np.array_equal(outcome.pixels, alone.pixels)
        assert np.array_equal(outcome.mask, alone.mask)
        assert outcome.meta == alone.meta
    assert one.decode_s > 0
    assert (two.decode_s, two.read_s, three.decode_s) == (0, 0, 0)


def test_an_image_that_one_network_cannot_take_fails_for_that_one_alone(tmp_path: Path) -> None:
    keep = Geometry("keep", None, 8, None)
    rules = [DecodeRules(replace(keep, tile=(64, 64))), DecodeRules(keep)]
    failed, done = prepare_job(_ref(_image(tmp_path / "a.png")), rules)
    assert isinstance(failed, Failure)
    assert failed.reason.startswith("40×32 pixels give an input of 40×32, smaller than --tile")
    assert isinstance(done, Prepared)
