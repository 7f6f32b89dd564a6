"""Windows and their blend, against untiled maps and a formula of its own, cell by cell."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from fakes import SPEC, FakeEncoder, mean_colours
from featprep import encoders
from featprep.encoders.base import EncoderSpec, LoadOptions, Stage, Want
from featprep.encoders.tiling import TiledEncoder, Tiling, plan, starts, tent
from featprep.errors import OutOfMemoryError, UsageError
from featprep.records import AnyArray, FeatureMaps, UInt8
from hypothesis import given, settings
from hypothesis import strategies as st

WANT = Want()
few = settings(max_examples=60)


@dataclass
class PlaceEncoder:
    """Each cell says where in its window it lies: channels (row, column, brightness of the window's
    first pixel). `patch` and window come with the spec."""

    spec: EncoderSpec
    digest: str = "p" * 64
    origin: str = "made here"
    weights_files: Mapping[str, str] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def grid(self, height: int, width: int, layer: int = -1) -> tuple[int, int]:
        stride = self.spec.stages[layer].stride if self.spec.stages else self.spec.patch
        return height // stride, width // stride

    def tokens(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = self.grid(height, width)
        return 1 + rows * columns, 3

    def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
        self.shapes.append(pixels.shape)
        maps = {}
        for layer in want.layers:
            rows, columns = np.indices(self.grid(*pixels.shape[-2:], layer), np.float32)
            corner = pixels[:, :1, :1, :1].astype(np.float32) + 0 * rows
            places = np.broadcast_to(np.stack([rows, columns]), (len(pixels), 2, *rows.shape))
            maps[layer] = np.concatenate([places, corner], axis=1).astype(want.dtype)
        return FeatureMaps(maps)


def spec_of(patch: int, **changes: Any) -> EncoderSpec:
    return replace(SPEC, patch=patch, native_size=(4 * patch, 4 * patch), **changes)


def noise(*shape: int, seed: int = 0) -> UInt8:
    """No pixel is black, so no window is."""
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


@st.composite
def scenes(draw: st.DrawFn, patch: int | None = None) -> tuple[int, Tiling, tuple[int, int]]:
    """(patch, tiling, size of the image), H ≠ W in all of them."""
    patch = patch or draw(st.integers(1, 4))
    tile = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    step = draw(st.tuples(st.integers(1, tile[0]), st.integers(1, tile[1])))
    more = draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))
    size = tuple((n + extra) * patch for n, extra in zip(tile, more, strict=True))
    tiling = Tiling((tile[0] * patch, tile[1] * patch), (step[0] * patch, step[1] * patch))
    return patch, tiling, (size[0], size[1])


def corners(cells: int, window: int, step: int) -> list[int]:
    """First cells of the windows on one axis, counted out by hand."""
    found = [0]
    while found[-1] + window < cells:
        found.append(min(found[-1] + step, cells - window))
    return found


def blended(image: UInt8, patch: int, tiling: Tiling) -> AnyArray:
    """What PlaceEncoder's windows blend to: the weighted mean of every cell, in float64."""
    rows, columns = (side // patch for side in image.shape[1:])
    (high, wide), (down, right) = ([side // patch for side in s] for s in
                                   (tiling.tile, tiling.step))  # fmt: skip
    result = np.zeros((3, rows, columns))
    for i, j in itertools.product(range(rows), range(columns)):
        total = 0
        for top in corners(rows, high, down):
            for left in corners(columns, wide, right):
                y, x = i - top, j - left
                if 0 <= y < high and 0 <= x < wide:
                    weight = min(y + 1, high - y) * min(x + 1, wide - x)
                    corner = image[0, top * patch, left * patch]
                    result[:, i, j] += weight * np.array([y, x, corner])
                    total += weight
        result[:, i, j] /= total
    return result


# ---- values


@few
@given(scene=scenes(patch=8), seed=st.integers(0, 9))
def test_an_encoder_that_sees_each_cell_alone_gives_exactly_its_untiled_map(
    scene: tuple[int, Tiling, tuple[int, int]], seed: int
) -> None:
    _, tiling, size = scene
    pixels = noise(2, 3, *size, seed=seed)
    tiled = TiledEncoder(FakeEncoder(), tiling)

    assert np.array_equal(tiled.encode(pixels, WANT).map, mean_colours(pixels))
    assert tiled.grid(*size) == (size[0] // 8, size[1] // 8)


@few
@given(scene=scenes(), seed=st.integers(0, 9))
def test_where_windows_differ_cells_are_their_mean_weighted_by_the_tent(
    scene: tuple[int, Tiling, tuple[int, int]], seed: int
) -> None:
    patch, tiling, size = scene
    pixels = noise(2, 3, *size, seed=seed)
    tiled = TiledEncoder(PlaceEncoder(spec_of(patch)), tiling)

    maps = tiled.encode(pixels, WANT).map

    assert maps.dtype == np.float32
    for image, found in zip(pixels, maps, strict=True):
        np.testing.assert_allclose(found, blended(image, patch, tiling), rtol=2e-6, atol=1e-6)


@few
@given(tile=st.tuples(*[st.integers(1, 5)] * 2), steps=st.tuples(*[st.integers(0, 4)] * 2))
def test_an_image_turned_over_has_its_map_turned_over(
    tile: tuple[int, int], steps: tuple[int, int]
) -> None:
    class FromRim(FakeEncoder):
        """Adds how far a cell is from its window's rim, the same from either side."""

        def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
            maps = mean_colours(pixels)
            return FeatureMaps({0: maps + tent(*maps.shape[2:])})

    size = tuple(8 * (n + more) for n, more in zip(tile, steps, strict=True))
    tiled = TiledEncoder(FromRim(), Tiling((8 * tile[0], 8 * tile[1]), (8, 8)))
    pixels = noise(1, 3, *size)

    upright = tiled.encode(pixels, WANT).map
    turned = tiled.encode(np.ascontiguousarray(pixels[:, :, ::-1, ::-1]), WANT).map

    np.testing.assert_allclose(turned[:, :, ::-1, ::-1], upright, rtol=1e-5)


def test_the_weights_are_a_tent_on_either_axis_and_never_zero() -> None:
    assert tent(4, 3).tolist() == [[1, 2, 1], [2, 4, 2], [2, 4, 2], [1, 2, 1]]
    assert tent(1, 1).tolist() == [[1]]


@given(
    tile=st.integers(1, 9), more=st.integers(0, 40), step=st.integers(1, 9), patch=st.integers(1, 5)
)
def test_windows_cover_every_cell_and_the_last_ends_at_the_border(
    tile: int, more: int, step: int, patch: int
) -> None:
    step, cells = min(step, tile), tile + more

    found = starts(cells * patch, tile * patch, step * patch, patch)

    assert found == [patch * start for start in corners(cells, tile, step)]
    covered = {start + i for start in found for i in range(tile * patch)}
    assert covered == set(range(cells * patch))
    assert found[-1] + tile * patch == cells * patch


def test_every_stage_of_a_cnn_is_blended_at_its_own_stride() -> None:
    stages = (Stage(2, 3), Stage(8, 3))
    spec = spec_of(8, depth=2, has_layers=True, stages=stages)
    tiling, pixels = Tiling((16, 24), (8, 16)), noise(2, 3, 40, 48)
    tiled = TiledEncoder(PlaceEncoder(spec), tiling)

    maps = tiled.encode(pixels, replace(WANT, layers=(1, 0))).maps

    assert list(maps) == [1, 0]
    assert (tiled.grid(40, 48, 0), tiled.grid(40, 48)) == ((20, 24), (5, 6))
    np.testing.assert_allclose(maps[1][1], blended(pixels[1], 8, tiling), rtol=2e-6)
    np.testing.assert_allclose(maps[0][1], blended(pixels[1], 2, tiling), rtol=2e-6)


def test_a_tile_the_patch_does_not_divide_has_its_remainder_outside_the_grid() -> None:
    class Remainder(FakeEncoder):
        def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
            height, width = (side // 8 * 8 for side in pixels.shape[2:])
            return super().encode(np.ascontiguousarray(pixels[:, :, :height, :width]), want)

    pixels = noise(1, 3, 40, 56)  # native 30 x 28, as SigLIP's 384 has cells of 14
    tiled = TiledEncoder(Remainder(), Tiling((30, 28), (16, 8)))

    assert np.array_equal(tiled.encode(pixels, WANT).map, mean_colours(pixels))


# ---- batches


def test_a_map_does_not_depend_on_the_images_beside_it() -> None:
    tiling = Tiling((16, 24), (8, 16))
    pixels = np.concatenate([noise(3, 3, 40, 48), np.zeros((2, 3, 40, 48), np.uint8)])
    pixels[1, :, :24] = 0  # as renders have it: some windows are all black
    tiled = TiledEncoder(PlaceEncoder(spec_of(8)), tiling)
    together = tiled.encode(pixels, WANT).map

    for i, image in enumerate(pixels):
        alone = np.zeros_like(pixels)
        alone[4] = image
        assert np.array_equal(tiled.encode(alone, WANT).map[4], together[i])
    np.testing.assert_allclose(together[1], blended(pixels[1], 8, tiling), rtol=2e-6)
    np.testing.assert_allclose(together[4], blended(pixels[4], 8, tiling), rtol=2e-6)


def test_a_forward_pass_has_as_many_windows_as_the_batch_images_and_black_ones_are_one() -> None:
    inner = PlaceEncoder(spec_of(8))
    tiled = TiledEncoder(inner, Tiling((16, 24), (8, 24)))
    pixels = np.zeros((4, 3, 32, 48), np.uint8)  # 3 x 2 windows an image
    tiled.encode(pixels, WANT)
    assert inner.shapes == [(4, 3, 16, 24)]

    pixels[1] = noise(3, 32, 48)
    tiled.encode(pixels, WANT)
    assert inner.shapes[1:] == [(4, 3, 16, 24)] * 2  # 6 windows and a black one


def test_a_device_without_room_says_so_to_the_runner() -> None:
    tiled = TiledEncoder(FakeEncoder(room=1), Tiling((16, 16), (8, 8)))

    with pytest.raises(OutOfMemoryError, match="no room for a batch of 2"):
        tiled.encode(noise(2, 3, 32, 24), WANT)
    assert tiled.encode(noise(1, 3, 32, 24), WANT).map.shape == (1, 3, 4, 3)


def test_what_overflows_float16_comes_back_as_inf_and_what_is_blended_is_float32() -> None:
    tiling = Tiling((16, 16), (8, 8))
    pixels = noise(1, 3, 32, 24)
    half = TiledEncoder(FakeEncoder(), tiling).encode(pixels, replace(WANT, dtype="float16")).map
    large = TiledEncoder(FakeEncoder(scale=1e4), tiling)

    assert half.dtype == np.float16
    assert np.array_equal(half, mean_colours(pixels).astype(np.float16))
    assert np.isinf(large.encode(pixels, replace(WANT, dtype="float16")).map).any()


# ---- real encoders


@pytest.mark.parametrize("name", ["clip:tiny", "hf:tiny", "openclip:tiny"])
def test_a_real_encoders_windows_are_its_own_maps_at_every_layer(name: str) -> None:
    plain = encoders.load_encoder(encoders.resolve(name, "any"), LoadOptions())
    spec = plain.spec
    tile, patch = spec.native_size, spec.patch
    tiled = TiledEncoder(plain, plan(spec, plain.grid, "native", 0))
    rows, columns = plain.grid(*tile)
    pixels = noise(2, 3, 2 * rows * patch, columns * patch)
    want = Want(layers=(-1, 0) if spec.has_layers else (-1,))

    maps = tiled.encode(pixels, want).maps

    upper, lower = pixels[:, :, : tile[0]], pixels[:, :, -tile[0] :]
    halves = [plain.encode(np.ascontiguousarray(half), want).maps for half in (upper, lower)]
    assert list(maps) == list(halves[0])
    for layer, found in maps.items():
        expected = np.concatenate([half[layer] for half in halves], axis=2)
        assert np.array_equal(found, expected)
    assert tiled.tokens(*pixels.shape[2:]) == (2 * plain.tokens(*tile)[0], spec.hidden_dim)


# ---- what --tile and --overlap mean


@pytest.mark.parametrize(
    ("tile", "overlap", "expected"),
    [
        ("native", None, Tiling((224, 224), (168, 168))),  # 16 cells, of which 4 overlap
        ((224, 112), None, Tiling((224, 112), (168, 84))),
        ((98, 98), None, Tiling((98, 98), (70, 70))),  # 7 cells: 1.75 is 2
        ((14, 14), None, Tiling((14, 14), (14, 14))),
        ("native", 0, Tiling((224, 224), (224, 224))),
        ("native", 50, Tiling((224, 224), (168, 168))),  # 174 is nearest to 12 patches
        ("native", 223, Tiling((224, 224), (14, 14))),
    ],
)
def test_a_tile_overlaps_by_whole_patches_a_quarter_unless_told(
    tile: Any, overlap: int | None, expected: Tiling
) -> None:
    spec = replace(SPEC, patch=14, native_size=(224, 224))

    assert plan(spec, PlaceEncoder(spec).grid, tile, overlap) == expected


def test_a_native_tile_with_a_remainder_never_leaves_a_gap() -> None:
    spec = replace(SPEC, patch=14, native_size=(390, 384))  # 27 cells and 12 or 6 pixels

    assert plan(spec, PlaceEncoder(spec).grid, "native", 0).step == (378, 378)


@pytest.mark.parametrize(
    ("changes", "tile", "overlap", "message"),
    [
        ({}, (100, 112), None, "--tile 100,112: fake:mean takes multiples of its patch, 14, or "
                               "native; for example --tile 98,112"),
        ({}, (112, 224), 112, "--overlap 112: allowed is 0 to 111, less than the tile, 112,224; "
                              "for example --overlap 28"),
        ({"fixed_size": True}, (112, 112), None,
         "--tile 112: fake:mean takes 224 only; type --tile native"),
    ],
)  # fmt: skip
def test_a_tile_that_cannot_be_is_refused(
    changes: dict[str, Any], tile: Any, overlap: int | None, message: str
) -> None:
    spec = replace(SPEC, patch=14, native_size=(224, 224), **changes)

    with pytest.raises(UsageError) as refusal:
        plan(spec, PlaceEncoder(spec).grid, tile, overlap)
    assert str(refusal.value) == message


@pytest.mark.parametrize("rounds_up", [True, False])
def test_a_native_size_that_the_cells_of_a_cnn_do_not_fill_is_no_tile(rounds_up: bool) -> None:
    # as EfficientNet-B1: 8 x 8 cells of 32 jut out; or 7 x 7, and more than 28 x 28 of 8
    stages = (Stage(8, 3), Stage(32, 3))
    spec = replace(SPEC, patch=32, native_size=(240, 240), depth=2, stages=stages)
    up = 31 * rounds_up

    with pytest.raises(UsageError) as refusal:
        plan(spec, lambda height, width: ((height + up) // 32,) * 2, "native", None)
    assert str(refusal.value) == (
        "--tile 240: the cells of fake:mean, 32 wide, do not end where it ends; allowed are "
        "multiples of 32, for example --tile 256"
    )


@pytest.mark.parametrize("part", ["prefix", "pooled"])
def test_vectors_of_a_whole_image_are_refused(part: str) -> None:
    tiled = TiledEncoder(FakeEncoder(), Tiling((16, 16), (8, 8)))
    wanted: dict[str, Any] = {part: True}

    with pytest.raises(UsageError) as refusal:
        tiled.encode(noise(1, 3, 32, 24), replace(WANT, **wanted))
    assert str(refusal.value) == (
        f"--{part} with --tile: each window has its own and the image has none; drop one of them, "
        "or use --masked_pool"
    )


def test_behind_windows_no_size_is_fixed_but_those_below_a_tile() -> None:
    inner = FakeEncoder()
    inner.spec = replace(SPEC, fixed_size=True)
    tiled = TiledEncoder(inner, Tiling((32, 32), (24, 24)))

    assert tiled.spec == SPEC
    with pytest.raises(UsageError) as refusal:
        tiled.grid(64, 24)
    assert str(refusal.value) == "an input side of 24 is smaller than --tile 32"
