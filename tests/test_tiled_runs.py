"""--tile and --grid through the command and featprep.encode, with the hand-computable encoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import DEEP, FakeEncoder, fake_session, mean_colours
from featprep import api, encode, encoders
from featprep.cli import main
from featprep.config import EncodeConfig
from featprep.encoders.base import LoadOptions, Stage, Want
from featprep.encoders.regridding import resample
from featprep.encoders.tiling import TiledEncoder, Tiling
from featprep.session import open_session
from PIL import Image
from test_encode_run import Bench


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    (tmp_path / "in").mkdir()
    return Bench(tmp_path, monkeypatch, capsys)


def _noise(bench: Bench, name: str, height: int, width: int) -> np.ndarray:
    pixels = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(bench.input / name)
    return pixels.transpose(2, 0, 1)


def test_a_tiled_run_writes_the_untiled_maps_of_a_local_encoder(bench: Bench) -> None:
    pixels = _noise(bench, "a.png", 48, 80)
    assert bench.run("--size", "48,80", "--tile", "native", "--save_meta") == 0
    assert np.array_equal(bench.load("a.npy"), mean_colours(pixels[None])[0])
    assert bench.encoder.calls[0] == (4, 3, 32, 32)
    assert bench.said.splitlines()[0] == (
        "encoder  fake:mean  (3, 6, 10) at 48×80 in windows of 32×32  weights ffffffff (made here)"
    )
    assert "→ tokens (4,96,3) →" in bench.said  # 2 x 3 windows of 16 cells
    meta = json.loads((bench.output / "a.json").read_text())
    assert (meta["tile"], meta["overlap"]) == ([32, 32], [8, 8])
    assert bench.run("--size", "48,80") == 2
    assert "--tile 32 there, no --tile asked. Nothing" in bench.said


def test_a_full_device_halves_the_windows_of_a_forward_pass(bench: Bench) -> None:
    bench.encoder.room = 2
    images = [_noise(bench, f"{'x' * n}.png", 48, 80) for n in (1, 2, 3)]
    assert bench.run("--size", "48,80", "--tile", "16", "--overlap", "0") == 0
    assert "going on with batches of 2" in bench.said
    assert {shape[0] for shape in bench.encoder.calls[1:]} == {2}
    for n, pixels in enumerate(images, 1):
        assert np.array_equal(bench.load(f"{'x' * n}.npy"), mean_colours(pixels[None])[0])


def test_keep_fails_the_image_that_is_smaller_than_a_tile_and_goes_on(
    bench: Bench,
) -> None:
    large = _noise(bench, "large.png", 48, 80)
    _noise(bench, "small.png", 40, 24)
    assert bench.run("--resize", "keep", "--tile", "native") == 3
    assert np.array_equal(bench.load("large.npy"), mean_colours(large[None])[0])
    (failure,) = bench.lines("failures.jsonl")
    assert (failure["key"], failure["stage"]) == ("small", "decode")
    assert failure["reason"].startswith(
        "24×40 pixels give an input of 24×40, smaller than --tile 32,32 (height, width): encode"
    )


def test_a_grid_resamples_the_map_and_makes_the_mask_anew(bench: Bench) -> None:
    pixels = _noise(bench, "a.png", 48, 80)
    alpha = np.full((48, 80), 255, np.uint8)
    alpha[:, :60] = 0  # of four columns of cells of 20 pixels, the last
    rgba = np.concatenate([pixels.transpose(1, 2, 0), alpha[:, :, None]], axis=2)
    Image.fromarray(rgba).save(bench.input / "a.png")
    seen = mean_colours((pixels * (alpha > 0))[None])
    assert bench.run("--size", "48,80", "--grid", "3,4", "--save_meta") == 0
    assert np.array_equal(bench.load("a.npy"), resample(seen, (3, 4))[0])
    assert bench.load("a_mask.npy").tolist() == [[0, 0, 0, 1]] * 3
    meta = json.loads((bench.output / "a.json").read_text())
    assert (meta["grid"], meta["resampled"]) == ([3, 4], "bilinear, align_corners=False")
    assert meta["geometry"]["cell"] == [16, 20]
    assert main(["show", str(bench.output), "a", "--out", str(bench.root / "a.png")]) == 0
    with Image.open(bench.root / "a.png") as picture:
        assert picture.size == (3 * 560 + 16, 336)  # as wide as the image, not as the grid


def test_keep_with_a_grid_gives_every_image_one_shape_and_resumes(bench: Bench) -> None:
    wide, tall = _noise(bench, "wide.png", 48, 80), _noise(bench, "tall.png", 64, 40)
    flags = ["--resize", "keep", "--grid", "5", "--tile", "16", "--fp16"]
    assert bench.run(*flags) == 0
    for name, pixels in (("wide", wide), ("tall", tall)):
        expected = resample(mean_colours(pixels[None]), (5, 5))[0].astype(np.float16)
        assert np.array_equal(bench.load(f"{name}.npy"), expected)
        assert bench.load(f"{name}_mask.npy").shape == (5, 5)
    assert bench.run(*flags) == 0
    assert "0 encoded, 2 skipped" in bench.said
    assert bench.run("--resize", "keep", "--grid", "6", "--tile", "16", "--fp16") == 2
    assert "--grid 5 there, --grid 6 asked. Nothing" in bench.said


def test_a_map_that_overflows_is_encoded_again_behind_the_same_windows(
    bench: Bench,
) -> None:
    pixels = _noise(bench, "a.png", 48, 80)
    bench.encoder.scale = np.inf
    exact = FakeEncoder()
    flags = ["--size", "48,80", "--tile", "16", "--grid", "2,3"]
    assert bench.run(*flags, exact=exact) == 0
    assert exact.calls[0] == (4, 3, 16, 16)
    assert np.array_equal(bench.load("a.npy"), resample(mean_colours(pixels[None]), (2, 3))[0])


def test_a_fixed_size_encoder_takes_any_size_behind_windows(bench: Bench) -> None:
    bench.encoder.spec = replace(bench.encoder.spec, fixed_size=True)
    pixels = _noise(bench, "a.png", 48, 80)
    assert bench.run("--resize", "keep") == 2
    assert bench.run("--resize", "keep", "--tile", "native") == 0
    assert np.array_equal(bench.load("a.npy"), mean_colours(pixels[None])[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--overlap", "8"], "--overlap is of --tile: add --tile native, or drop it"),
        (["--tile", "0"], "--tile 0: allowed is one side, H,W in pixels, or native; for example "
                          "--tile 224 or --tile 224,448"),
        (["--tile", "16", "--overlap", "16"], "--overlap 16: allowed is 0 to 15, less than the "
                                              "tile, 16; for example --overlap 8"),
        (["--tile", "20"], "--tile 20: fake:mean takes multiples of its patch, 8, or native; for "
                           "example --tile 16"),
        (["--tile", "64"], "--tile 64: larger than the input, 32; take a smaller --tile, or a "
                           "larger input, for example --size 128"),
        (["--grid", "0,3"], "--grid 0,3: allowed is one number of cells, or H,W; for example "
                            "--grid 16 or --grid 16,32"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_before_any_work(
    bench: Bench, flags: list[str], message: str
) -> None:  # fmt: skip
    _noise(bench, "a.png", 48, 80)
    assert bench.run(*flags) == 2
    assert bench.said == f"featprep: {message}\n"
    assert not bench.output.exists()


def test_featprep_encode_takes_tiles_and_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = FakeEncoder()
    monkeypatch.setattr(api, "open_session", fake_session(encoder))
    api._session.cache_clear()
    pixels = np.random.default_rng(3).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    settings = {"model": "clip:tiny", "size": (48, 80), "tile": "native", "overlap": 16}
    own = mean_colours(pixels.transpose(2, 0, 1)[None])
    assert np.array_equal(encode(pixels, **settings).map, own)
    maps = encode(pixels, **settings, grid=(7, 9))
    api._session.cache_clear()
    assert np.array_equal(maps.map, resample(own, (7, 9)))
    assert maps.masks is not None
    assert maps.masks.shape == (1, 7, 9)
    assert set(encoder.calls) == {(4, 3, 32, 32)}


def test_a_session_wraps_its_encoder_and_the_twin_that_encodes_again() -> None:
    config = EncodeConfig(
        input="i", output="o", model="clip:tiny", precision="bf16", size=(224, 448),
        tile=(112, 112), grid=(5, 6), device="cpu",
    )  # fmt: skip
    session = open_session(config, encoders.resolve("clip:tiny", "any"))
    pixels = np.random.default_rng(0).integers(1, 256, (2, 3, 224, 448), dtype=np.uint8)
    for encoder in (session.encoder, session.exact()):
        assert encoder.grid(224, 448) == (5, 6)
        assert encoder.tokens(224, 448) == (3 * 5 * 65, 64)
    plain = encoders.load_encoder(encoders.resolve("clip:tiny", "any"), LoadOptions())
    tiling = Tiling((112, 112), (84, 84))
    expected = resample(TiledEncoder(plain, tiling).encode(pixels, Want()).map, (5, 6))
    assert np.array_equal(session.exact().encode(pixels, Want()).map, expected)
    assert not np.array_equal(session.encoder.encode(pixels, Want()).map, expected)


def test_stages_of_a_cnn_and_the_mean_over_the_mask_come_behind_windows_and_on_one_grid(
    bench: Bench,
) -> None:
    stages = (Stage(8, 3), Stage(16, 3))
    bench.encoder = FakeEncoder(spec=replace(DEEP, depth=2, patch=16, stages=stages))
    pixels = _noise(bench, "a.png", 64, 96)
    flags = ["--resize", "keep", "--tile", "native", "--overlap", "16", "--layer", "0,1"]
    fine, coarse = mean_colours(pixels[None]), mean_colours(pixels[None], 16)

    assert bench.run(*flags) == 2
    assert "the layers of fake:deep have grids that differ" in bench.said
    assert bench.run(*flags, "--grid", "3,5", "--masked_pool") == 0
    on_grid = [resample(maps, (3, 5))[0] for maps in (fine, coarse)]
    assert np.array_equal(bench.load("a.npy"), on_grid[0])
    assert np.array_equal(bench.load("a@1.npy"), on_grid[1])
    with np.load(bench.output / "a_vec.npz") as vectors:
        np.testing.assert_allclose(vectors["masked"], on_grid[0].mean(axis=(1, 2)), rtol=1e-5)
        np.testing.assert_allclose(vectors["masked@1"], on_grid[1].mean(axis=(1, 2)), rtol=1e-5)

    assert bench.run(*flags[:-1], "0", "--overwrite") == 0
    assert np.array_equal(bench.load("a.npy"), fine[0])


@pytest.mark.parametrize("part", ["prefix", "pooled"])
def test_vectors_of_a_whole_image_are_refused_with_tiles(bench: Bench, part: str) -> None:
    bench.encoder = FakeEncoder(spec=DEEP)
    _noise(bench, "a.png", 64, 96)
    assert bench.run("--size", "64", "--tile", "native", f"--{part}") == 2
    assert bench.said == (
        f"featprep: --{part} with --tile: each window has its own and the image has none; drop one "
        "of them, or use --masked_pool\n"
    )
