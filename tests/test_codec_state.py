"""Pillow's and OpenCV's process-wide switches: without influence on us, and left as they were."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from featprep.codec_state import mute_decoders, pillow_limit, strict_pillow
from featprep.errors import ImageError
from featprep.images import decode
from PIL import Image, ImageFile

ROOT = Path(__file__).resolve().parents[1] / "data-preprocess"


def encoded(kind: str, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_truncated_file_fails_though_the_program_loads_truncated_images(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(kind)
    with pytest.raises(ImageError):
        decode(data[: len(data) * 2 // 3])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_the_programs_own_bomb_limit_is_neither_asked_nor_changed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(encoded(kind)).rgb.size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "GIF"])
def test_our_limit_holds_where_the_programs_is_lifted(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageError):
        decode(encoded(kind), max_pixels=1199)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert decode(encoded(kind), max_pixels=1200).rgb.size == (40, 30)


def test_pillows_limit_is_ours_while_lifted_and_comes_back_after_an_error() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with suppress(RuntimeError), pillow_limit(501):
        assert Image.MAX_IMAGE_PIXELS == 251
        raise RuntimeError
    assert before == Image.MAX_IMAGE_PIXELS


def test_pillows_warnings_are_silent_inside_and_others_are_not() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with strict_pillow():
            warnings.warn_explicit("from Pillow", UserWarning, "x", 1, module="PIL.TiffImagePlugin")
            warnings.warn_explicit("from elsewhere", UserWarning, "x", 1, module="mine")
        warnings.warn_explicit("from Pillow, after", UserWarning, "x", 1, module="PIL.Image")
    assert [str(entry.message) for entry in caught] == ["from elsewhere", "from Pillow, after"]


def test_an_inner_use_that_ends_leaves_the_outer_one_strict() -> None:
    before = list(warnings.filters)
    with strict_pillow():
        with strict_pillow():
            pass
        assert ImageFile.LOAD_TRUNCATED_IMAGES is False
        assert list(warnings.filters) != before
    assert list(warnings.filters) == before


def test_threads_that_overlap_leave_the_filters_as_they_were() -> None:
    before = list(warnings.filters)
    data = encoded("PNG")
    gate = threading.Barrier(8)

    def work() -> None:
        gate.wait()
        for _ in range(50):
            decode(data)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_a_caller_who_replaces_the_filters_meanwhile_is_not_disturbed() -> None:
    with warnings.catch_warnings(), strict_pillow():
        warnings.resetwarnings()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="file descriptors as POSIX has them")
def test_a_muted_worker_keeps_pythons_stderr_and_loses_the_libraries() -> None:
    code = (
        "import os, sys\n"
        f"from {mute_decoders.__module__} import mute_decoders\n"
        "mute_decoders()\n"
        "os.write(2, b'from C')\n"
        "print('from Python', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=True
    )
    assert done.stderr == b"from Python\n"
