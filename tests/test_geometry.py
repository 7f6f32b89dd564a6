"""Where pixels land: sizes, offsets and the affine, against exact fractions and torchvision."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import pytest
from featprep.errors import ImageError
from featprep.geometry import Geometry, place
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

CROP_224 = Geometry("crop", (224, 224), 14, (16, 16))
KEEP = Geometry("keep", None, 14, None)

sides = st.integers(1, 40)


# ---- sizes and offsets


@settings(deadline=None)  # the first example imports torchvision
@given(height=st.integers(1, 3000), width=st.integers(1, 3000), size=st.integers(1, 600))
@example(316, 524, 224)
@example(100_000, 3, 224)
def test_a_square_crop_has_torchvisions_sizes_and_offsets(
    height: int, width: int, size: int
) -> None:
    from torchvision.transforms import functional

    resized = functional._compute_resized_output_size((height, width), [size])
    offsets = tuple(round((side - size) / 2.0) for side in resized)

    placed = place(Geometry("crop", (size, size), 1, (size, size)), height, width)

    assert (placed.resized, placed.offset) == (tuple(resized), offsets)


@given(height=sides, width=sides, rows=sides, columns=sides)
def test_a_crop_takes_the_smallest_scale_that_covers_both_sides(
    height: int, width: int, rows: int, columns: int
) -> None:
    scale = max(Fraction(rows, height), Fraction(columns, width))

    placed = place(Geometry("crop", (rows, columns), 1, (rows, columns)), height, width)

    assert placed.resized == (math.floor(height * scale), math.floor(width * scale))
    assert placed.canvas == (rows, columns)
    assert min(placed.offset) >= 0


@given(height=sides, width=sides, rows=sides, columns=sides)
def test_pad_takes_the_largest_scale_that_fits_and_centres_it(
    height: int, width: int, rows: int, columns: int
) -> None:
    scale = min(Fraction(rows, height), Fraction(columns, width))

    placed = place(Geometry("pad", (rows, columns), 1, (rows, columns)), height, width)

    resized = tuple(max(1, math.floor(side * scale)) for side in (height, width))
    front = ((rows - resized[0]) // 2, (columns - resized[1]) // 2)
    assert placed.resized == resized
    assert placed.offset == (-front[0], -front[1])


@given(height=st.integers(1, 99), width=st.integers(1, 99), patch=st.integers(1, 16))
def test_keep_rounds_each_side_down_to_whole_patches_at_least_one(
    height: int, width: int, patch: int
) -> None:
    placed = place(Geometry("keep", None, patch, None), height, width)

    assert placed.grid == (max(1, height // patch), max(1, width // patch))
    assert placed.canvas == placed.resized == tuple(side * patch for side in placed.grid)
    assert placed.offset == (0, 0)


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    patch=st.integers(1, 5),
    most=st.integers(1, 60),
)
@example(90, 1, 1, 60)
def test_keep_above_max_tokens_takes_the_largest_grid_that_any_smaller_copy_has(
    height: int, width: int, patch: int, most: int
) -> None:
    counts = (max(1, height // patch), max(1, width // patch))
    assume(counts[0] * counts[1] > most)
    edges = {Fraction(n * patch, side) for side in (height, width) for n in range(side + 1)}
    points = sorted(edge for edge in edges if edge <= 1)
    between = [(a + b) / 2 for a, b in itertools.pairwise(points)]
    copies = [
        tuple(max(1, math.floor(side * scale / patch)) for side in (height, width))
        for scale in (*points, *between)
    ]

    placed = place(Geometry("keep", None, patch, None, max_tokens=most), height, width)

    assert placed.grid == max(c for c in copies if c[0] * c[1] <= most)
    assert placed.grid[0] * placed.grid[1] <= most


def test_keep_of_a_huge_image_stays_under_the_default_bound() -> None:
    placed = place(KEEP, 10_000, 20_000)

    assert placed.grid == (90, 181)  # 16,290; 91 x 182 would be 16,562
    assert placed.canvas == (1260, 2534)


@pytest.mark.parametrize(
    ("scale_to", "size", "offset"),
    [(256, (316, 524), (16, 100)), ((256, 301), (500, 500), (16, 38)), (200, (9, 9), (-12, -12))],
)
def test_native_resizes_to_the_recipes_scale_and_crops_the_centre(
    scale_to: Any, size: tuple[int, int], offset: tuple[int, int]
) -> None:
    native = replace(CROP_224, resize="native", scale_to=scale_to)

    placed = place(native, *size)

    assert (placed.offset, placed.canvas) == (offset, (224, 224))


def in_mode(mode: Any) -> Geometry:
    """28 x 42 with cells of 7, or what the image has."""
    if mode == "keep":
        return Geometry("keep", None, 7, None)
    return replace(
        Geometry("crop", (28, 42), 7, (4, 6)),
        resize=mode,
        scale_to=33 if mode == "native" else None,
    )


@given(height=sides, width=sides)
@pytest.mark.parametrize("mode", ["crop", "squash", "pad", "keep", "native"])
def test_swapping_height_and_width_transposes_the_placement(
    mode: str, height: int, width: int
) -> None:
    upright = in_mode(mode)
    swapped = replace(upright, size=upright.size and upright.size[::-1])
    swapped = replace(swapped, grid=upright.grid and upright.grid[::-1])

    a, b = place(upright, height, width), place(swapped, width, height)

    assert (a.resized, a.offset, a.canvas, a.grid) == (
        b.resized[::-1],
        b.offset[::-1],
        b.canvas[::-1],
        b.grid[::-1],
    )


# ---- plain values


def test_a_geometry_survives_json_and_pickle() -> None:
    native = Geometry(
        "native", (28, 42), 7, (4, 6), "lanczos", "transformers", (30, 50), 99, (255, 255, 255)
    )
    regridded = replace(native, cells=(2, 3), tile=(14, 21))

    assert Geometry.from_dict(json.loads(json.dumps(asdict(native)))) == native
    assert Geometry.from_dict(json.loads(json.dumps(asdict(regridded)))) == regridded
    assert Geometry.from_dict(json.loads(json.dumps(asdict(KEEP)))) == KEEP
    assert pickle.loads(pickle.dumps(native)) == native


def test_the_metadata_names_every_number_of_the_affine() -> None:
    placed = place(Geometry("crop", (384, 384), 14, (27, 27)), 480, 640)

    assert placed.metadata() == {
        "source_size": [480, 640],
        "resized_size": [384, 512],
        "crop_offset": [0, 64],
        "input_size": [384, 384],
        "grid": [27, 27],
        "affine": [[0.8, 0.0, -64.0], [0.0, 0.8, 0.0]],
        "cell": 14,
        "footprint": [378, 378],  # six pixels right and below are outside the grid
        "windowed": False,
    }
    assert json.loads(json.dumps(placed.metadata())) == placed.metadata()


@pytest.mark.parametrize(
    ("grid", "cell"), [((27, 27), 14), ((54, 54), 7), ((18, 27), [21, 14]), ((14, 36), [27, 10.5])]
)
def test_a_grid_has_cells_of_its_share_of_the_footprint(grid: Any, cell: Any) -> None:
    geometry = Geometry("crop", (384, 384), 14, grid, cells=(27, 27))

    said = place(geometry, 480, 640).metadata()

    assert (said["grid"], said["cell"], said["footprint"]) == (list(grid), cell, [378, 378])


def test_keep_with_a_grid_has_that_grid_at_every_size() -> None:
    geometry = Geometry("keep", None, 14, (8, 12))

    placed = place(geometry, 100, 330)

    assert (placed.canvas, placed.footprint, placed.grid) == ((98, 322), (98, 322), (8, 12))


def test_keep_fails_an_image_that_is_smaller_than_a_tile_on_one_side() -> None:
    geometry = Geometry("keep", None, 14, None, tile=(112, 224))

    with pytest.raises(ImageError) as failure:
        place(geometry, 111, 300)
    assert str(failure.value) == (
        "300×111 pixels give an input of 294×98, smaller than --tile 112,224 (height, width): "
        "encode such images with --resize crop or pad and a --size, or without --tile, into "
        "another output"
    )
    assert place(geometry, 112, 224).grid == (8, 16)
    with pytest.raises(ImageError):
        place(geometry, 300, 223)


@pytest.mark.parametrize(
    ("unresolved", "message"),
    [
        (replace(CROP_224, size=None), "resize='crop' needs size and grid; only 'keep' has none"),
        (replace(CROP_224, grid=None), "resize='crop' needs size and grid; only 'keep' has none"),
        (
            replace(CROP_224, resize="native"),
            "resize='native' needs scale_to, from the encoder's recipe",
        ),
    ],
)
def test_an_unresolved_geometry_is_refused(unresolved: Geometry, message: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011, the whole text follows
        place(unresolved, 9, 9)

    assert str(refusal.value) == message
