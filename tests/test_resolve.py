"""What a config means for one encoder, and what is refused before any work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import featprep.resolve
import pytest
from fakes import SPEC
from featprep.config import EncodeConfig
from featprep.devices import Precision
from featprep.encoders.base import EncoderSpec, Recipe, Want
from featprep.errors import UsageError
from featprep.resolve import by_patch, fingerprint, resolve

DINO = replace(
    SPEC, name="hf:dino", family="hf", patch=14, hidden_dim=384, depth=12, native_size=(518, 518)
)
CLIP = replace(
    SPEC, name="clip:b32", family="clip", patch=32, hidden_dim=768, depth=12, text=True,
    native_size=(224, 224), projected_dim=512, final_norm=False,
)  # fmt: skip


def _resolve(spec: EncoderSpec, *, is_plain: bool = False, **settings: Any):  # noqa: ANN202
    config = EncodeConfig(**{"input": "i", "output": "o", "model": "m", **settings})
    return resolve(config, spec, "float32", by_patch(spec), is_plain=is_plain)


@pytest.mark.parametrize(
    ("spec", "is_plain", "size", "expected"),
    [
        (DINO, True, None, (224, 224)),
        (DINO, False, None, (518, 518)),
        (DINO, True, "native", (518, 518)),
        (DINO, True, (224, 448), (224, 448)),
        (CLIP, True, None, (224, 224)),
        (replace(CLIP, native_size=(336, 336)), True, None, (336, 336)),
        (replace(DINO, native_size=(384, 384)), False, (384, 384), (384, 384)),
    ],
)
def test_the_size_is_224_for_plain_names_and_native_for_family_names(
    spec: EncoderSpec, is_plain: bool, size: Any, expected: tuple[int, int]
) -> None:
    assert _resolve(spec, is_plain=is_plain, size=size).geometry.size == expected


def test_a_size_the_patch_does_not_divide_is_refused_with_the_nearest_that_it_does() -> None:
    with pytest.raises(UsageError) as error:
        _resolve(DINO, size=(225, 450))
    assert str(error.value) == (
        "--size 225,450: hf:dino takes multiples of its patch, 14, or native; for example "
        "--size 224,448"
    )


def test_a_fixed_size_encoder_names_its_size() -> None:
    with pytest.raises(UsageError) as error:
        _resolve(replace(CLIP, fixed_size=True), size=(256, 256))
    assert (
        str(error.value) == "--size 256: clip:b32 takes 224 only; drop --size, or add --tile native"
    )
    with pytest.raises(UsageError) as error:
        _resolve(replace(CLIP, fixed_size=True), resize="keep")
    assert str(error.value) == (
        "--resize keep: clip:b32 takes 224 only; add --tile native, or drop it"
    )


def test_a_projection_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        _resolve(DINO, feature="projected")
    assert (
        str(error.value)
        == "--feature projected: hf:dino has no projection; allowed is --feature patch"
    )
    assert _resolve(CLIP, feature="projected").channels == 512


def test_native_takes_the_recipe_of_the_checkpoint() -> None:
    recipe = Recipe(resize=256, crop=(224, 224), kernel="bilinear", rounding="transformers")
    geometry = _resolve(replace(DINO, recipe=recipe), resize="native").geometry
    assert (geometry.scale_to, geometry.size, geometry.grid) == (256, (224, 224), (16, 16))
    assert (geometry.kernel, geometry.rounding) == ("bilinear", "transformers")


def test_the_mean_background_is_the_encoders_own() -> None:
    spec = replace(DINO, mean=(0.485, 0.456, 0.406))
    assert _resolve(spec, background="mean").geometry.background == (124, 116, 104)


def test_bytes_on_disk_count_map_mask_and_headers() -> None:
    resolved = _resolve(DINO, size=(224, 224))
    assert resolved.bytes_per_image(meta=False) == 384 * 256 * 4 + 128 + 256 + 128
    assert _resolve(DINO, resize="keep").bytes_per_image(meta=False) is None


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"background": "white"}, {"background"}),
        ({"resize": "pad"}, {"resize"}),
        ({"size": (28, 28)}, {"size", "grid"}),
        ({"mask": "coverage"}, {"mask"}),
        ({"tile": "native"}, {"tile", "overlap"}),
        ({"tile": (112, 112), "overlap": 14}, {"tile", "overlap"}),
        ({"grid": (8, 12)}, {"grid", "cells"}),
        ({"alpha_threshold": 0.5}, {"alpha_threshold"}),
        ({"names": "full"}, {"names"}),
        ({"feature": "projected"}, {"feature", "norm"}),
        ({"mask_dir": "."}, {"mask_dir"}),
        ({"batch_size": 3, "workers": 9, "save_meta": True, "limit": 5, "shard": (1, 2)}, set()),
    ],
)
def test_the_fingerprint_differs_where_bytes_would_and_nowhere_else(
    change: dict[str, Any], differs: set[str]
) -> None:
    spec = replace(CLIP, patch=14, native_size=(224, 224))
    precision = Precision("float32", "float32", "default")

    def make(**settings: Any) -> dict[str, Any]:
        config = EncodeConfig(**{"input": "i", "output": "o", "model": "m", **settings})
        resolved = resolve(config, spec, "float32", by_patch(spec), is_plain=False)
        return fingerprint(config, spec, "d" * 64, resolved, precision)

    before, after = make(), make(**change)
    assert {name for name in before if before[name] != after[name]} == differs


def test_windows_free_the_size_of_a_fixed_encoder() -> None:
    fixed = replace(CLIP, fixed_size=True)
    geometry = _resolve(fixed, size=(256, 448), tile="native").geometry
    assert (geometry.size, geometry.grid, geometry.tile) == ((256, 448), (8, 14), (224, 224))
    kept = _resolve(fixed, resize="keep", tile="native").geometry
    assert (kept.size, kept.grid, kept.tile) == (None, None, (224, 224))
    assert _resolve(fixed, tile="native").geometry.size == (224, 224)  # as without windows


def test_an_input_smaller_than_a_tile_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        _resolve(DINO, size=(448, 112), tile=(224, 224))
    assert str(error.value) == (
        "--tile 224: larger than the input, 448,112; take a smaller --tile, or a larger input, for "
        "example --size 448"
    )


def test_the_size_of_a_window_decides_on_the_position_embeddings() -> None:
    assert _resolve(CLIP, size=(448, 448), tile="native", pos_embed="hub").tiling is not None
    with pytest.raises(UsageError, match="--pos_embed hub at 96×96: clip:b32 has no such"):
        _resolve(CLIP, size=(448, 448), tile=(96, 96), pos_embed="hub")


def test_vectors_are_refused_with_tiles_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featprep.resolve, "want_of", lambda config, storage: Want(prefix=True))
    with pytest.raises(UsageError, match="--prefix with --tile: each window has its own"):
        _resolve(DINO, size=(448, 448), tile=(224, 224))


def test_a_grid_is_that_of_map_mask_and_bytes() -> None:
    resolved = _resolve(DINO, size=(224, 448), grid=(8, 12))
    assert (resolved.geometry.grid, resolved.geometry.cells) == ((8, 12), (16, 32))
    assert resolved.map_shape == (384, 8, 12)
    assert resolved.bytes_per_image(meta=False) == 384 * 96 * 4 + 128 + 96 + 128
    assert _resolve(DINO, resize="keep", grid=(8, 12)).map_shape == (384, 8, 12)
