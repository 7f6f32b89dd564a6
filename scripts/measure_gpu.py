"""What a GPU gives: images/s of the model alone and end to end, beside the rate of a large product.

    python scripts/measure_gpu.py [--models NAME,…] [--size 224] [--images 16384] [--device cuda:0]

Weights are random, of the full size. The model alone: uint8 batches on the host in, float16 maps on
the host out, two batches at a time as in a run. End to end: `featprep encode --fp16` over JPEGs of
0.18 megapixels into a folder in memory, of --images and of twice as many: the difference of the two
runs, so that neither start nor compilation counts; with one process on the GPU and with two.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "data-preprocess"))

from featprep import devices, encoders  # noqa: E402
from featprep.bench.material import generate  # noqa: E402
from featprep.encoders.base import ComputeDtype, LoadOptions, ModelName, Want  # noqa: E402
from featprep.encoders.thread_copies import ThreadCopies  # noqa: E402
from featprep.encoders.tiny import write_random  # noqa: E402

HALF = Want(dtype="float16")
MODELS = "hf:facebook/dinov2-large,clip:ViT-L/14"
COMPUTE: tuple[ComputeDtype, ...] = ("float16", "bfloat16")
DIFFERENT = 128  # JPEGs; the others are links to them


def gemm_rate(device: str, compute: ComputeDtype, side: int = 8192) -> float:
    """TFLOP/s of a product of random square matrices, the best an operation of a model comes to."""
    side = side if device != "cpu" else 1024
    dtype = getattr(torch, compute)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = _seconds(lambda: a @ b, device, 20)
    return 2 * side**3 / seconds / 1e12


def _seconds(call: Callable[[], object], device: str, times: int) -> float:
    for phase in (3, times):
        _wait(device)
        began = time.perf_counter()
        for _ in range(phase):
            call()
        _wait(device)
    return (time.perf_counter() - began) / times


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def model_rate(name: ModelName, flags: argparse.Namespace, compute: ComputeDtype,
               compiled: bool) -> tuple[float, float]:  # fmt: skip
    """(images/s, FLOP an image: products, convolutions and attention)."""
    device, size = flags.device, flags.size
    encoder = encoders.load_encoder(name, LoadOptions(device=device, compute=compute))
    batch, _ = devices.choose_batch_size(device, encoder.spec, False, (size, size))
    random = np.random.default_rng(0)
    batches = [random.integers(0, 256, (batch, 3, size, size), np.uint8) for _ in range(2)]
    with FlopCounterMode(display=False) as counter:
        encoder.encode(batches[0][:1], HALF)
    if compiled:
        encoder.compile(HALF)
    copies = ThreadCopies(encoder, 2)
    with ThreadPoolExecutor(2) as pool:

        def work(times: int) -> int:
            maps = pool.map(lambda i: len(copies.encode(batches[i % 2], HALF).map), range(times))
            return sum(maps)

        work(8)  # warm, compiled and recorded
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < flags.seconds:
            images += work(8)
        return images / (time.perf_counter() - began), counter.get_total_flops()


def end_to_end(name: ModelName, flags: argparse.Namespace, device: str, root: Path) -> float:
    """images/s past the start."""
    seconds = []
    for count in (flags.images, 2 * flags.images):
        output, summary = root / "out", root / "summary.json"
        words = ["--model", name.typed, "--input", links(root, count), "--output", output, "--fp16",
                 "--size", flags.size, "--device", device, "--compile", flags.compile,
                 "--summary", summary, "--quiet"]  # fmt: skip
        command = [sys.executable, "-m", "featprep", "encode", *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (
            str(ROOT / "data-preprocess"), os.environ.get("PYTHONPATH"))))}  # fmt: skip
        subprocess.run(command, env=environment, check=True, capture_output=True)
        seconds.append(json.loads(summary.read_text())["seconds"])
        shutil.rmtree(output)
    return float(flags.images / max(seconds[1] - seconds[0], 1e-9))


def links(root: Path, count: int) -> Path:
    folder, source = root / f"{count}", root / "source"
    if not source.exists():
        generate(DIFFERENT, source)
    if not folder.exists():
        folder.mkdir()
        files = sorted(source.iterdir())
        for number in range(count):
            os.link(files[number % len(files)], folder / f"{number:07}.jpg")
    return folder


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=16384, help="0: the model alone")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each rate of a model")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--compile", choices=["on", "off"], default="on", help="end to end")
    parser.add_argument("--folder", help="where files go; /dev/shm where there is one")
    flags = parser.parse_args()
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    compute = [one for one in COMPUTE if flags.device != "cpu" or one != "float16"]
    print(f"{devices.device_title(flags.device)}, torch {torch.__version__}")
    limit = {one: gemm_rate(flags.device, one) for one in compute}
    print("  ".join(f"{one} products {rate:.1f} TFLOP/s" for one, rate in limit.items()))
    with tempfile.TemporaryDirectory(dir=flags.folder or shm) as folder:
        for model in flags.models.split(","):
            path = write_random(model, Path(folder) / model.replace("/", "_").replace(":", "_"))
            family, _, id = model.partition(":")  # a state dict of torchvision does not say its own
            name = ModelName(family, id if family == "torchvision" else "random", str(path))
            for one in compute:
                for compiled in (False, True):
                    rate, flop = model_rate(name, flags, one, compiled)
                    share = rate * flop / 1e12 / limit[one]
                    how = "compiled" if compiled else "eager"
                    print(f"{model} {flags.size} {one} {how}: {rate:,.0f} images/s, "
                          f"{rate * flop / 1e12:.1f} TFLOP/s, {share:.2f} of products",
                          flush=True)  # fmt: skip
            for count in (1, 2) if flags.images else ():
                device = ",".join([flags.device] * count)
                rate = end_to_end(name, flags, device, Path(folder))
                print(f"{model} {flags.size} end to end, {count} processes: {rate:,.0f} images/s",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
