"""How far our pixels and features are from those of transformers' image processors.

    python scripts/measure_processors.py FOLDER

FOLDER holds photos. Each model is its true architecture at full width, two blocks of random
weights: neither the pixels nor the equality of features depends on their values. Prints, over all
photos, the largest and the mean difference of the network's input in grey levels, and of the
tokens the largest difference and the relative one (norm of the difference / norm).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "data-preprocess"))

import featprep
from featprep.encoders.hf_building import quiet_transformers
from featprep.encoders.tiny import write_random
from featprep.images import SUFFIXES

TASK: Any = "image-feature-extraction"
# id → (its processor, less its ending; its image tower)
MODELS = {
    "google/vit-base-patch16-224-in21k": ("ViTImageProcessor", "ViTModel"),
    "facebook/dinov2-base": ("BitImageProcessor", "Dinov2Model"),
    "openai/clip-vit-base-patch32": ("CLIPImageProcessor", "CLIPVisionModel"),
    "google/siglip-base-patch16-224": ("SiglipImageProcessor", "SiglipVisionModel"),
    "facebook/dinov3-vits16-pretrain-lvd1689m": ("DINOv3ViTImageProcessor", "DINOv3ViTModel"),
}


class Seen:
    """What went into and came out of a model at its last call."""

    def __init__(self, model: Any) -> None:
        self.pixels: Any = None
        self.tokens: Any = None
        model.register_forward_hook(self._see, with_kwargs=True)

    def _see(self, model: Any, args: Any, named: dict[str, Any], out: Any) -> None:
        self.pixels = named["pixel_values"].numpy()
        self.tokens = out.last_hidden_state.numpy()


def measure(id: str, processor: str, tower: str, photos: list[Path]) -> None:
    import transformers

    library: Any = transformers
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_random(f"hf:{id}", Path(temporary) / "model", layers=2)
        ours = featprep.pipeline(TASK, str(folder), device="cpu")
        with quiet_transformers():
            model = getattr(library, tower).from_pretrained(folder).eval()
        names = [f"{processor}Pil", processor]
        classes = {name: getattr(library, name, None) for name in names}
        theirs = {
            name: library.pipeline(
                TASK, model=model, image_processor=found.from_pretrained(folder), device="cpu"
            )
            for name, found in classes.items()
            if found is not None
        }
    encoder: Any = ours._encoder.session.encoder
    levels = 255 * np.array(ours.spec.std)[:, None, None]
    seen, reference = Seen(encoder.model), Seen(model)
    rows: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in theirs}
    for photo in photos:
        ours(photo, pool=False)
        for name, pipe in theirs.items():
            pipe(str(photo), return_tensors=True)
            pixels = np.abs(seen.pixels - reference.pixels) * levels
            tokens = seen.tokens - reference.tokens
            share = float(np.linalg.norm(tokens) / np.linalg.norm(reference.tokens))
            rows[name].append((pixels.max(), pixels.mean(), np.abs(tokens).max(), share))
    for name, found in rows.items():
        table = np.array(found)
        largest, _, token, share = table.max(axis=0)
        mean = table[:, 1].mean()
        print(f"{id} {name}: {largest:.2f} {mean:.4f} levels; {token:.2g} {share:.2g} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    photos = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
    for id, (processor, tower) in MODELS.items():
        measure(id, processor, tower, photos)


if __name__ == "__main__":
    main()
