"""What the network sees: bit for bit as the libraries, without fringes, of huge images too."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from featprep import geometry as geometry_module
from featprep.geometry import Geometry, place, render
from featprep.records import AnyArray, Picture, UInt8
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CROP_224 = Geometry("crop", (224, 224), 14, (16, 16))
WIDE = Geometry("crop", (28, 42), 7, (4, 6))
KEEP = Geometry("keep", None, 14, None)
WHITE = (255, 255, 255)
ODD_SIZES = [
    (316, 524),
    (524, 316),
    (225, 223),
    (223, 225),
    (1, 7),
    (97, 61),
    (333, 1001),
    (450, 449),
]

all_modes = pytest.mark.parametrize("mode", ["crop", "squash", "pad", "keep", "native"])


def in_mode(mode: Any) -> Geometry:
    """28 x 42 with cells of 7, or what the image has."""
    if mode == "keep":
        return Geometry("keep", None, 7, None)
    return replace(WIDE, resize=mode, scale_to=33 if mode == "native" else None)


def picture_of(rgb: AnyArray, alpha: AnyArray | None = None) -> Picture:
    height, width = rgb.shape[:2]
    image = Image.fromarray(rgb.astype(np.uint8))
    return Picture(image, alpha, (height, width), 1, "test")


def noise(height: int, width: int) -> UInt8:
    draw = np.random.default_rng(height * 10_007 + width)
    return draw.integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> UInt8:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / 9 + k) + np.cos(x / (7 + k)) for k in range(3)]
    return np.stack([np.round(127 + 60 * wave) for wave in waves], axis=-1).astype(np.uint8)


def rendered(picture: Picture, geometry: Geometry) -> UInt8:
    return render(picture, place(geometry, *picture.rgb.size[::-1]), geometry)


def upstream_bytes(normalised: AnyArray, mean: Any, std: Any) -> AnyArray:
    column = (slice(None), None, None)
    scaled = normalised * np.array(std)[column] + np.array(mean)[column]
    rounded: AnyArray = np.rint(scaled * 255)
    return rounded


# ---- against the libraries


@pytest.mark.filterwarnings("ignore:pkg_resources")
@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("side", [224, 35])
def test_crop_equals_the_transform_of_openai_clip_bit_for_bit(
    size: tuple[int, int], side: int
) -> None:
    from clip.clip import _transform

    picture = picture_of(noise(*size))
    theirs = _transform(side)(picture.rgb)

    ours = rendered(picture, Geometry("crop", (side, side), side, (1, 1)))

    assert np.array_equal(clip_normalised(ours), theirs.numpy())


def clip_normalised(pixels: UInt8) -> AnyArray:
    import torch
    from torchvision.transforms import functional

    scaled = torch.from_numpy(pixels).div(255)
    normalised: AnyArray = functional.normalize(scaled, list(CLIP_MEAN), list(CLIP_STD)).numpy()
    return normalised


def test_crop_equals_the_golden_tensors_of_clip() -> None:
    if "FEATPREP_TEST_DATA" not in os.environ:
        pytest.skip("FEATPREP_TEST_DATA is not set: no golden tensors of openai/CLIP")
    folder = Path(os.environ["FEATPREP_TEST_DATA"]) / "clip_golden"
    names = json.loads((folder / "names.json").read_text())
    theirs = np.load(folder / "clip_preprocessed_7x3x224x224_f32.npy")

    for name, golden in zip(names, theirs, strict=True):
        with Image.open(folder / "images" / f"{name}.jpg") as image:
            ours = rendered(picture_of(np.asarray(image.convert("RGB"))), CROP_224)
        assert np.array_equal(clip_normalised(ours), golden), name


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    scale_to=st.integers(1, 60),
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    kernel=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_native_equals_torchvision_on_pillow_with_padding_too(
    height: int, width: int, scale_to: int, rows: int, columns: int, kernel: Any
) -> None:
    from torchvision import transforms

    picture = picture_of(noise(height, width))
    theirs = transforms.Compose(
        [
            transforms.Resize(scale_to, transforms.InterpolationMode(kernel)),
            transforms.CenterCrop((rows, columns)),
        ]
    )
    native = Geometry("native", (rows, columns), 1, (rows, columns), kernel, scale_to=scale_to)

    ours = rendered(picture, native)

    assert np.array_equal(ours, np.asarray(theirs(picture.rgb)).transpose(2, 0, 1))


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("scale_to", [256, 200, 224])
def test_native_equals_the_pillow_processor_of_dinov2_bit_for_bit(
    size: tuple[int, int], scale_to: int
) -> None:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    processor = BitImageProcessorPil(
        size={"shortest_edge": scale_to}, crop_size=224, image_mean=CLIP_MEAN, image_std=CLIP_STD
    )
    picture = picture_of(noise(*size))
    theirs = processor(picture.rgb, return_tensors="np")["pixel_values"][0]
    native = replace(CROP_224, resize="native", scale_to=scale_to, rounding="transformers")

    ours = rendered(picture, native)

    assert np.array_equal(ours, upstream_bytes(theirs, CLIP_MEAN, CLIP_STD))


def test_the_two_roundings_differ_by_one_pixel_where_the_excess_is_odd() -> None:
    native = replace(CROP_224, resize="native", scale_to=224)  # resized to 224 x 371

    as_torchvision = place(native, 316, 524)
    as_transformers = place(replace(native, rounding="transformers"), 316, 524)

    assert (as_torchvision.offset, as_transformers.offset) == ((0, 74), (0, 73))


def test_squash_stretches_to_the_size() -> None:
    picture = picture_of(noise(31, 17))
    theirs = picture.rgb.resize((42, 28), Image.Resampling.BICUBIC)

    ours = rendered(picture, replace(WIDE, resize="squash"))

    assert np.array_equal(ours, np.asarray(theirs).transpose(2, 0, 1))


def test_pad_surrounds_the_image_with_the_background() -> None:
    picture = picture_of(noise(14, 11))  # resized to 28 x 22, ten columns before, ten behind
    pad = replace(WIDE, resize="pad", background=(1, 2, 3))
    middle = picture.rgb.resize((22, 28), Image.Resampling.BICUBIC)

    ours = rendered(picture, pad)

    expected = np.empty((28, 42, 3), dtype=np.uint8)
    expected[:] = (1, 2, 3)
    expected[:, 10:32] = np.asarray(middle)
    assert np.array_equal(ours, expected.transpose(2, 0, 1))


def test_keep_shows_an_image_of_whole_patches_unchanged() -> None:
    rgb = noise(28, 70)

    ours = rendered(picture_of(rgb), KEEP)

    assert np.array_equal(ours, rgb.transpose(2, 0, 1))


@all_modes
def test_pixels_come_as_contiguous_bytes_of_the_canvas(mode: str) -> None:
    picture = picture_of(noise(61, 33))
    placed = place(in_mode(mode), 61, 33)

    pixels = render(picture, placed, in_mode(mode))

    assert pixels.shape == (3, *placed.canvas)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


@settings(max_examples=60)
@given(height=st.integers(8, 40), width=st.integers(8, 40), data=st.data())
@all_modes
def test_a_bright_pixel_is_found_where_the_affine_sends_it(
    mode: str, height: int, width: int, data: st.DataObject
) -> None:
    # away from the image's edges, where the kernel is cut off, and dark enough to overshoot nowhere
    row, column = data.draw(st.integers(3, height - 4)), data.draw(st.integers(3, width - 4))
    rgb = np.zeros((height, width, 3), dtype=np.uint8)
    rgb[row, column] = 150
    placed = place(in_mode(mode), height, width)
    x, y = (a * (column + 0.5) + b * (row + 0.5) + c for a, b, c in placed.affine)
    assume(1 <= y <= placed.canvas[0] - 1 and 1 <= x <= placed.canvas[1] - 1)

    light = render(picture_of(rgb), placed, in_mode(mode))[0].astype(float)

    brightest = np.argwhere(light == light.max()) + 0.5
    assert np.abs(brightest.mean(axis=0) - (y, x)).max() <= 0.75


def test_a_transposed_image_renders_transposed() -> None:
    rgb = smooth(90, 61)
    swapped = Geometry("crop", (42, 28), 7, (6, 4))

    a = rendered(picture_of(rgb), WIDE).astype(int)
    b = rendered(picture_of(rgb.transpose(1, 0, 2)), swapped).astype(int)

    # Pillow's two passes round in another order
    assert np.abs(a - b.transpose(0, 2, 1)).max() <= 1


# ---- transparency


def premultiplied(rgba: AnyArray, depth: type = np.uint8) -> Picture:
    """What images.py makes of straight RGBA: colour in 8 bits, alpha as deep as the file."""
    alpha = rgba[..., 3:].astype(np.int64)
    most = int(np.iinfo(depth).max)
    rgb = (2 * rgba[..., :3].astype(np.int64) * alpha + most) // (2 * most)
    return picture_of(rgb, alpha[..., 0].astype(depth))


def disc(height: int, width: int, most: int) -> AnyArray:
    """Alpha of a disc with a soft edge a pixel and a half wide, 0…most."""
    y, x = np.mgrid[:height, :width]
    inside = 0.3 * height - np.hypot(y - height / 2, x - width / 2)
    alpha: AnyArray = np.round(np.clip(inside / 1.5 + 0.5, 0, 1) * most)
    return alpha


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@all_modes
def test_a_white_disc_on_white_stays_white_everywhere(mode: str, depth: type) -> None:
    alpha = disc(75, 101, np.iinfo(depth).max)
    rgba = np.dstack([np.full((75, 101, 3), 255), alpha])

    pixels = rendered(premultiplied(rgba, depth), replace(in_mode(mode), background=WHITE))

    assert pixels.min() == 255


@all_modes
def test_the_hidden_colour_of_transparent_pixels_never_appears(mode: str) -> None:
    alpha = disc(75, 101, 255)
    colour = np.where(alpha[..., None] > 0, (0, 200, 0), (255, 0, 255))

    pixels = rendered(premultiplied(np.dstack([colour, alpha])), in_mode(mode))

    assert (pixels[0].max(), pixels[2].max()) == (0, 0)
    assert pixels[1].max() > 150


@given(data=st.data(), depth=st.sampled_from([np.uint8, np.uint16]))
def test_the_background_shows_through_by_one_minus_alpha_rounded_once(
    data: st.DataObject, depth: type
) -> None:
    most = int(np.iinfo(depth).max)
    alpha = data.draw(st.integers(0, most))
    background = data.draw(st.tuples(*[st.integers(0, 255)] * 3))
    colour = data.draw(st.integers(0, 255 * alpha // most))
    picture = picture_of(np.full((1, 1, 3), colour), np.full((1, 1), alpha, depth))

    pixels = rendered(picture, Geometry("keep", None, 1, None, background=background))

    shares = [Fraction((most - alpha) * value, most) for value in background]
    exact = [colour + math.floor(share + Fraction(1, 2)) for share in shares]
    assert pixels[:, 0, 0].tolist() == [min(255, value) for value in exact]


def test_compositing_first_equals_resizing_colour_and_alpha_apart() -> None:
    y, x = np.mgrid[:80, :120]
    alpha = np.round(127.5 + 100 * np.sin(y / 11) * np.cos(x / 13))
    picture = premultiplied(np.dstack([smooth(80, 120), alpha]))
    assert picture.alpha is not None
    size = (42, 28)
    resized_alpha = Image.fromarray(picture.alpha).resize(size, Image.Resampling.BICUBIC)
    apart = np.asarray(picture.rgb.resize(size, Image.Resampling.BICUBIC)).astype(float)
    apart += (255 - np.asarray(resized_alpha, dtype=float)[..., None]) / 255 * (200, 100, 50)

    ours = rendered(picture, replace(WIDE, resize="squash", background=(200, 100, 50)))

    assert np.abs(ours - apart.transpose(2, 0, 1)).max() <= 2  # theirs is rounded twice more


def test_compositing_in_strips_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = premultiplied(np.dstack([noise(50, 31), disc(50, 31, 255)]))
    geometry = replace(WIDE, background=(10, 200, 77))
    whole = rendered(picture, geometry)

    monkeypatch.setattr(geometry_module, "STRIP", 70)

    assert np.array_equal(rendered(picture, geometry), whole)


def test_rendering_leaves_the_picture_as_it_was() -> None:
    picture = premultiplied(np.dstack([noise(28, 42), disc(28, 42, 255)]))
    before = np.array(picture.rgb)

    rendered(picture, replace(KEEP, patch=7, background=WHITE))[:] = 0

    assert np.array_equal(np.asarray(picture.rgb), before)


# ---- images too large to be resized whole


def test_only_a_resize_above_the_limit_that_is_cropped_is_windowed() -> None:
    assert place(CROP_224, 30_000, 1).windowed
    assert place(CROP_224, 30_000, 1).resized == (6_720_000, 224)
    assert not place(CROP_224, 3000, 4000).windowed
    assert not place(Geometry("squash", (9000, 9000), 9000, (1, 1)), 5, 5).windowed
    assert place(CROP_224, 1, 30_000).metadata()["windowed"] is True


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(64, 1), (1, 64), (300, 41), (41, 300), (90, 61), (7, 9)])
@pytest.mark.parametrize("background", [(0, 0, 0), WHITE])
def test_a_window_shows_what_the_whole_resize_shows(
    kernel: Any, size: tuple[int, int], background: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgba = np.dstack([smooth(*size), disc(*size, 255)])
    geometry = replace(WIDE, kernel=kernel, background=background)
    picture, whole = premultiplied(rgba), place(geometry, *size)
    expected = render(picture, whole, geometry).astype(int)
    monkeypatch.setattr(geometry_module, "LARGEST_RESIZE", 1)

    windowed = place(geometry, *size)

    assert windowed == replace(whole, windowed=True)
    assert np.abs(render(picture, windowed, geometry) - expected).max() <= 2


@settings(max_examples=100)
@given(height=st.integers(1, 150), width=st.integers(1, 150), side=st.integers(1, 60))
def test_a_window_of_noise_equals_one_of_the_two_orders_of_passes(
    height: int, width: int, side: int
) -> None:
    picture, kernel = picture_of(noise(height, width)), Image.Resampling.BICUBIC
    geometry = Geometry("crop", (side, side), side, (1, 1))
    placed = replace(place(geometry, height, width), windowed=True)
    (rows, columns), (top, left) = placed.resized, placed.offset
    box = (left, top, left + side, top + side)
    orders = [
        np.asarray(picture.rgb.resize(first, kernel).resize((columns, rows), kernel).crop(box))
        for first in ((columns, height), (width, rows))
    ]

    ours = render(picture, placed, geometry).transpose(1, 2, 0).astype(int)

    assert min(np.abs(ours - order).max() for order in orders) <= 2


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000)])
def test_a_strip_of_thirty_thousand_pixels_shows_its_middle(size: tuple[int, int]) -> None:
    ramp = np.repeat(np.arange(30_000) // 10 % 256, 3).reshape(*size, 3)

    pixels = rendered(picture_of(ramp), CROP_224)

    assert pixels.shape == (3, 224, 224)
    # the crop is one source pixel across, pixel 14,999.5…15,000.5
    assert (pixels.min(), pixels.max()) == (1499 % 256, 1500 % 256)


@all_modes
def test_one_pixel_fills_the_canvas_with_its_colour(mode: str) -> None:
    placed = place(in_mode(mode), 1, 1)

    pixels = render(picture_of(np.full((1, 1, 3), 77)), placed, in_mode(mode))

    top, left = max(0, -placed.offset[0]), max(0, -placed.offset[1])
    shown = pixels[:, top : top + placed.resized[0], left : left + placed.resized[1]]
    assert (shown.min(), shown.max()) == (77, 77)


def test_a_placement_of_another_image_is_refused() -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011, the whole text follows
        render(picture_of(noise(8, 9)), place(CROP_224, 9, 8), CROP_224)

    assert str(refusal.value) == "placed for (9, 8), rendered (8, 9)"
