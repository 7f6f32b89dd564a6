"""A file that ends too early: a failure in plain words, or with --allow_truncated what is there."""

from __future__ import annotations

import io
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from featprep import api, cli
from featprep.codec_state import lenient_pillow, strict_pillow
from featprep.errors import ImageError, TruncatedError
from featprep.image_files import read_image_file
from featprep.images import CUT_SHORT, decode
from fuzz_inputs import image_seeds
from image_bytes import png
from PIL import Image, ImageFile
from test_encode_run import Bench, bench  # noqa: F401 (a fixture)

SEEDS = image_seeds()
PLAIN = {
    "the file ends before the image does",
    "its compressed data is damaged or its compression is not supported",
    "its tags are damaged or cut short",
    "its boxes are damaged or cut short",
    "a chunk of it is damaged or cut short",
    "it is damaged or cut short",
    "it holds no image, or is cut short before its first",
    "it holds no image data",
    "its header is damaged",
    "its tag 320 is missing",
}


def photo(kind: str, mode: str = "RGB", **how: object) -> bytes:
    """96 rows of noise, the lower ones as unlike as the upper ones."""
    values = np.random.default_rng(3).integers(0, 256, (96, 64, len(mode)), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values, mode).save(file, kind, **how)
    return file.getvalue()


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_a_file_cut_anywhere_is_a_failure_in_plain_words_or_the_whole_picture(number: int) -> None:
    data = SEEDS[number]
    whole = decode(data)
    for end in range(16, len(data), 13):
        try:
            cut = decode(data[:end])
        except ImageError as error:
            words = str(error)
            about = words.partition(" is truncated: ")[2] or words.partition(" decoded: ")[2]
            is_told = about in PLAIN or words.startswith(("OpenCV", "TIFF with", "its bytes are"))
            assert is_told, words
            continue
        # it ends behind its first image: checksums, further frames
        assert np.array_equal(np.asarray(cut.rgb), np.asarray(whole.rgb))
        assert (cut.alpha is None) == (whole.alpha is None)
        assert cut.alpha is None or np.array_equal(cut.alpha, whole.alpha)
        assert cut.notes == whole.notes


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_jpeg_without_its_last_rows_or_scans_is_truncated(how: dict[str, object]) -> None:
    data = photo("JPEG", **how)
    for end in range(len(data) - 2000, len(data) - 2, 64):
        with pytest.raises(TruncatedError, match=r"^JPEG is truncated: the file ends before "):
            decode(data[:end])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "GIF"])
