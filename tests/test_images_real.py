"""Real files, good and bad: FEATPREP_TEST_DATA names the folder with torture, photos …."""

from __future__ import annotations

import collections
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from featprep.errors import ImageError
from featprep.images import SUFFIXES, decode
from featprep.records import AnyArray
from PIL import Image, ImageOps

DATA = Path(os.environ.get("FEATPREP_TEST_DATA", ""))
pytestmark = pytest.mark.skipif(
    "FEATPREP_TEST_DATA" not in os.environ, reason="FEATPREP_TEST_DATA is not set"
)


def as_pillow_converts(data: bytes) -> AnyArray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def test_every_file_of_the_torture_folders_is_a_picture_or_a_failure() -> None:
    counts, differing, broken_lines = collections.Counter[str](), [], 0
    folders = ("torture", "emoji_rgba", "objects_rgba", "photos", "exif_orientation")
    for path in sorted(path for folder in folders for path in (DATA / folder).rglob("*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        counts["files"] += 1
        data = path.read_bytes()
        try:
            picture = decode(data)
        except ImageError as error:
            counts["failures"] += 1
            broken_lines += "\n" in str(error)
            continue
        counts["pictures"] += 1
        is_plain = picture.mode.endswith((" 1-bit", " 2-bit", " 4-bit", " 8-bit"))
        if picture.alpha is None and is_plain and "signed" not in picture.mode:
            counts["compared"] += 1
            if not np.array_equal(np.asarray(picture.rgb), as_pillow_converts(data)):
                differing.append(path.name)
    assert (differing, broken_lines) == ([], 0)
    assert counts["pictures"] >= 1140
    assert counts["files"] == counts["pictures"] + counts["failures"] == 1211
    assert counts["compared"] > 600


@pytest.mark.parametrize("shape", ["Landscape", "Portrait"])
def test_all_orientations_of_one_scene_come_out_alike(shape: str) -> None:
    pictures = {
        number: decode((DATA / "exif_orientation" / f"{shape}_{number}.jpg").read_bytes())
        for number in range(1, 9)
    }
    first = np.asarray(pictures[1].rgb).astype(int)
    for number, picture in pictures.items():
        assert picture.orientation == number
        assert picture.rgb.size == pictures[1].rgb.size
        assert np.abs(np.asarray(picture.rgb) - first).mean() < 5


@pytest.mark.parametrize("name", ["tbbn0g04", "tbbn2c16", "tbgn2c16", "tbwn0g16"])
def test_transparent_colours_of_odd_depths_agree_with_their_8_bit_twin(name: str) -> None:
    folder = DATA / "torture/png_suite/tests/pngsuite"
    picture = decode((folder / f"{name}.png").read_bytes())
    twin = decode((folder / "tbbn3p08.png").read_bytes())
    assert picture.alpha is not None
    assert twin.alpha is not None
    assert np.mean((picture.alpha > 0) == (twin.alpha > 0)) > 0.98
