"""A folder of everything that image folders hold but images: each file is a whole result or one
line in failures.jsonl, through the real decoding processes, and the neighbours are unharmed."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from featprep.commands import encode_run
from featprep.decode_pool import DecodePool
from fuzz_inputs import image_seeds
from image_bytes import tiff
from PIL import Image
from test_encode_run import Bench, bench  # noqa: F401 (a fixture)

SUFFIXES = {
    b"\x89P": ".png",
    b"\xff\xd8": ".jpg",
    b"RI": ".webp",
    b"BM": ".bmp",
    b"II": ".tif",
    b"MM": ".tiff",
    b"GI": ".gif",
    b"\0\0": ".avif",
}


def _photo(**how: object) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG", **how)
    return file.getvalue()


def _saved(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def _nan() -> bytes:
    values = np.ones((9, 9), np.float32)
    values[4, 4] = np.nan
    return tiff(values)


def bytes_by_name() -> dict[bytes, bytes]:
    """File name → content. Names are bytes: some are no text."""
    photo, rng = _photo(), np.random.default_rng(1)
    files = {b"cut/%05d.jpg" % end: photo[:end] for end in range(0, len(photo), 64)}
    for number in range(40):
        raw = bytearray(photo)
        raw[rng.integers(2, len(raw))] ^= 1 << rng.integers(8)
        files[b"flipped/%02d.jpg" % number] = bytes(raw)
    for number, data in enumerate(image_seeds()):
        files[b"kinds/%02d%s" % (number, SUFFIXES[data[:2]].encode())] = data
        files[b"wrong/%02d.png" % number] = data
        files[b"half/%02d.png" % number] = data[: len(data) // 2]
    odd = [b"a b", b"a\nb", b"'\"`$(x)", "😀".encode(), b"\xff\xfe", b"-rf", b"\x1b[2J", b"x" * 200]
    plain = _saved(Image.new("RGB", (9, 9), 7), "PNG")
    files |= {b"names/" + name + b".png": plain for name in odd}
    files[b"names/" + b"y" * 251 + b".png"] = plain  # its mask's name is too long
    files[b"sizes/1x1.png"] = _saved(Image.new("RGB", (1, 1), 7), "PNG")
    files[b"sizes/30000x1.png"] = _saved(Image.new("RGB", (30000, 1), 7), "PNG")
    files[b"sizes/bomb.png"] = _saved(Image.new("1", (20000, 20000)), "PNG")
    files[b"icc.jpg"], files[b"exif.jpg"] = _photo(icc_profile=b"x"), _photo(exif=b"Exif\0\0II*\0")
    files[b"nan.tif"], files[b"zeros.png"] = _nan(), bytes(1000)
    return files


@pytest.fixture
def hostile(bench: Bench) -> Bench:  # noqa: F811
    for name, data in bytes_by_name().items():
        path = os.path.join(os.fsencode(bench.input), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(data)
    odd = bench.input / "odd"
    (odd / "folder.png").mkdir(parents=True)
    (odd / "loop").symlink_to(odd)
    (odd / "circle.png").symlink_to(odd / "circle.png")
    os.mkfifo(odd / "fifo.png")
    for number in range(3):
        bench.image(f"good/{number}.png", (60 * number, 20, 10))
    return bench


def test_every_hostile_file_is_a_whole_result_or_one_line_and_good_ones_are_unharmed(
    hostile: Bench,
) -> None:
    pool = DecodePool
    hostile.run("--plan", "--size", "32")  # InlinePool is set by run: the real one goes over it
    set_attribute = hostile.monkeypatch.setattr
    hostile.monkeypatch.setattr = lambda place, name, value: set_attribute(  # type: ignore[method-assign]
        place, name, pool if (place, name) == (encode_run, "DecodePool") else value
    )
    assert hostile.run("--size", "32", "--workers", "2", "--names", "full") == 3
    lines = hostile.lines("failures.jsonl")
    failed = {line["key"]: f"{line['stage']}: {line['reason']}" for line in lines}
    done = {line["key"] for line in hostile.lines("results-all.jsonl")}
    images = {
        os.path.relpath(os.path.join(folder, name), hostile.input)
        for folder, _, names in os.walk(hostile.input)
        for name in names
    }
    assert len(lines) == len(failed)
    assert not done & set(failed)
    assert done | set(failed) == images
    assert all(reason.isprintable() and len(reason) < 400 for reason in failed.values()), failed
    assert all(map(str.isprintable, hostile.said.removesuffix("\n").split("\n")))
    for key in done:
        assert np.isfinite(hostile.load(f"{key}.npy")).all()
        assert hostile.load(f"{key}_mask.npy").shape == (4, 4)
    for number in range(3):
        colours = hostile.load(f"good/{number}.png.npy")[:, 0, 0].tolist()
        assert colours == [60.0 * number, 20.0, 10.0]
    counts = Counter(key.partition("/")[0] for key in done)
    assert counts["cut"] == 0
    assert (counts["half"], counts["names"]) == (0, 8)
    assert counts["kinds"] == counts["wrong"] == len(image_seeds())
    assert failed["odd/fifo.png"] == "read: not a regular file"
    assert failed["odd/circle.png"] == "read: link that leads nowhere"
    assert failed["sizes/bomb.png"].startswith("decode: 20000×20000 is 400,000,000 pixels")
    assert failed["zeros.png"].startswith("decode: the file holds zero bytes only")
    assert {"icc.jpg", "exif.jpg", "sizes/1x1.png", "sizes/30000x1.png"} <= done
    print(json.dumps({"files": len(images), "results": len(done), "failures": len(failed)}))