def test_what_is_there_is_read_where_that_is_asked_for_and_noted(kind: str) -> None:
    data = photo(kind)
    whole = np.asarray(decode(data).rgb)
    picture = decode(data[: len(data) * 3 // 4], allow_truncated=True)
    assert picture.notes == (CUT_SHORT,)
    rows = np.asarray(picture.rgb)
    assert rows.shape == whole.shape
    same = (rows == whole).all(axis=(1, 2))  # BMPs begin below, GIFs with every eighth row
    assert 48 <= same.sum() <= 90
    assert decode(data, allow_truncated=True).notes == ()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("WEBP", "WebP is truncated: the file ends before the image does"),
        ("AVIF", "AVIF cannot be decoded: its boxes are damaged or cut short"),
    ],
)
def test_formats_whose_decoders_want_the_whole_file_still_fail(kind: str, reason: str) -> None:
    data = photo(kind)
    with pytest.raises(ImageError) as caught:
        decode(data[: len(data) * 3 // 4], allow_truncated=True)
    assert str(caught.value) == reason


def test_of_16_bit_colour_no_part_is_read_since_the_rest_would_be_old_memory() -> None:
    values = np.random.default_rng(3).integers(0, 65536, (96, 64, 4), dtype=np.uint16)
    with pytest.raises(ImageError) as caught:
        decode(png(values)[:30_000], allow_truncated=True)
    assert str(caught.value) == "of this depth no part is read of a file that is cut short"


def test_too_many_pixels_and_no_image_stay_failures(tmp_path: Path) -> None:
    for data in (b"", bytes(1000), photo("PNG")[:20], photo("JPEG")[:40]):
        with pytest.raises(ImageError):
            decode(data, allow_truncated=True)
    with pytest.raises(ImageError, match="more than --max_pixels 100"):
        decode(photo("PNG")[:-400], max_pixels=100, allow_truncated=True)


def test_threads_that_decode_strictly_meanwhile_stay_strict() -> None:
    cut = photo("JPEG")[:-900]

    def strictly(_: int) -> str:
        try:
            return str(decode(cut).notes)
        except TruncatedError:
            return "refused"

    def leniently(_: int) -> str:
        return str(decode(cut, allow_truncated=True).notes)

    jobs = [strictly, leniently] * 60
    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(lambda job: job(0), jobs))
    assert told[::2] == ["refused"] * 60
    assert told[1::2] == [str((CUT_SHORT,))] * 60
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_the_lenient_one_waits_for_the_strict_and_the_other_way_round() -> None:
    seen: list[bool] = []

    def lenient() -> None:
        with lenient_pillow():
            seen.append(ImageFile.LOAD_TRUNCATED_IMAGES)

    with strict_pillow(), strict_pillow():
        thread = threading.Thread(target=lenient)
        thread.start()
        thread.join(0.2)
        assert (thread.is_alive(), seen, ImageFile.LOAD_TRUNCATED_IMAGES) == (True, [], False)
    thread.join(10)
    assert seen == [True]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_run_encodes_what_is_there_and_says_so(bench: Bench) -> None:  # noqa: F811
    data = photo("PNG")
    bench.input.mkdir(exist_ok=True)
    (bench.input / "cut.png").write_bytes(data[: len(data) // 2])
    bench.image("whole.png")
    assert bench.run("--size", "32", "--save_meta") == 3
    (failed,) = bench.lines("failures.jsonl")
    assert failed["reason"] == "PNG is truncated: the file ends before the image does"
    whole = bench.tree()
    summary = str(bench.root / "summary.json")
    words = ("--size", "32", "--save_meta", "--allow_truncated", "--summary", summary)
    assert bench.run(*words) == 0
    assert f"\nnoted    1 × {CUT_SHORT}\n" in bench.said
    assert json.loads(Path(summary).read_text())["notes"] == {CUT_SHORT: 1}
    lines = {line["key"]: line for line in bench.lines("results-all.jsonl")}
    assert (lines["cut"]["notes"], lines["whole"]["notes"]) == ([CUT_SHORT], [])
    assert json.loads((bench.output / "cut.json").read_text())["notes"] == [CUT_SHORT]
    assert {name: bench.tree()[name] for name in whole} == whole
    assert not (bench.output / ".featprep/failures.jsonl").exists()
    assert cli.main(["status", str(bench.output)]) == 0
    assert f"\nnoted    1 × {CUT_SHORT}\n" in bench.capsys.readouterr().out


def test_from_python_too(tmp_path: Path) -> None:
    data = photo("JPEG")
    with pytest.raises(ImageError, match=r"^image 0: JPEG is truncated"):
        api.encode(data[:-900], model="hf:tiny", size=56)
    maps = api.encode(data[:-900], model="hf:tiny", size=56, allow_truncated=True)
    assert np.isfinite(maps.map).all()


# ---- files that are no image's length, or no file


def test_a_hole_of_a_terabyte_is_refused_before_a_byte_is_read(
    bench: Bench,  # noqa: F811
) -> None:
    path = bench.image("hole.png")
    os.truncate(path, 1 << 40)
    bench.image("good.png")
    assert bench.run("--size", "32") == 3
    assert [line["reason"] for line in bench.lines("failures.jsonl")] == [
        "1,099,511,627,776 bytes are more than an image of --max_pixels 200,000,000 has"
    ]


def test_a_mask_file_without_end_fails_its_image(bench: Bench) -> None:  # noqa: F811
    bench.image("a.png")
    (bench.root / "masks").mkdir()
    with (bench.root / "masks/a.png").open("wb") as file:
        file.truncate(1 << 40)
    assert bench.run("--size", "32", "--mask_dir", str(bench.root / "masks")) == 3
    assert [line["reason"] for line in bench.lines("failures.jsonl")] == [
        "mask file a.png: 1,099,511,627,776 bytes are more than an image of --max_pixels "
        "200,000,000 has"
    ]


def test_a_pipe_in_the_place_of_a_file_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError) as caught:
        read_image_file(str(tmp_path / "a.png"), 1000)
    assert (str(caught.value), caught.value.stage) == ("not a regular file", "read")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be nobody for a moment")
def test_a_file_that_may_not_be_read_says_so() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "a.png")
        path.write_bytes(photo("PNG"))
        path.chmod(0o000)
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError, match="Permission denied"):
                read_image_file(str(path), 1000)
        finally:
            os.seteuid(0)
