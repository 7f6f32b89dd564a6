"""image_vectorizer.py against plain loops over the same images, with one set of weights.

python scripts/measure_vectorizer.py FOLDER [--models clip,resnet50] [--rounds N] [--batch N]

CLIP ViT-B/32 and torchvision's ResNet-50 at full size, random weights in their true formats, in
float32. The vectorizer, a loop that takes one image at a time, and one that takes batches take
turns, each in a process of its own. Prints images/s without loading the model; images a
core-second, which neighbours on the machine disturb less (all processes of a side; what its start
costs is that of a run over FEW images); and how far the vectors are apart.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

HOUSE = Path(__file__).resolve().parent.parent / "data-preprocess"
sys.path.insert(0, str(HOUSE))

from featprep import encoders  # noqa: E402
from featprep.encoders import random_modules, tiny  # noqa: E402

# What the library's own page tells to write: WEIGHTS, a list of paths, OUTPUT, images a batch.
LOOP = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import numpy, torch
from PIL import Image
{model}
paths, size, rows = json.load(open(sys.argv[2])), int(sys.argv[4]), []
began = time.perf_counter()
with torch.no_grad():
    for start in range(0, len(paths), size):
        images = [preprocess(Image.open(path).convert("RGB")) for path in paths[start:start + size]]
        rows.append(encode(torch.stack(images)).numpy())
print(len(paths) / (time.perf_counter() - began))
numpy.save(sys.argv[3], numpy.concatenate(rows))
"""
MODELS = {
    "clip": """
import clip
model, preprocess = clip.load(sys.argv[1], device="cpu")
encode = model.encode_image
""",
    "resnet50": """
from torchvision import models
encode = models.resnet50()
encode.load_state_dict(torch.load(sys.argv[1], weights_only=True))
encode.fc = torch.nn.Identity()
encode.eval()
preprocess = models.ResNet50_Weights.DEFAULT.transforms()
""",
}
FEW = 4
NAMES = {"clip": "clip:ViT-B/32", "resnet50": "torchvision:resnet50"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default="clip,resnet50")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    words = parser.parse_args()
    for model in words.models.split(","):
        with tempfile.TemporaryDirectory() as name:
            compare(model, words.folder, Path(name), words.rounds, words.batch)
    return 0


def compare(model: str, folder: Path, room: Path, rounds: int, batch: int) -> None:
    weights = write(model, room / "weights")
    table = room / "vectors.npy"

    def vectorizer(limit: int | None) -> float:
        return vectorize(model, folder, weights, table, limit)

    sides: dict[str, Callable[[int | None], float]] = {"vectorizer": vectorizer}
    for size in (1, batch):
        sides[f"loop of {size}"] = partial(walk, model, room, weights, table, size)
    # The vectorizer comes first: its table says which images the loops take.
    starts = {side: spent(partial(call, FEW))[1] for side, call in sides.items()}
    clock, cores = ({side: list[float]() for side in sides} for _ in range(2))
    for _ in range(rounds):
        for side, call in sides.items():
            rate, seconds = spent(partial(call, None))
            clock[side].append(rate)
            cores[side].append((len(np.load(table)) - FEW) / (seconds - starts[side]))
    for side in sides:
        print(f"{NAMES[model]}  {side:<10}  {listed(clock[side])} images/s   "
              f"{listed(cores[side])} a core-second", flush=True)  # fmt: skip
    mine, theirs = np.load(table), np.load(room / "loop.npy")
    apart = np.abs(mine - theirs).max() / np.abs(theirs).max()
    print(f"{NAMES[model]}  largest difference {apart:.1e} of the largest value", flush=True)


def listed(rates: list[float]) -> str:
    return f"{' '.join(f'{rate:.1f}' for rate in rates)} (median {statistics.median(rates):.1f})"


def spent(call: Callable[[], float]) -> tuple[float, float]:
    """What it gives, and the processor seconds of the processes that it ran."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    rate = call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return rate, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def write(model: str, folder: Path) -> Path:
    if model == "resnet50":
        return random_modules.write_torchvision(model, folder)
    spec = encoders.describe(encoders.resolve(NAMES[model], "any"))
    assert spec is not None
    return tiny.write_checkpoint(spec, folder)


def vectorize(model: str, folder: Path, weights: Path, output: Path, limit: int | None) -> float:
    asked = ["--image_path", folder, "--models", f"{NAMES[model]}={weights}", "--output", output]
    asked += ["--overwrite", *(["--limit", str(limit)] if limit else [])]
    done = run(HOUSE / "image_vectorizer.py", *asked)
    found = re.search(r"([\d,.]+) images/s; busy", done.stderr)
    assert found is not None, done.stderr
    return float(found[1].replace(",", ""))


def walk(model: str, room: Path, weights: Path, table: Path, size: int, limit: int | None) -> float:
    """Over the same images, in the same order."""
    rows = json.loads(table.with_suffix(".keys.json").read_text())["rows"][:limit]
    (room / "paths").write_text(json.dumps([path for _, path in rows]))
    code = LOOP.replace("{model}", MODELS[model])
    return float(run("-c", code, weights, room / "paths", room / "loop.npy", size).stdout)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=True)


if __name__ == "__main__":
    raise SystemExit(main())
