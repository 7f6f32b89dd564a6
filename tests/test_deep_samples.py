"""Files deeper than 8 bits a channel: what is read is what was written, at its own depth."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from featprep.errors import ImageError
from featprep.images import decode, decode_mask
from featprep.records import AnyArray
from image_bytes import chunk, png, png_rows, tiff
from PIL import Image

RNG = np.random.default_rng(7)
DATA = os.environ.get("FEATPREP_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="FEATPREP_TEST_DATA is not set: no torture files")


def noise(*shape: int, dtype: str = "uint16", top: int = 65536) -> AnyArray:
    return RNG.integers(0, top, shape).astype(dtype)


def rounded(colour: AnyArray, alpha: AnyArray | None = None, white: int = 65535) -> AnyArray:
    """colour·alpha as 8 bits, by integers: floor(x + 1/2) of the exact quotient."""
    wide = colour.astype(object)
    below = white
    if alpha is not None:
        wide = wide * (alpha.astype(object) if wide.ndim == 2 else alpha.astype(object)[..., None])
        below = white * white
    return ((2 * 255 * wide + below) // (2 * below)).astype(np.uint8)


def rgb_of(data: bytes) -> AnyArray:
    return np.asarray(decode(data).rgb)


def grey_rgb(grey: AnyArray) -> AnyArray:
    return np.dstack([grey] * 3)


def test_16_bit_grey_png_keeps_all_its_levels() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = decode(png(ramp))
    assert np.array_equal(np.asarray(picture.rgb), grey_rgb(rounded(ramp)))
    assert (picture.alpha, picture.mode) == (None, "PNG L 16-bit")


def test_16_bit_rgb_png_is_rounded_once_not_cut() -> None:
    values = noise(9, 14, 3)
    picture = decode(png(values))
    assert np.array_equal(np.asarray(picture.rgb), rounded(values))
    assert (picture.alpha, picture.mode, picture.stored_size) == (None, "PNG RGB 16-bit", (9, 14))


def test_16_bit_rgba_png_is_premultiplied_at_16_bits() -> None:
    values = noise(40, 31, 4)
    picture = decode(png(values))
    assert np.array_equal(np.asarray(picture.rgb), rounded(values[..., :3], values[..., 3]))
    assert picture.alpha is not None
    assert picture.alpha.dtype == np.uint16
    assert np.array_equal(picture.alpha, values[..., 3])


def test_16_bit_alpha_below_256_is_not_lost() -> None:
    values = np.full((2, 3, 4), 65535, np.uint16)
    values[..., 3] = [[1, 200, 255], [0, 256, 65535]]
    alpha = decode(png(values)).alpha
    assert alpha is not None
    assert alpha.tolist() == [[1, 200, 255], [0, 256, 65535]]


def test_16_bit_grey_with_alpha_is_read_as_such() -> None:
    values = noise(6, 5, 2)
    picture = decode(png(values))
    expected = grey_rgb(rounded(values[..., 0], values[..., 1]))
    assert np.array_equal(np.asarray(picture.rgb), expected)
    assert np.array_equal(picture.alpha, values[..., 1])  # type: ignore[arg-type]
    assert picture.mode == "PNG LA 16-bit"


def test_a_transparent_colour_is_compared_at_16_bits() -> None:
    values = np.array([[[300, 400, 500], [301, 400, 500]]], np.uint16)  # the same high bytes
    key = chunk(b"tRNS", np.array([300, 400, 500], ">u2").tobytes())
    alpha = decode(png(values, before=key)).alpha
    assert alpha is not None
    assert alpha.tolist() == [[0, 65535]]


def test_a_transparent_grey_is_compared_at_16_bits() -> None:
    values = np.array([[300, 301]], np.uint16)
    alpha = decode(png(values, before=chunk(b"tRNS", b"\x01\x2c"))).alpha
    assert alpha is not None
    assert alpha.tolist() == [[0, 65535]]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_transparent_grey_of_few_bits_is_found(depth: int) -> None:
    values = np.arange(1 << depth, dtype=np.uint8)[None]
    data = png(values, depth=depth, before=chunk(b"tRNS", bytes([0, values[0, -1]])))
    alpha = decode(data).alpha
    assert alpha is not None
    assert alpha.tolist() == [[255] * (len(values[0]) - 1) + [0]]


def test_of_an_animated_16_bit_png_the_image_before_the_animation_is_read() -> None:
    """OpenCV, given the whole file, returns the animation's first frame."""
    first, *frames = noise(3, 4, 4, 4)
    control = (4).to_bytes(4, "big") * 2 + bytes(8) + b"\0\1\0\1" + b"\0\0"
    animation = b""
    for number, frame in enumerate(frames):
        start, data = (2 * number).to_bytes(4, "big"), (2 * number + 1).to_bytes(4, "big")
        animation += chunk(b"fcTL", start + control)
        animation += chunk(b"fdAT", data + png_rows(frame, 16))
    data = png(first, before=chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), after=animation)
    assert np.array_equal(decode(data).alpha, first[..., 3])  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("channels", "planar"),
    [(1, False), (2, False), (2, True), (3, False), (3, True), (4, False), (4, True)],
)
def test_16_bit_tiff_is_read_whole(channels: int, planar: bool, order: Literal["<", ">"]) -> None:
    values = noise(7, 5, channels)
    data = tiff(values, {338: [2]} if channels in (2, 4) else {}, planar=planar, order=order)
    picture = decode(data)
    colour = values[..., :3] if channels > 2 else grey_rgb(values[..., 0])
    alpha = values[..., -1] if channels in (2, 4) else None
    assert np.array_equal(np.asarray(picture.rgb), rounded(colour, alpha))
    assert alpha is None or np.array_equal(picture.alpha, alpha)  # type: ignore[arg-type]
    assert picture.mode == f"TIFF {('L', 'LA', 'RGB', 'RGBA')[channels - 1]} 16-bit"


