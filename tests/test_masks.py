"""Masks against a brute-force oracle in exact fractions, and the traps of misaligned masks."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from featprep.geometry import Geometry, Placement, place
from featprep.masks import mask_grid
from featprep.records import AnyArray
from hypothesis import assume, given, settings
from hypothesis import strategies as st

WIDE = Geometry("crop", (28, 42), 7, (4, 6))
MODES = ["crop", "squash", "pad", "keep", "native"]
sides = st.integers(1, 40)
exact = settings(max_examples=120, deadline=None)


@st.composite
def geometries(draw: st.DrawFn, modes: list[str] = MODES) -> Geometry:
    """Every mode, H ≠ W, cells of 1 to 9 pixels, with and without a remainder outside the grid; as
    the network has them, and resampled to a grid that may divide nothing."""
    geometry = draw(_of_network(modes))
    grid = draw(st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)))
    return replace(geometry, grid=grid, cells=geometry.grid) if grid else geometry


@st.composite
def _of_network(draw: st.DrawFn, modes: list[str]) -> Geometry:
    patch, mode = draw(st.integers(1, 9)), draw(st.sampled_from(modes))
    grid = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    rest = draw(st.tuples(st.integers(0, patch - 1), st.integers(0, patch - 1)))
    size = (grid[0] * patch + rest[0], grid[1] * patch + rest[1])
    assume(size[0] != size[1])
    mask: Any = draw(st.sampled_from(["any", "coverage"]))
    geometry = Geometry("crop", size, patch, grid, mask=mask)
    if mode == "keep":
        tokens = draw(st.integers(1, 40))
        return replace(geometry, resize="keep", size=None, grid=None, max_tokens=tokens)
    if mode == "native":
        rounding: Any = draw(st.sampled_from(["torchvision", "transformers"]))
        scale = draw(st.one_of(sides, st.tuples(sides, sides)))
        return replace(geometry, resize="native", scale_to=scale, rounding=rounding)
    resize: Any = mode
    return replace(geometry, resize=resize)


def alpha_of(height: int, width: int, depth: type, seed: int) -> AnyArray:
    """A quarter each clear, faint (1), opaque and anything."""
    draw = np.random.default_rng(seed)
    most = int(np.iinfo(depth).max)
    values = np.stack([draw.integers(0, most + 1, (height, width)) for _ in range(4)])
    values[1:] = np.array([0, 1, most])[:, None, None]
    kinds = draw.integers(0, 4, (height, width))
    picked: AnyArray = np.take_along_axis(values, kinds[None], axis=0)[0]
    return picked.astype(depth)


def overlaps(placed: Placement, axis: int) -> AnyArray:
    """(cells, source pixels) of Fractions: length of the pixel, in network pixels, in the cell."""
    scale = Fraction(placed.resized[axis], placed.source[axis])
    table = [
        [
            max(
                Fraction(0),
                min((k + 1) * scale - placed.offset[axis], (i + 1) * placed.cell[axis])
                - max(k * scale - placed.offset[axis], i * placed.cell[axis]),
            )
            for k in range(placed.source[axis])
        ]
        for i in range(placed.grid[axis])
    ]
    return np.array(table, dtype=object)


def oracle(alpha: AnyArray | None, placed: Placement, geometry: Geometry) -> AnyArray:
    rows, columns = overlaps(placed, 0), overlaps(placed, 1)
    values = np.ones(placed.source, dtype=np.int64) if alpha is None else alpha.astype(np.int64)
    most = 1 if alpha is None else int(np.iinfo(alpha.dtype).max)
    if geometry.mask == "coverage":
        shares = rows @ values.astype(object) @ columns.T / (most * placed.cell[0] * placed.cell[1])
        return np.array([[float(share) for share in row] for row in shares], dtype=np.float32)
    threshold = Fraction(str(geometry.alpha_threshold))
    above = np.array([[Fraction(int(v), most) > threshold for v in row] for row in values])
    if alpha is None:
        above[:] = True
    counts: AnyArray = (rows > 0).astype(int) @ above.astype(int) @ (columns > 0).astype(int).T
    return (counts > 0).astype(np.uint8)


@exact
@given(
    geometry=geometries(),
    height=sides,
    width=sides,
    depth=st.sampled_from([np.uint8, np.uint16]),
    threshold=st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.6, 1.0, 1 / 3]),
    seed=st.integers(0, 99),
)
def test_a_mask_equals_the_oracle_in_exact_fractions(
    geometry: Geometry, height: int, width: int, depth: type, threshold: float, seed: int
) -> None:
    geometry = replace(geometry, alpha_threshold=threshold)
    alpha, placed = alpha_of(height, width, depth, seed), place(geometry, height, width)

    mask = mask_grid(alpha, placed, geometry)

    expected = oracle(alpha, placed, geometry)
    assert mask is not None
    assert mask.dtype == expected.dtype
    assert np.array_equal(mask, expected)


@exact
@given(geometry=geometries(), height=sides, width=sides)
def test_the_mask_of_an_opaque_image_equals_the_oracle(
    geometry: Geometry, height: int, width: int
) -> None:
    geometry = replace(geometry, alpha_threshold=1.0)
    placed = place(geometry, height, width)

    mask = mask_grid(None, placed, geometry)

    assert mask is not None
    assert np.array_equal(mask, oracle(None, placed, geometry))


@exact
@given(geometry=geometries(), height=sides, width=sides, depth=st.sampled_from([np.uint8, "u2"]))
def test_opaque_alpha_and_no_alpha_give_one_mask(
    geometry: Geometry, height: int, width: int, depth: Any
) -> None:
    placed = place(geometry, height, width)
    opaque = np.full((height, width), np.iinfo(depth).max, dtype=depth)

    assert np.array_equal(
        mask_grid(opaque, placed, geometry),  # type: ignore[arg-type]
        mask_grid(None, placed, geometry),  # type: ignore[arg-type]
    )


@exact
@given(geometry=geometries(["pad"]), height=sides, width=sides)
def test_cells_that_are_all_padding_are_zero_and_only_they(
    geometry: Geometry, height: int, width: int
) -> None:
    placed = place(geometry, height, width)
    edges = [
        np.arange(cells + 1) * side / cells
        for cells, side in zip(placed.grid, placed.footprint, strict=True)
    ]
    inside = [
        (edge[1:] > -offset) & (edge[:-1] < resized - offset)
        for edge, offset, resized in zip(edges, placed.offset, placed.resized, strict=True)
    ]

    mask = mask_grid(None, placed, geometry)

    assert mask is not None
    assert np.array_equal(mask > 0, np.outer(*inside))


@exact
@given(geometry=geometries(), height=sides, width=sides, data=st.data())
def test_one_visible_pixel_marks_the_cell_that_the_affine_names(
    geometry: Geometry, height: int, width: int, data: st.DataObject
) -> None:
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    alpha = np.zeros((height, width), dtype=np.uint8)
    alpha[row, column] = 255
    placed = place(geometry, height, width)
    x, y = (a * (column + 0.5) + b * (row + 0.5) + c for a, b, c in placed.affine)
    i, j = math.floor(y / placed.cell[0]), math.floor(x / placed.cell[1])
    assume(0 <= i < placed.grid[0] and 0 <= j < placed.grid[1])

    mask = mask_grid(alpha, placed, geometry)

    assert mask is not None
    assert mask[i, j] > 0


@exact
@given(geometry=geometries(), height=sides, width=sides, seed=st.integers(0, 99))
def test_swapping_height_and_width_transposes_the_mask(
    geometry: Geometry, height: int, width: int, seed: int
) -> None:
    scale = geometry.scale_to
    swapped = replace(
        geometry,
        size=geometry.size and geometry.size[::-1],
        grid=geometry.grid and geometry.grid[::-1],
        cells=geometry.cells and geometry.cells[::-1],
        scale_to=scale[::-1] if isinstance(scale, tuple) else scale,
    )
    alpha = alpha_of(height, width, np.uint16, seed)

    upright = mask_grid(alpha, place(geometry, height, width), geometry)
    other = mask_grid(alpha.T, place(swapped, width, height), swapped)

    assert upright is not None
    assert other is not None
    assert np.array_equal(upright, other.T)


# ---- thresholds at the alpha's own depth


@pytest.mark.parametrize(
    ("threshold", "depth", "last_below", "first_above"),
    [
        (0.0, np.uint8, 0, 1),
        (0.0, np.uint16, 0, 1),
        (0.5, np.uint8, 127, 128),
        (0.5, np.uint16, 32767, 32768),
        (0.6, np.uint8, 153, 154),  # 153 is 0.6 exactly; the float 0.6 lies a little below it
        (0.1, np.uint16, 6553, 6554),
        (0.2, np.uint16, 13107, 13108),
        (0.999, np.uint8, 254, 255),
    ],
)
def test_a_threshold_is_compared_exactly_at_the_alphas_own_depth(
    threshold: float, depth: type, last_below: int, first_above: int
) -> None:
    geometry = Geometry("squash", (1, 2), 1, (1, 2), alpha_threshold=threshold)
    alpha: AnyArray = np.array([[last_below, first_above]], dtype=depth)

    mask = mask_grid(alpha, place(geometry, 1, 2), geometry)

    assert mask is not None
    assert mask.tolist() == [[0, 1]]


def test_nothing_is_above_a_threshold_of_one_but_an_opaque_image_has_ones() -> None:
    geometry = replace(WIDE, alpha_threshold=1.0)
    placed, opaque = place(geometry, 9, 9), np.full((9, 9), 255, dtype=np.uint8)
    mask, without_alpha = mask_grid(opaque, placed, geometry), mask_grid(None, placed, geometry)

    assert mask is not None
    assert without_alpha is not None
    assert (mask.max(), without_alpha.min()) == (0, 1)


# ---- what lies outside


def test_alpha_that_the_crop_cuts_away_marks_no_cell() -> None:
    alpha = np.full((28, 100), 255, dtype=np.uint8)
    alpha[:, 29:71] = 0  # the crop shows columns 29…71

    mask = mask_grid(alpha, place(WIDE, 28, 100), WIDE)

    assert mask is not None
    assert mask.max() == 0


def test_one_column_inside_the_crop_marks_one_column_of_cells() -> None:
    alpha = np.zeros((28, 100), dtype=np.uint8)
    alpha[:, 70] = 1

    mask = mask_grid(alpha, place(WIDE, 28, 100), WIDE)

    assert mask is not None
    assert mask.tolist() == [[0, 0, 0, 0, 0, 1]] * 4


def test_alpha_in_the_remainder_right_and_below_marks_no_cell() -> None:
    geometry = Geometry("crop", (384, 384), 14, (27, 27))
    alpha = np.zeros((384, 384), dtype=np.uint8)
    alpha[378:], alpha[:, 378:] = 255, 255

    mask = mask_grid(alpha, place(geometry, 384, 384), geometry)

    assert mask is not None
    assert (mask.shape, mask.max()) == ((27, 27), 0)


def test_touching_a_cell_without_area_does_not_mark_it() -> None:
    geometry = Geometry("squash", (2, 4), 2, (1, 2))  # 3 source pixels a cell
    alpha = np.zeros((1, 6), dtype=np.uint8)
    alpha[0, 2] = 255

    mask = mask_grid(alpha, place(geometry, 1, 6), geometry)

    assert mask is not None
    assert mask.tolist() == [[1, 0]]


def test_coverage_is_the_mean_of_alpha_over_the_footprint_with_padding_as_nothing() -> None:
    # 2 x 2 pixels stretched to 4 x 4, centred in 4 x 6: one empty column on each side
    geometry = Geometry("pad", (4, 6), 2, (2, 3), mask="coverage")
    alpha = np.array([[255, 51], [0, 102]], dtype=np.uint8)

    mask = mask_grid(alpha, place(geometry, 2, 2), geometry)

    assert mask is not None
    assert mask.dtype == np.float32
    top = [0.5, (1.0 + 0.2) / 2, 0.1]
    bottom = [0.0, (0.0 + 0.4) / 2, 0.2]
    assert mask.tolist() == np.array([top, bottom], dtype=np.float32).tolist()


def test_a_cell_that_juts_out_of_the_canvas_counts_what_is_inside() -> None:
    # a network that rounds its grid up: 25 pixels, three cells of 10
    geometry = Geometry("crop", (25, 30), 10, (3, 3), mask="coverage")

    mask = mask_grid(None, place(geometry, 60, 30), geometry)

    assert mask is not None
    assert mask.tolist() == [[1.0] * 3, [1.0] * 3, [0.5] * 3]


# ---- the rest


def test_mask_none_gives_none() -> None:
    assert mask_grid(None, place(WIDE, 5, 5), replace(WIDE, mask="none")) is None


def test_alpha_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011, the whole text follows
        mask_grid(np.zeros((5, 6), dtype=np.uint8), place(WIDE, 6, 5), WIDE)

    assert str(refusal.value) == "placed for (6, 5), alpha is (5, 6)"


@pytest.mark.parametrize("rule", ["any", "coverage"])
@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000)])
def test_a_strip_of_thirty_thousand_pixels_has_the_mask_of_its_middle(
    size: tuple[int, int], rule: Any
) -> None:
    geometry = Geometry("crop", (224, 224), 14, (16, 16), mask=rule)
    alpha = np.zeros(30_000, dtype=np.uint16)
    alpha[15_000] = 65535  # the crop shows 14,999.5…15,000.5

    mask = mask_grid(alpha.reshape(size), place(geometry, *size), geometry)

    assert mask is not None
    halves = mask.T if size[0] == 1 else mask
    assert (halves[:8].max(), halves[8:].min()) == (0, 1)


@pytest.mark.parametrize("size", [(40_000, 1), (1, 40_000)])
def test_coverage_sums_of_deep_alpha_outgrow_32_bits_unharmed(size: tuple[int, int]) -> None:
    geometry = Geometry("squash", (14, 14), 14, (1, 1), mask="coverage")
    alpha = np.full(size, 65535, dtype=np.uint16)

    mask = mask_grid(alpha, place(geometry, *size), geometry)

    assert mask is not None
    assert mask.tolist() == [[1.0]]


@pytest.mark.parametrize("tall", [True, False])
def test_coverage_over_a_grid_that_divides_nothing_outgrows_63_bits_unharmed(tall: bool) -> None:
    # all primes: a source pixel measures 37 * 7907 units, or 37 * 7901
    geometry = Geometry("squash", (7907, 7901), 1, (37, 37), cells=(7907, 7901), mask="coverage")
    alpha = np.zeros((2003, 2011), dtype=np.uint16)
    alpha[:1001] = 65535
    edges = [Fraction(i * 2003, 37) for i in range(38)]
    shares = [min(max((1001 - a) / (b - a), 0), 1) for a, b in itertools.pairwise(edges)]

    turned = alpha if tall else alpha.T
    mask = mask_grid(turned, place(geometry, *turned.shape), geometry)

    assert mask is not None
    expected = np.array([[float(share)] * 37 for share in shares], dtype=np.float32)
    assert np.array_equal(mask if tall else mask.T, expected)


def test_the_cells_of_a_grid_have_their_share_of_the_network_input() -> None:
    # 3 cells of 2 pixels become 2 cells of 3; the pixel to the right lies outside them
    geometry = Geometry("squash", (2, 7), 2, (1, 2), cells=(1, 3), mask="coverage")
    alpha = np.array([[255, 255, 0, 0, 0, 255, 255]] * 2, dtype=np.uint8)

    mask = mask_grid(alpha, place(geometry, 2, 7), geometry)

    assert mask is not None
    assert mask.tolist() == np.array([[2 / 3, 1 / 3]], dtype=np.float32).tolist()


@pytest.mark.parametrize("rule", ["any", "coverage"])
def test_a_large_alpha_needs_little_memory_beside_itself(rule: Any) -> None:
    geometry = Geometry("keep", None, 14, None, mask=rule)
    alpha = np.full((4000, 5000), 40_000, dtype=np.uint16)  # 40 MB
    placed = place(geometry, *alpha.shape)

    tracemalloc.start()
    mask = mask_grid(alpha, placed, geometry)
    extra = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert mask is not None
    assert mask.shape == (114, 143)
    assert extra < 1_000_000
