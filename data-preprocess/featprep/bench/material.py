"""What is measured on: weights, the user's or random ones, and images, the user's or generated."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from featprep import encoders
from featprep.encoders.base import ModelName
from featprep.encoders.tiny import write_random, write_tiny
from featprep.errors import InputError, WeightsError
from featprep.images import SUFFIXES
from featprep.naming import printable, sort_key

GENERATED_SIZE = (500, 360)  # width, height: 0.18 megapixels


@dataclass(frozen=True, slots=True)
class Material:
    """`folder` holds nothing but `paths`. `different`: files, before any was repeated."""

    folder: str
    paths: tuple[str, ...]
    source: str
    different: int
    megapixels: tuple[float, ...]
    file_bytes: int


def weights_here(name: ModelName, folder: Path) -> tuple[ModelName, str]:
    """(the model with weights on this machine, where they are from): its own, or random ones of
    the full size, written to `folder`, where there are none. Fetches nothing: the caller has
    closed the network."""
    is_tiny = name.id == "tiny" and name.path is None
    if not is_tiny:
        try:
            found = encoders.find_weights(name)
            return name, found.origin
        except WeightsError:
            if name.path is not None or name.id not in encoders.FAMILIES[name.family].known:
                raise
    path = write_tiny(name.family, folder) if is_tiny else write_random(str(name), folder)
    # a state dict of torchvision's does not say what it is
    id = name.id if name.family == "torchvision" else "random"
    said = "random: tiny" if is_tiny else "random, of the full size: there are none here"
    return ModelName(name.family, id, str(path)), said


def converted(name: ModelName, id: str, folder: Path) -> dict[str, ModelName]:
    """The same weights for transformers and open_clip, where they are clip's. `id`: the published
    name, which open_clip knows the architecture by."""
    from featprep.references.conversions import CONVERSIONS, conversions_of, openai_state

    found, families = {}, conversions_of(name)
    state = openai_state(name) if families else {}
    for family in families:
        if family == "openclip" and id not in encoders.FAMILIES["clip"].known:
            continue
        path = CONVERSIONS[family](state, folder / family)
        found[family] = ModelName(family, "converted", str(path))
    if "openclip" in found:
        arch = id.replace("/", "-").replace("@336px", "-336")
        weights = folder / "openclip" / "open_clip_model.safetensors"
        found["openclip"] = ModelName("openclip", f"{arch}/openai", str(weights))
    return found


def gather(source: str, count: int, folder: Path) -> Material:
    """Copies of the first `count` images below `source`, in turns from the beginning where there
    are fewer. Raises InputError."""
    root = Path(source)
    if not root.is_dir():
        raise InputError(f"--input {printable(source)}: no such folder; give one with images")
    found = sorted((path for path in root.rglob("*") if _is_image(path)), key=_order)[:count]
    if not found:
        raise InputError(f"--input {printable(source)}: no image in it; give a folder with some")
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(count):
        path = found[place % len(found)]
        shutil.copyfile(path, folder / f"{place:05}{path.suffix.lower()}")
    return _material(folder, printable(source), len(found))


def generate(count: int, folder: Path) -> Material:
    """JPEGs of 0.18 megapixels: clouds under a little noise, so that they are as large as photos of
    that size and no two are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for place in range(count):
        clouds = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
        pixels = np.asarray(clouds.resize(GENERATED_SIZE, Image.Resampling.BICUBIC), np.float32)
        noisy = pixels + random.normal(0, 12, pixels.shape[:2])[..., None]
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{place:05}.jpg", quality=90)
    return _material(folder, "generated", count)


def _material(folder: Path, source: str, different: int) -> Material:
    paths = sorted(map(str, folder.iterdir()))
    return Material(
        str(folder),
        tuple(paths),
        source,
        different,
        tuple(_megapixels(path) for path in paths),
        sum(os.path.getsize(path) for path in paths),
    )


def _megapixels(path: str) -> float:
    try:
        with Image.open(path) as image:
            return image.width * image.height / 1e6
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"--input: Pillow cannot open {Path(path).name}; leave it out") from error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _order(path: Path) -> bytes:
    return sort_key(str(path))