@pytest.mark.parametrize("planar", [False, True], ids=["interleaved", "planar"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_tiff_is_turned_upright(orientation: int, planar: bool) -> None:
    values = noise(7, 5, 4)
    data = tiff(values, {274: [orientation], 338: [2]}, planar=planar)
    stored = rounded(values[..., :3], values[..., 3])
    upright = tiff(stored, {274: [orientation]})  # 8 bits: Pillow turns it
    picture = decode(data)
    assert np.array_equal(np.asarray(picture.rgb), np.asarray(decode(upright).rgb))
    assert (picture.orientation, picture.stored_size) == (orientation, (7, 5))
    alpha = tiff((values[..., 3] >> 8).astype(np.uint8), {274: [orientation]})
    assert np.array_equal(picture.alpha >> 8, decode_mask(alpha))  # type: ignore[operator]


def test_associated_alpha_is_not_multiplied_again() -> None:
    values = noise(5, 4, 4)
    values[..., :3] = np.minimum(values[..., :3], values[..., 3:])
    assert np.array_equal(rgb_of(tiff(values, {338: [1]})), rounded(values[..., :3]))


def test_8_bit_associated_alpha_is_kept_to_the_last_level() -> None:
    values = noise(50, 40, 4, dtype="uint8", top=256)
    values[..., :3] = np.minimum(values[..., :3], values[..., 3:])
    picture = decode(tiff(values, {338: [1]}))
    assert np.array_equal(np.asarray(picture.rgb), values[..., :3])
    assert np.array_equal(picture.alpha, values[..., 3])  # type: ignore[arg-type]


def test_an_unspecified_fourth_channel_is_no_alpha() -> None:
    values = noise(5, 4, 4)
    picture = decode(tiff(values, {338: [0]}))
    assert picture.alpha is None
    assert np.array_equal(np.asarray(picture.rgb), rounded(values[..., :3]))


def test_white_is_zero_is_inverted_at_16_bits_too() -> None:
    values = noise(5, 4)
    assert np.array_equal(rgb_of(tiff(values, {262: [0]})), grey_rgb(rounded(65535 - values)))


def test_12_bits_are_scaled_by_4095() -> None:
    data = tiff(np.zeros((1, 2), np.uint16), {258: [12], 279: [3]}, raw=b"\xff\xf8\x00")
    assert rgb_of(data)[0, :, 0].tolist() == [255, 128]  # 0xfff, 0x800


def test_32_bit_integers_below_65536_are_scaled_by_65535() -> None:
    values = np.array([[0, 32768, 65535]])
    for dtype in ("uint32", "int32"):
        assert rgb_of(tiff(values.astype(dtype)))[0, :, 0].tolist() == [0, 128, 255]


def test_32_bit_integers_above_that_are_scaled_by_their_type() -> None:
    unsigned = np.array([[0, 1 << 31, (1 << 32) - 1]], np.uint32)
    assert rgb_of(tiff(unsigned))[0, :, 0].tolist() == [0, 128, 255]
    signed = np.array([[0, 1 << 30, (1 << 31) - 1]], np.int32)
    assert rgb_of(tiff(signed))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "top"), [("int16", 32767), ("int32", 65535)])
