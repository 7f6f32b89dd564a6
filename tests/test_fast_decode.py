"""--fast_decode: JPEGs that come smaller, and everything that must not move with them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder, fake_session
from featprep import api, images
from featprep.commands import status
from featprep.decoding import DecodeRules, prepare, prepare_bytes, prepare_job
from featprep.fast_decoding import reduction_for
from featprep.geometry import Geometry
from featprep.records import AnyArray, Failure, ImageRef, Prepared
from featprep.replay import network_pixels
from featprep.runs import Run
from PIL import Image
from test_encode_run import Bench, bench  # noqa: F401 (a fixture)

REF = ImageRef("a", "a.jpg", "a.jpg", 0, 0)
SMALL = Geometry("squash", (16, 24), 8, (2, 3))
GEOMETRIES = {
    "squash": SMALL,
    "crop": Geometry("crop", (16, 16), 8, (2, 2)),
    "pad": Geometry("pad", (24, 24), 8, (3, 3)),
    "native": Geometry("native", (16, 16), 8, (2, 2), kernel="bilinear", scale_to=18),
    "keep": Geometry("keep", None, 8, None, max_tokens=12),
}


def _ramps(height: int, width: int) -> AnyArray:
    """Red says where a pixel is across, green where it is down; every level a known place."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 16 + 224 * (x + 0.5) / width, 16 + 224 * (y + 0.5) / height
    return np.stack([red, green, np.full_like(red, 128)], axis=2).round().astype(np.uint8)


def _jpeg(values: AnyArray, orientation: int = 1, **options: Any) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(file, "JPEG", **{"quality": 98, "exif": exif, **options})
    return file.getvalue()


def _both(data: bytes, geometry: Geometry) -> tuple[Prepared, Prepared]:
    """As it is without the switch, and with it."""
    whole = prepare_bytes(data, REF, DecodeRules(geometry))
    return whole, prepare_bytes(data, REF, DecodeRules(geometry, fast=True))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_pixel_stays_in_its_place_however_the_image_is_turned(
    name: str, orientation: int
) -> None:
    # 137 = 34.25 × 4 and 203 = 25.375 × 8: the decoder's last pixels are source in part alone, and
    # one that took them for whole would be off by 5 levels at the border
    for shape in ((137, 203), (203, 137)):
        whole, fast = _both(_jpeg(_ramps(*shape), orientation), GEOMETRIES[name])
        assert fast.meta["decode_scale"] < 1
        assert fast.meta["geometry"] == whole.meta["geometry"]
        difference = fast.pixels.astype(int) - whole.pixels
        inside = difference[:, 1:-1, 1:-1]
        assert np.abs(inside).max() <= 2
        assert np.abs(inside.mean(axis=1)).max() <= 1.2  # of 6 levels a network pixel or more


@pytest.mark.parametrize(
    ("shape", "by"),
    [((31, 47), 1), ((63, 96), 1), ((64, 95), 1), ((64, 96), 2), ((128, 200), 4), ((256, 384), 8)],
)
def test_what_is_delivered_is_twice_as_large_as_the_target_at_least(
    shape: tuple[int, int], by: int
) -> None:
    assert reduction_for(SMALL)(*shape) == by


def test_an_upright_image_is_measured_as_it_stands() -> None:
    tall = Geometry("squash", (64, 8), 8, (8, 1))
    lying = _jpeg(_ramps(64, 512), orientation=6)  # 64 wide and 512 high once it stands
    assert _both(lying, tall)[1].meta["decode_scale"] == 0.25


def test_small_images_and_other_formats_are_the_same_to_the_bit() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (63, 95, 3), np.uint8)
    whole, fast = _both(_jpeg(noise), SMALL)
    assert np.array_equal(whole.pixels, fast.pixels)
    assert fast.meta == {**whole.meta, "decode_scale": 1.0}
    for kind in ("PNG", "WEBP", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(np.tile(noise, (4, 4, 1))).save(file, kind)
        whole, fast = _both(file.getvalue(), SMALL)
        assert np.array_equal(whole.pixels, fast.pixels)
        assert fast.meta == whole.meta  # nothing was asked of their decoders


def test_an_image_whose_resize_takes_the_nearest_pixel_is_decoded_whole() -> None:
    assert reduction_for(replace(SMALL, kernel="nearest"))(1024, 1024) == 1


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 1}])
def test_grey_cmyk_progressive_and_subsampled_files_come_smaller_too(
    mode: str, options: dict[str, Any]
) -> None:
    image = Image.fromarray(_ramps(400, 600)).convert(mode)
    whole, fast = _both(_jpeg(image, **options), SMALL)
    assert fast.meta["decode_scale"] == 0.125
    assert fast.meta["mode"] == whole.meta["mode"] == f"JPEG {mode} 8-bit"
    assert np.abs(fast.pixels.astype(int) - whole.pixels).max() <= 3


def test_a_truncated_file_is_the_same_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    path.write_bytes(_jpeg(noise)[:-20_000])
    ref = ImageRef("a", "a.jpg", str(path), 0, 0)
    failed = prepare(ref, DecodeRules(SMALL, fast=True))
    assert failed == prepare(ref, DecodeRules(SMALL))
    assert failed == Failure(
        "a", "a.jpg", "decode", "JPEG is truncated: the file ends before the image does"
    )


