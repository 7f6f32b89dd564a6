"""A folder of everything that image folders hold but images: each file is a whole result or one
line in failures.jsonl, through the real decoding processes, and the neighbours are unharmed.
tests/hostile_files.py does the same by the command, with the real odd files, and counts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from featprep.commands import encode_run
from fuzz_inputs import image_seeds
from hostile_files import make_tree, strange_lines, wrong_with
from test_encode_run import Bench, bench  # noqa: F401 (a fixture)

REAL_POOL = encode_run.DecodePool


@pytest.fixture
def hostile(bench: Bench) -> Bench:  # noqa: F811
    make_tree(bench.input)
    return bench


def with_real_pool(bench: Bench, *flags: str) -> int:  # noqa: F811
    """Bench.run sets the inline pool; the real one goes over it."""
    set_attribute = bench.monkeypatch.setattr
    bench.monkeypatch.setattr = lambda place, name, value: set_attribute(  # type: ignore[method-assign]
        place, name, REAL_POOL if (place, name) == (encode_run, "DecodePool") else value
    )
    return bench.run(*flags)


def test_every_hostile_file_is_a_whole_result_or_one_line_and_good_ones_are_unharmed(
    hostile: Bench,
) -> None:
    assert with_real_pool(hostile, "--size", "32", "--workers", "2", "--names", "full") == 3
    lines = hostile.lines("failures.jsonl")
    failed = {line["key"]: f"{line['stage']}: {line['reason']}" for line in lines}
    done = {line["key"] for line in hostile.lines("results-all.jsonl")}
    assert len(lines) == len(failed)
    assert list(wrong_with(hostile.root, done, failed)) == []
    assert strange_lines(hostile.said) == []
    for key in done:
        assert np.isfinite(hostile.load(f"{key}.npy")).all()
        assert hostile.load(f"{key}_mask.npy").shape == (4, 4)
    for number in range(3):
        colours = hostile.load(f"good/{number}.png.npy")[:, 0, 0].tolist()
        assert colours == [60.0 * number, 20.0, 10.0]
    counts = Counter(key.partition("/")[0] for key in done)
    assert (counts["half"], counts["names"]) == (0, 8)
    assert counts["kinds"] == counts["wrong"] == len(image_seeds())
    fine = {"odd/icc.jpg", "odd/exif.jpg", "odd/cmyk.jpg", "odd/ycck.jpg"}
    assert fine | {"sizes/1x1.png", "sizes/30000x1.png", "sizes/1x30000.webp"} <= done
    told = {
        "odd/fifo.png": "read: not a regular file",
        "odd/device.png": "read: not a regular file",
        "odd/circle.png": "read: link that leads nowhere",
        "odd/nowhere.png": "read: link that leads nowhere",
        "odd/hole.png": "read: 274,877,906,944 bytes are more than an image of --max_pixels "
        "200,000,000 has",
        "odd/nan.tif": "decode: holds NaN, infinite or immeasurably far values: no grey can be "
        "given to them",
        "sizes/bomb.png": "decode: 20000×20000 is 400,000,000 pixels, more than --max_pixels "
        "200,000,000",
        "sizes/text.png": "decode: PNG cannot be decoded: its texts unfold to too much",
    }
    assert {key: failed[key] for key in told} == told
    assert failed["odd/zeros.png"].startswith("decode: the file holds zero bytes only")


def test_what_is_read_does_not_depend_on_what_fails_beside_it(hostile: Bench) -> None:
    """Other neighbours, another order, another number of workers: the same bytes."""
    flags = ("--size", "32", "--names", "full", "--batch_size", "8")
    assert with_real_pool(hostile, *flags, "--workers", "3") == 3
    whole = hostile.tree()
    names = [line["key"] for line in hostile.lines("results-all.jsonl")]
    listed = sorted((name for name in names if "\n" not in name), reverse=True)
    path = hostile.input / "list.txt"
    path.write_bytes(b"".join(name.encode(errors="surrogateescape") + b"\n" for name in listed))
    hostile.output.rename(hostile.root / "whole")
    assert with_real_pool(hostile, *flags, "--workers", "1", "--input", str(path)) == 0
    alone = hostile.tree()
    assert len(alone) == 2 * len(listed) > 500
    assert {name: whole[name] for name in alone} == alone
