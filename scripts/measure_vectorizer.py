"""image_vectorizer.py against a loop that takes one image at a time, with one set of weights.

python scripts/measure_vectorizer.py FOLDER [--rounds N]

CLIP ViT-B/32 at full size with random weights, in float32, each side in a process of its own, in
turns. Prints images/s without loading the model, and how far the vectors are apart.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HOUSE = Path(__file__).resolve().parent.parent / "data-preprocess"
sys.path.insert(0, str(HOUSE))

from featprep import encoders  # noqa: E402
from featprep.encoders import tiny  # noqa: E402

LOOP = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import clip, numpy, torch
from PIL import Image
model, preprocess = clip.load(sys.argv[1], device="cpu")
rows, began = [], time.perf_counter()
with torch.no_grad():
    for path in json.load(open(sys.argv[2])):
        image = preprocess(Image.open(path))[None]
        rows.append(model.encode_image(image)[0].numpy())
print(len(rows) / (time.perf_counter() - began))
numpy.save(sys.argv[3], numpy.stack(rows))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    words = parser.parse_args()
    spec = encoders.describe(encoders.resolve("clip:ViT-B/32", "any"))
    assert spec is not None
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        weights = tiny.write_checkpoint(spec, room / "weights")
        for number in range(words.rounds):
            ours = vectorize(words.folder, weights, room / f"{number}.npy")
            loop = walk(room, weights, room / f"{number}.npy")
            print(
                f"vectorizer {ours:.1f} images/s, loop {loop:.1f}: {ours / loop:.1f}×", flush=True
            )
        apart = np.abs(np.load(room / "0.npy") - np.load(room / "loop.npy")).max()
        print(f"largest difference {apart:.1e}")
    return 0


def vectorize(folder: Path, weights: Path, output: Path) -> float:
    asked = ["--image_path", folder, "--models", f"clip:ViT-B/32={weights}", "--output", output]
    done = run(HOUSE / "image_vectorizer.py", *asked)
    found = re.search(r"([\d,.]+) images/s", done.stderr)
    assert found is not None, done.stderr
    return float(found[1].replace(",", ""))


def walk(room: Path, weights: Path, table: Path) -> float:
    """Over the same images, in the same order."""
    rows = json.loads(table.with_suffix(".keys.json").read_text())["rows"]
    (room / "paths").write_text(json.dumps([path for _, path in rows]))
    return float(run("-c", LOOP, weights, room / "paths", room / "loop.npy").stdout)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=True)


if __name__ == "__main__":
    raise SystemExit(main())
