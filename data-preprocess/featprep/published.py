"""The numbers that others publish of real weights and one photo: transformers' own tests.

The photo is COCO val2017 000000039769, two cats; whoever has it and the weights can hold our whole
way from file to map against them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featprep.decoding import DecodeRules, prepare_bytes
from featprep.encoders import load_encoder
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName, Want
from featprep.errors import InputError
from featprep.geometry import Geometry
from featprep.naming import printable
from featprep.records import AnyArray, ImageRef, UInt8

IMAGE = "COCO val2017 000000039769"


@dataclass(frozen=True, slots=True)
class Published:
    """`values`: the first channels of the first tokens, CLS and then the cells row by row.
    `stretch`: the side to which the test stretches; None: the checkpoint's own recipe."""

    values: Sequence[Sequence[float]]
    source: str
    stretch: int | None = None
    tolerance: float = 1e-3  # the figures have four digits, and were made on a GPU


_CLIP_B32 = Published(
    (
        (-0.1538, 0.0322, -0.3235),
        (0.2893, 0.1135, -0.5708),
        (0.0461, 0.1540, -0.6018),
    ),
    "transformers, tests/models/clip, test_inference_interpolate_pos_encoding",
    stretch=180,
)
PUBLISHED = {
    "hf:facebook/dinov2-base": Published(
        (
            (-2.1747, -0.4729, 1.0936),
            (-3.2780, -0.8269, -0.9210),
            (-2.9129, 1.1284, -0.7306),
        ),
        "transformers, tests/models/dinov2, test_inference_no_head",
    ),
    "hf:openai/clip-vit-base-patch32": _CLIP_B32,
    "clip:ViT-B/32": _CLIP_B32,
}


def difference(name: ModelName, image: str) -> float:
    """Largest difference of our tokens from the published ones. Raises WeightsError, InputError."""
    published = PUBLISHED[str(name)]
    encoder = load_encoder(name, LoadOptions())
    pixels = _pixels(image, _geometry(encoder.spec, published))
    found = encoder.encode(pixels[None], Want(prefix=True))
    assert found.prefix is not None
    expected = np.asarray(published.values)
    ours = tokens(found.prefix, found.map)[: len(expected), : expected.shape[1]]
    return float(np.abs(ours - expected).max())


def tokens(prefix: AnyArray, map: AnyArray) -> AnyArray:
    """(P + cells, C) of the first image, as upstream has them."""
    cells = map[0].reshape(map.shape[1], -1).T
    return np.concatenate((prefix[0], cells))


def _geometry(spec: EncoderSpec, published: Published) -> Geometry:
    side, recipe = published.stretch, spec.recipe
    assert recipe is not None  # the published two have one
    if side is not None:
        cells = side // spec.patch
        return Geometry("squash", (side, side), spec.patch, (cells, cells), recipe.kernel)
    rows, columns = (length // spec.patch for length in recipe.crop)
    return Geometry(
        "native",
        recipe.crop,
        spec.patch,
        (rows, columns),
        recipe.kernel,
        recipe.rounding,
        recipe.resize,
    )


def _pixels(image: str, geometry: Geometry) -> UInt8:
    try:
        with open(image, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InputError(
            f"--image {printable(image)}: {error.strerror}; give the file of {IMAGE}"
        ) from error
    ref = ImageRef("image", os.path.basename(image), image, len(data), 0)
    return prepare_bytes(data, ref, DecodeRules(geometry)).pixels