def test_mask_files_are_held_against_the_whole_source(tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    path = tmp_path / "a.jpg"
    path.write_bytes(_jpeg(_ramps(400, 600)))
    mask = np.zeros((400, 600), np.uint8)
    mask[199, 401] = 255  # one pixel, which no smaller picture would have
    Image.fromarray(mask).save(folder / "a.png")
    ref, rules = ImageRef("a", "a.jpg", str(path), 0, 0), DecodeRules(SMALL, mask_dir=str(folder))
    whole, fast = prepare(ref, rules), prepare(ref, replace(rules, fast=True))
    assert isinstance(whole, Prepared)
    assert isinstance(fast, Prepared)
    assert fast.meta["decode_scale"] == 0.125
    assert whole.mask is not None
    assert whole.mask.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert np.array_equal(fast.mask, whole.mask)


def test_several_networks_see_what_each_would_see_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(_jpeg(np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)))
    ref = ImageRef("a", "a.jpg", str(path), 0, 0)
    sizes = {0.125: 16, 0.25: 48, 0.5: 96, 1.0: 160}
    rules = [
        DecodeRules(Geometry("crop", (side, side), 8, (side // 8, side // 8)), fast=True)
        for side in (*sizes.values(), 48)
    ]
    alone = [prepare(ref, rule) for rule in rules]
    decoded, real = [], images.decode

    def counted(*args: Any, **options: Any) -> Any:
        decoded.append(args)
        return real(*args, **options)

    monkeypatch.setattr(images, "decode", counted)
    together = prepare_job(ref, rules)
    assert len(decoded) == 4  # once a scale
    for one, other, scale in zip(together, alone, (*sizes, 0.25), strict=True):
        assert isinstance(one, Prepared)
        assert isinstance(other, Prepared)
        assert one.meta["decode_scale"] == scale
        assert one.meta == other.meta
        assert np.array_equal(one.pixels, other.pixels)


def test_of_a_truncated_file_every_scale_is_what_there_is_of_it(tmp_path: Path) -> None:
    whole = _jpeg(np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8))
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[: len(whole) * 3 // 4])
    rules = [
        DecodeRules(
            Geometry("crop", (side, side), 8, (side // 8,) * 2), fast=True, allow_truncated=True
        )
        for side in (16, 160)
    ]
    outcomes = prepare_job(ImageRef("a", "a.jpg", str(path), 0, 0), rules)
    assert [one.meta["decode_scale"] for one in outcomes if isinstance(one, Prepared)] == [0.125, 1]
    assert all(images.CUT_SHORT in one.meta["notes"] for one in outcomes)  # type: ignore[union-attr]


def test_a_run_records_the_switch_and_each_images_scale_and_shows_what_was_seen(
    bench: Bench,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    bench.input.joinpath("large.jpg").write_bytes(_jpeg(noise))
    bench.input.joinpath("small.jpg").write_bytes(_jpeg(noise[:40, :40]))
    bench.image("drawn.png")
    seen = []
    bench.encoder.before = lambda pixels: seen.extend(pixels)
    assert bench.run("--size", "32", "--fast_decode", "--save_meta", "--batch_size", "1") == 0
    said = {
        name: json.loads((bench.output / f"{name}.json").read_text())
        for name in ("drawn", "large", "small")
    }
    assert [meta["fast_decode"] for meta in said.values()] == [True] * 3
    assert [meta.get("decode_scale") for meta in said.values()] == [None, 0.25, 1.0]
    assert said["large"]["geometry"]["source_size"] == [400, 600]
    run = Run(bench.output)
    assert run.fingerprint["fast_decode"] is True
    assert status.main([str(bench.output)]) == 0
    assert "mask any  compute float32  storage float32  fast_decode\n" in capsys.readouterr().out
    assert np.array_equal(network_pixels(run, "large"), seen[1])


def test_from_python_paths_and_bytes_come_smaller_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "open_session", fake_session(FakeEncoder()))
    api._session.cache_clear()
    path = tmp_path / "a.jpg"
    path.write_bytes(_jpeg(np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)))
    whole, fast = (
        api.encode([path, path.read_bytes()], model="clip:tiny", size=32, fast_decode=switch).map
        for switch in (False, True)
    )
    api._session.cache_clear()
    assert np.array_equal(fast[0], fast[1])
    assert 0 < np.abs(fast - whole).max() < 2  # means of 64 pixels each


def test_an_output_is_of_one_way_to_decode(bench: Bench) -> None:  # noqa: F811
    bench.image("a.jpg")
    assert bench.run("--size", "32") == 0
    assert "fast_decode" not in Run(bench.output).fingerprint  # older outputs resume
    assert bench.run("--size", "32", "--fast_decode") == 2
    assert bench.said == (
        f"featprep: {bench.output} holds features of other settings: --no_fast_decode there, "
        "--fast_decode asked. Nothing was touched: to go on with what is there give "
        "--no_fast_decode, else use another --output, or --overwrite to replace them\n"
    )