def test_signed_values_start_at_zero(dtype: str, top: int, channels: int) -> None:
    values = np.array([[-9999, 0, top // 2 + 1, top]])[..., None].repeat(channels, 2).astype(dtype)
    picture = decode(tiff(values))
    assert np.asarray(picture.rgb)[0, :, 0].tolist() == [0, 0, 128, 255]
    assert picture.notes == ("values down to -9999, below 0 are black",)


def test_signed_bytes_start_at_zero_where_pillow_wraps_them() -> None:
    values = np.array([[-128, -1, 0, 127]], np.int8)
    assert rgb_of(tiff(values))[0, :, 0].tolist() == [0, 0, 0, 255]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_are_taken_by_their_range(dtype: str, channels: int) -> None:
    def read(*values: float) -> tuple[list[int], tuple[str, ...]]:
        array = np.array([values], dtype)[..., None].repeat(channels, 2)
        picture = decode(tiff(array))
        return np.asarray(picture.rgb)[0, :, 0].tolist(), picture.notes

    assert read(0.0, 0.5, 1.0) == ([0, 128, 255], ())
    assert read(0.0, 100.25, 255.0) == ([0, 100, 255], ())
    stretched = ("float values -2 to 6 stretched to black and white",)
    assert read(-2.0, 0.0, 6.0) == ([0, 64, 255], stretched)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_float_file_with_nan_or_infinity_is_a_failure(value: float, channels: int) -> None:
    values = np.full((2, 2, channels), 0.5, np.float32)
    values[1, 1] = value
    with pytest.raises(ImageError) as caught:
        decode(tiff(values))
    assert str(caught.value) == (
        "holds NaN, infinite or immeasurably far values: no grey can be given to them"
    )


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("planar", [False, True], ids=["interleaved", "planar"])
@pytest.mark.parametrize("lost", [1, 100])
def test_a_truncated_deep_tiff_is_a_failure(dtype: str, lost: int, planar: bool) -> None:
    data = tiff(noise(20, 20, 3, dtype=dtype), planar=planar)
    with pytest.raises(ImageError) as caught:
        decode(data[:-lost])
    assert str(caught.value) == "TIFF is truncated: the file ends before the image does"


def test_a_truncated_16_bit_png_is_a_failure() -> None:
    with pytest.raises(ImageError) as caught:
        decode(png(noise(20, 20, 3))[:-200])
    assert str(caught.value) == "PNG is truncated: the file ends before the image does"


def test_a_wrong_checksum_of_whole_data_is_overlooked_at_16_bits_as_at_8() -> None:
    values = noise(9, 9, 3)
    for depth, array in ((16, values), (8, (values >> 8).astype(np.uint8))):
        data = bytearray(png(array, depth=depth))
        data[data.index(b"IEND") - 5] ^= 1
        expected = rounded(array) if depth == 16 else array
        assert np.array_equal(rgb_of(bytes(data)), expected)


def test_a_tiff_that_lacks_a_tag_is_said_to_lack_it() -> None:
    data = tiff(noise(4, 4, 3, dtype="float32")).replace(
        struct.pack("<HH", 279, 4), struct.pack("<HH", 280, 4)
    )
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert str(caught.value) == "TIFF cannot be decoded: its tag 279 is missing"


def test_what_neither_library_reads_is_said_with_its_tags() -> None:
    with pytest.raises(ImageError) as caught:
        decode(tiff(noise(4, 4, 3), {262: [8]}))
    assert str(caught.value) == (
        "TIFF with 3 channels of 16 bits and photometric interpretation 8: not read; "
        "convert it to PNG"
    )


def test_a_tag_that_should_be_a_number_is_shown_safely() -> None:
    data = bytearray(tiff(noise(4, 4, 3), {262: [2]}))
    at = data.index(struct.pack("<HHI", 262, 4, 1))
    data[at : at + 12] = struct.pack("<HHI4s", 262, 2, 3, b"\x1b[2\0")  # text of three characters
    with pytest.raises(ImageError) as caught:
        decode(bytes(data))
    assert str(caught.value).isprintable()
    assert "\\x1b[2" in str(caught.value)


def test_a_tag_of_hundreds_of_numbers_is_not_told_whole() -> None:
    with pytest.raises(ImageError) as caught:
        decode(tiff(noise(4, 4, 3), {258: list(range(10000, 10300))}))
    assert str(caught.value) == (
        f"TIFF with 3 channels of {'/'.join(map(str, range(10000, 10010)))}/… bits and photometric "
        "interpretation 2: not read; convert it to PNG"
    )


def test_opencv_prints_nothing_about_a_damaged_file(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(tiff(noise(20, 20, 3, dtype="float32"), {259: [5]}))
    data[-2000:] = b"\x55" * 2000
    with pytest.raises(ImageError):
        decode(bytes(data))
    assert capfd.readouterr() == ("", "")


@needs_data
@pytest.mark.parametrize("layout", ["strip", "tiled"])
@pytest.mark.parametrize("channels", ["RGB", "RGBa"])
def test_compressed_planar_files_of_others_agree_with_pillows_high_bytes(
    layout: str, channels: str
) -> None:
    folder = Path(str(DATA)) / "torture/pillow/Tests/images"
    path = folder / f"tiff_{layout}_planar_16bit_{channels}.tiff"
    picture = decode(path.read_bytes())
    with Image.open(path) as image:
        high = np.asarray(image.convert("RGBa") if channels == "RGBa" else image).astype(int)
    # Pillow cuts to the high byte and, for RGBa, divides by alpha in between
    assert np.abs(np.asarray(picture.rgb).astype(int) - high[..., :3]).max() <= 2
    if picture.alpha is not None:
        assert np.array_equal(picture.alpha >> 8, high[..., 3])
