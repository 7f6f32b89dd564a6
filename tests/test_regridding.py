"""Maps on one grid: against the bilinear formula, and what passes through untouched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder, mean_colours
from featprep.encoders import regridding
from featprep.encoders.base import Want
from featprep.encoders.regridding import RegriddedEncoder, resample
from featprep.errors import OutOfMemoryError
from featprep.records import AnyArray, FeatureMaps, UInt8
from hypothesis import given, settings
from hypothesis import strategies as st

WANT = Want()
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 48), dtype=np.uint8)


class Vectors(FakeEncoder):
    """Two layers of different grids, and vectors."""

    def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
        maps = mean_colours(pixels)
        vectors = maps.mean(axis=(2, 3))
        layers = {1: maps, 0: np.repeat(maps, 2, axis=3)}
        return FeatureMaps(layers, prefix=vectors[:, None], pooled=vectors * 1e4)


def weights(before: int, after: int) -> AnyArray:
    """(after, before): what each old cell gives to a new one, by its centre between two centres."""
    table = np.zeros((after, before))
    for i in range(after):
        at = max(0.0, (i + 0.5) * before / after - 0.5)
        low = min(int(at), before - 1)
        table[i, low] += 1 - (at - low)
        table[i, min(low + 1, before - 1)] += at - low
    return table


@settings(deadline=None, max_examples=60)
@given(before=st.tuples(*[st.integers(1, 9)] * 2), after=st.tuples(*[st.integers(1, 9)] * 2))
def test_maps_are_resampled_by_the_bilinear_formula(before: Any, after: Any) -> None:
    maps = np.random.default_rng(1).normal(size=(2, 3, *before)).astype(np.float32)

    found = resample(maps, after)

    expected = np.einsum("ih,bchw,jw->bcij", weights(before[0], after[0]), maps,
                         weights(before[1], after[1]))  # fmt: skip
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_grid_that_is_the_networks_own_changes_nothing() -> None:
    encoder = RegriddedEncoder(FakeEncoder(), (4, 6))

    assert np.array_equal(encoder.encode(PIXELS, WANT).map, mean_colours(PIXELS))


def test_every_layer_has_the_grid_and_vectors_pass_through_as_stored() -> None:
    encoder = RegriddedEncoder(Vectors(), (3, 5))
    plain = Vectors().encode(PIXELS, WANT)

    found = encoder.encode(PIXELS, replace(WANT, dtype="float16"))

    assert list(found.maps) == [1, 0]
    for layer, maps in plain.maps.items():
        assert np.array_equal(found.maps[layer], resample(maps, (3, 5)).astype(np.float16))
    assert plain.prefix is not None
    assert np.array_equal(found.prefix, plain.prefix.astype(np.float16))  # type: ignore[arg-type]
    assert np.isinf(found.pooled).all()  # type: ignore[arg-type]
    assert encoder.grid(32, 48) == encoder.grid(64, 64, 0) == (3, 5)
    assert encoder.tokens(32, 48) == (24, 3)


def test_a_host_without_room_for_the_grid_says_so_to_the_runner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(maps: AnyArray, cells: tuple[int, int]) -> AnyArray:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(regridding, "resample", full)

    with pytest.raises(OutOfMemoryError, match=r"no room for 2 maps of \(900, 900\) cells"):
        RegriddedEncoder(FakeEncoder(), (900, 900)).encode(PIXELS, WANT)
