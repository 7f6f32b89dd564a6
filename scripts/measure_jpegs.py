"""Other decoders and resizes beside Pillow's, and --fast_decode beside the whole picture.

    python scripts/measure_jpegs.py FOLDER [--rounds 5] [--side 224] [--model hf:tiny]

Every JPEG below FOLDER is decoded by Pillow (the reference, as a run does it), by OpenCV, by
torchvision, and by simplejpeg if it is installed; resized by Pillow and by torchvision; and made
ready for a network of `--side` with and without --fast_decode. Prints the milliseconds of processor
time an image, on one thread, as a median; the ratio to the first row within each round, with its
least and most; and how many images differ from it. With `--model` also what --fast_decode does to
its maps: the cosine with those of whole pictures, an image and a cell.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data-preprocess"))

import numpy as np
from featprep import encoders, images
from featprep.decoding import DecodeRules, prepare_bytes
from featprep.encoders.base import LoadOptions, Want
from featprep.geometry import Geometry, place
from featprep.records import AnyArray, ImageRef, Prepared
from PIL import Image

REF = ImageRef("a", "a", "a", 0, 0)
Ways = dict[str, Callable[[Any], Any]]


def decoders() -> Ways:
    """Bytes → RGB, upright or not; the last step of each is what a run would need of it."""
    import cv2
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    cv2.setNumThreads(1)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    ways: Ways = {
        "Pillow": stored,
        "OpenCV": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flags),
        "torchvision": lambda data: decode_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB
        ),
    }
    ways["OpenCV, as a PIL image"] = lambda data: Image.fromarray(ways["OpenCV"](data))
    try:
        import simplejpeg  # type: ignore[import-not-found]
    except ImportError:
        return ways
    ways["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data, "RGB")
    ways["simplejpeg, as a PIL image"] = lambda data: Image.fromarray(ways["simplejpeg"](data))
    return ways


def stored(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=["JPEG"])
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def resizes(side: int) -> Ways:
    """(PIL image, its (3, H, W) tensor in channels-last order) → resized."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    geometry = Geometry("crop", (side, side), side, (1, 1))

    def target(image: Image.Image) -> tuple[int, int]:
        return place(geometry, image.height, image.width).resized

    return {
        "Pillow": lambda pair: pair[0].resize(target(pair[0])[::-1], Image.Resampling.BICUBIC),
        "torchvision": lambda pair: functional.resize(
            pair[1], list(target(pair[0])), InterpolationMode.BICUBIC, antialias=True
        ),
    }


def ready(side: int) -> Ways:
    geometry = Geometry("crop", (side, side), side, (1, 1))
    whole, fast = DecodeRules(geometry), DecodeRules(geometry, fast=True)
    return {
        "whole": lambda data: prepare_bytes(data, REF, whole),
        "--fast_decode": lambda data: prepare_bytes(data, REF, fast),
    }


def pixels(result: Any) -> AnyArray:
    """(H, W, 3) or, of what is ready for a network, (3, H, W)."""
    if isinstance(result, Prepared):
        return result.pixels
    if hasattr(result, "permute"):
        return np.asarray(result.permute(1, 2, 0))
    return np.asarray(result)


def compare(title: str, ways: Ways, given: Sequence[Any], rounds: int) -> None:
    """A table of `ways` over `given`, in turns."""
    print(f"{title:<28} {'ms':>9}  ratio (least to most)  images that differ, by levels")
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            for item in given:
                attempt(way, item)
            taken[name].append((time.process_time() - began) / len(given) * 1e3)
    first, *_ = ways.values()
    for name, way in ways.items():
        ratios = [a / b for a, b in zip(taken[name], next(iter(taken.values())), strict=True)]
        told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        different = differences(first, way, given)
        print(f"  {name:<26} {statistics.median(taken[name]):9.2f}  {told:<21}  {different}")


def attempt(way: Callable[[Any], Any], item: Any) -> Any:
    try:
        return way(item)
    except Exception:  # whatever a decoder raises for what it does not read
        return None


def differences(first: Callable[[Any], Any], way: Callable[[Any], Any], given: Any) -> str:
    means, most, refused = [], 0, 0
    for item in given:
        left, right = attempt(first, item), attempt(way, item)
        if left is None or right is None:
            refused += (left is None) != (right is None)
            continue
        left, right = pixels(left).astype(int), pixels(right).astype(int)
        apart = np.abs(left - right) if left.shape == right.shape else np.array([255])
        means += [apart.mean()] * bool(apart.any())
        most = max(most, int(apart.max()))
    text = f"{len(means)}" + (f": mean {np.mean(means):.3f}, most {most}" if means else "")
    return text + (f"; read by one alone: {refused}" if refused else "")


def compare_maps(model: str, data: Sequence[bytes], side: int) -> None:
    """Of the images that --fast_decode makes smaller."""
    encoder = encoders.load_encoder(encoders.resolve(model, "any"), LoadOptions())
    whole, fast = (list(map(way, data)) for way in ready(side).values())
    pairs = [(a, b) for a, b in zip(whole, fast, strict=True) if b.meta.get("decode_scale", 1) < 1]
    if not pairs:
        print("no image is large enough to come smaller")
        return
    left, right = (
        np.stack([encoder.encode(one.pixels[None], Want()).map[0] for one in side_])
        for side_ in zip(*pairs, strict=True)
    )
    cells, whole_maps = cosine(left, right, 1), cosine(left, right, (1, 2, 3))
    print(f"{model}: cosine of {len(pairs)} images at least {whole_maps.min():.6f}, median "
          f"{np.median(whole_maps):.6f}; of cells at least {cells.min():.6f}, 1st percentile "
          f"{np.percentile(cells, 1):.6f}")  # fmt: skip


def cosine(left: AnyArray, right: AnyArray, axes: int | tuple[int, ...]) -> AnyArray:
    left, right = left.astype(np.float64), right.astype(np.float64)
    lengths = np.sqrt((left**2).sum(axes) * (right**2).sum(axes))
    return np.asarray((left * right).sum(axes) / lengths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--model")
    flags = parser.parse_args()
    paths = [p for p in sorted(flags.folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
    data = [data for data in (path.read_bytes() for path in paths) if attempt(images.decode, data)]
    if not data:
        raise SystemExit(f"{flags.folder}: no JPEG in it that Pillow reads")
    print(f"{len(data)} JPEGs of {len(paths)}")
    compare("decode", decoders(), data, flags.rounds)
    whole = [stored(one) for one in data]
    pairs = [(image, as_tensor(image)) for image in whole]
    compare(f"resize, to a short side of {flags.side}", resizes(flags.side), pairs, flags.rounds)
    compare(f"decode and resize, {flags.side}", ready(flags.side), data, flags.rounds)
    if flags.model:
        compare_maps(flags.model, data, flags.side)


def as_tensor(image: Image.Image) -> Any:
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


if __name__ == "__main__":
    main()
