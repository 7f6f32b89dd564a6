"""Encode a folder of everything that image folders hold, by the command, and count what came of it.

    python tests/hostile_files.py FOLDER [--data DIR]

Writes some 1,100 files that were made to go wrong below FOLDER, and of --data (as
FEATPREP_TEST_DATA) all of its `torture` folder whose suffix is an image's; encodes them by
`featprep encode` with its processes, stderr caught; then those that gave a result once more, alone,
in another order and by one worker. Prints one JSON object: files, results, failures by reason,
memory, and what was wrong: files that are neither or both, other bytes beside other neighbours,
lines on stderr that are none of ours, results that `featprep verify --deep` names. The exit code
is 1 if anything was.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT.parent / "data-preprocess")]

from featprep.images import SUFFIXES  # noqa: E402
from fuzz_inputs import image_seeds  # noqa: E402
from image_bytes import chunk, tiff  # noqa: E402

KINDS = {
    b"\x89P": ".png",
    b"\xff\xd8": ".jpg",
    b"RI": ".webp",
    b"BM": ".bmp",
    b"II": ".tif",
    b"MM": ".tiff",
    b"GI": ".gif",
    b"\0\0": ".avif",
}
OURS = re.compile(r"(encoder|device|input|shapes|failed|done|time|noted|progress|memory|) {1,9}\S")
WORKER_BYTES = 6_000_000_000  # of one decoding process: 200 million pixels, several copies of them


def photo(**how: Any) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG", **how)
    return file.getvalue()


def saved(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def suffix_of(data: bytes) -> str:
    return KINDS[data[:2]]


def bytes_by_name() -> dict[bytes, bytes]:
    """File name → content. Names are bytes: some are no text."""
    return {**_damaged(), **_kinds(), **_named(), **_sized()}


def _damaged() -> dict[bytes, bytes]:
    """Cut at every 64th byte, of each kind; a bit flipped, a second one beside it; other ends."""
    files, dice = {}, np.random.default_rng(1)
    whole = [photo(), photo(progressive=True), *image_seeds()]
    for number, data in enumerate(whole):
        kind = suffix_of(data).encode()
        for end in range(0, len(data), 64):
            files[b"cut/%02d-%05d%s" % (number, end, kind)] = data[:end]
        for turn in range(4):
            raw = bytearray(data)
            raw[dice.integers(2, len(raw))] ^= 1 << dice.integers(8)
            files[b"flipped/%02d-%d%s" % (number, turn, kind)] = bytes(raw)
        files[b"half/%02d.png" % number] = data[: len(data) // 2]
        files[b"zeroed/%02d%s" % (number, kind)] = data[: len(data) // 2].ljust(len(data), b"\0")
        files[b"longer/%02d%s" % (number, kind)] = data + bytes(100)
    return files


def _kinds() -> dict[bytes, bytes]:
    files: dict[bytes, bytes] = {}
    for number, data in enumerate(image_seeds()):
        files[b"kinds/%02d%s" % (number, suffix_of(data).encode())] = data
        files[b"wrong/%02d.png" % number] = data
    cmyk = saved(Image.new("CMYK", (9, 9), (10, 200, 30, 40)), "JPEG")
    at = cmyk.index(b"Adobe")
    ycck = cmyk[: at + 11] + b"\2" + cmyk[at + 12 :]  # the transform of its Adobe marker
    nan = np.ones((9, 9), np.float32)
    nan[4, 4] = np.nan
    return files | {
        b"odd/cmyk.jpg": cmyk,
        b"odd/ycck.jpg": ycck,
        b"odd/nan.tif": tiff(nan),
        b"odd/inf.tif": tiff(np.full((9, 9), np.inf, np.float32)),
        b"odd/icc.jpg": photo(icc_profile=b"x"),
        b"odd/exif.jpg": photo(exif=b"Exif\0\0II*\0"),
        b"odd/zeros.png": bytes(1000),
        b"odd/empty.png": b"",
        b"odd/text.png": b"not found\n",
        b"odd/page.jpg": b"<!DOCTYPE html><html></html>",
        b"odd/script.png": b"%!PS-Adobe-3.0\nshowpage\n",
    }


def _named() -> dict[bytes, bytes]:
    odd = [b"a b", b"a\nb", b"'\"`$(x)", "😀".encode(), b"\xff\xfe", b"-rf", b"\x1b[2J", b"x" * 200]
    plain = saved(Image.new("RGB", (9, 9), 7))
    files = {b"names/" + name + b".png": plain for name in odd}
    files[b"names/" + b"y" * 251 + b".png"] = plain  # its mask's name is too long
    return files


def _sized() -> dict[bytes, bytes]:
    """Extremes, and bombs: small files that claim or unfold to much."""
    header = (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300_000_000), 9))
    png = saved(Image.new("RGB", (9, 9), 7))
    end_of_header = 33
    return {
        b"sizes/1x1.png": saved(Image.new("RGB", (1, 1), 7)),
        b"sizes/30000x1.png": saved(Image.new("RGB", (30_000, 1), 7)),
        b"sizes/1x30000.webp": saved(Image.new("RGB", (1, 16_000), 7), "WEBP"),
        b"sizes/bomb.png": saved(Image.new("1", (20_000, 20_000))),
        b"sizes/claims.png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""),
        b"sizes/claims.gif": b"GIF89a" + b"\xff" * 4 + bytes(100),
        b"sizes/claims.tif": tiff(np.ones((9, 9), np.uint8), {256: [60_000], 257: [60_000]}),
        b"sizes/claims.bmp": saved(Image.new("RGB", (9, 9)), "BMP")[:18] + b"\xff\xff\0\0" * 2,
        b"sizes/text.png": png[:end_of_header] + text + png[end_of_header:],
    }


def make_tree(folder: Path) -> None:
    """All of it, and what is no file: folders, circles, pipes, links to devices, holes."""
    for name, data in bytes_by_name().items():
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(data)
    odd = folder / "odd"
    (odd / "folder.png").mkdir(parents=True)
    (odd / "loop").symlink_to(odd)
    (odd / "circle.png").symlink_to(odd / "circle.png")
    (odd / "nowhere.png").symlink_to(odd / "nothing")
    (odd / "device.png").symlink_to("/dev/zero")
    os.mkfifo(odd / "fifo.png")
    with (odd / "hole.png").open("wb") as hole:
        hole.truncate(1 << 38)
    for number in range(3):
        path = folder / f"good/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 32), (60 * number, 20, 10)).save(path)


def add_large(folder: Path) -> None:
    """Just below the limit, so that memory is seen at its worst."""
    Image.new("L", (14_000, 14_000), 9).save(folder / "sizes/large.png")
    Image.new("RGBA", (14_000, 14_000), 9).save(folder / "sizes/large-rgba.png", compress_level=1)


def add_real(folder: Path, data: Path) -> None:
    for path in sorted((data / "torture").rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            to = folder / "real" / path.relative_to(data / "torture")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)


def images_in(folder: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(where, name), folder)
        for where, _, names in os.walk(folder)
        for name in names
    }


def featprep(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "featprep", *words],
        cwd=ROOT.parent / "data-preprocess",
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


def encode(folder: Path, output: str, *flags: str) -> subprocess.CompletedProcess[str]:
    given, there = folder / flags[0], folder / output
    usual = ["--model=hf:tiny", "--size=56", "--names=full", "--batch_size=8", "--verbose"]
    return featprep("encode", f"--input={given}", f"--output={there}", *usual, *flags[1:])


def lines_of(output: Path, name: str) -> list[dict[str, Any]]:
    path = output / ".featprep" / name
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def results_of(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*.npy")
        if ".featprep" not in path.parts
    }


def strange_lines(said: str) -> list[str]:
    """What is no line of ours, or moves the cursor."""
    ours = re.compile(OURS.pattern.replace("memory", "memory|image"))
    lines = said.removesuffix("\n").split("\n")
    return [line for line in lines if not ours.match(line) or not line.isprintable()]


def wrong_with(folder: Path, done: set[str], failed: dict[str, str]) -> Iterator[str]:
    images = images_in(folder / "in")
    yield from (f"{key!r} is a result and a failure" for key in done & set(failed))
    yield from (f"{key!r} is neither" for key in images - done - set(failed))
    yield from (f"{key!r} is no image of the input" for key in (done | set(failed)) - images)
    for key, reason in failed.items():
        if not reason.isprintable() or len(reason) > 400:
            yield f"{key!r} fails in words that no one reads: {reason[:100]!r}"


def wrong_beside_others(folder: Path, done: set[str]) -> Iterator[str]:
    """The results again: without the failures, in the reverse order, by one worker."""
    listed = folder / "alone.txt"
    names = [key for key in sorted(done, reverse=True) if "\n" not in key and key[-1] != "\r"]
    listed.write_bytes(b"".join(b"in/" + os.fsencode(key) + b"\n" for key in names))
    again = encode(folder, "alone", listed.name, "--workers=1")
    if again.returncode != 0:
        yield f"readable files alone: exit {again.returncode}, {again.stderr[-500:]}"
    whole, alone = results_of(folder / "out"), results_of(folder / "alone/in")
    for name, data in alone.items():
        if whole.get(name) != data:
            yield f"{name!r} differs without its neighbours"
    yield from [f"{len(alone)} files alone, of {len(names)} results"] * (
        len(alone) != 2 * len(names)
    )


def judge(folder: Path, data: Path | None) -> dict[str, Any]:
    make_tree(folder / "in")
    add_large(folder / "in")
    if data:
        add_real(folder / "in", data)
    began = time.monotonic()
    summary = folder / "summary.json"
    run = encode(folder, "out", "in", "--workers=2", f"--summary={summary}")
    seconds = time.monotonic() - began
    lines = lines_of(folder / "out", "failures.jsonl")
    failed = {line["key"]: f"{line['stage']}: {line['reason']}" for line in lines}
    done = {line["key"] for line in lines_of(folder / "out", "results-all.jsonl")}
    wrong = [] if run.returncode == 3 else [f"exit {run.returncode}: {run.stderr[-1000:]}"]
    wrong += [f"on stderr: {line!r}" for line in strange_lines(run.stderr)[:20]]
    wrong += [*wrong_with(folder, done, failed), *wrong_beside_others(folder, done)]
    verified = featprep("verify", str(folder / "out"), "--deep")
    wrong += [f"verify: {verified.stdout[-500:]}"] * bool(verified.returncode)
    memory = json.loads(summary.read_bytes())["peak_memory_bytes"] if summary.exists() else {}
    if memory.get("worker", WORKER_BYTES) >= WORKER_BYTES:
        wrong.append(f"a decoding process took {memory}")
    reasons = Counter(re.sub(r"\d[\d,.]*", "N", reason)[:110] for reason in failed.values())
    return {
        "files": len(done) + len(failed),
        "results": len(done),
        "failures": len(failed),
        "reasons": dict(reasons.most_common()),
        "peak_memory_bytes": memory,
        "seconds": round(seconds, 1),
        "wrong": wrong,
    }


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path)
    return parser


def main() -> int:
    words = make_parser().parse_args()
    found = judge(words.folder.resolve(), words.data)
    print(json.dumps(found, indent=1, ensure_ascii=True))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
