"""bytes → Picture: what is read, what it becomes, what is refused and in which words."""

from __future__ import annotations

import io
import struct
from contextlib import suppress

import numpy as np
import pytest
from featprep.errors import ImageError
from featprep.images import SUFFIXES, decode, decode_mask, picture_of
from featprep.records import AnyArray, Picture
from hypothesis import given, settings
from hypothesis import strategies as st
from image_bytes import chunk, png, tiff
from PIL import Image, ImageOps

RNG = np.random.default_rng(11)
NOISE = RNG.integers(0, 256, (23, 31, 4)).astype(np.uint8)
ORIENTED = [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]


def noise(mode: str) -> Image.Image:
    """31×23 pixels of noise in any of Pillow's modes."""
    if mode in ("PA", "P"):
        return Image.fromarray(NOISE[..., :3]).quantize(60).convert(mode)
    if mode in ("RGBA", "LA"):
        return Image.fromarray(NOISE).convert(mode)
    if mode in ("RGBa", "La"):
        return Image.fromarray(NOISE).convert("LA" if mode == "La" else "RGBA").convert(mode)
    if mode == "LAB":
        return Image.frombytes("LAB", (31, 23), NOISE[..., :3].tobytes())
    return Image.fromarray(NOISE[..., :3]).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_pillow_converts(data: bytes) -> AnyArray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def multiplied(image: Image.Image) -> tuple[AnyArray, AnyArray]:
    """Straight-alpha pixels → (premultiplied RGB, alpha), by integers."""
    rgba = np.asarray(image.convert("RGBA")).astype(int)
    colour, alpha = rgba[..., :3], rgba[..., 3]
    return (2 * colour * alpha[..., None] + 255) // 510, alpha


def assert_is(picture: Picture, colour: AnyArray, alpha: AnyArray | None) -> None:
    assert np.array_equal(np.asarray(picture.rgb), colour)
    if alpha is None:
        assert picture.alpha is None
    else:
        assert picture.alpha is not None
        assert np.array_equal(picture.alpha, alpha)


def test_the_suffixes_are_those_of_the_contract() -> None:
    expected = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".gif"}
    assert expected == SUFFIXES


@pytest.mark.parametrize(
    ("mode", "kind", "said"),
    [
        ("RGB", "JPEG", "JPEG RGB 8-bit"),
        ("L", "JPEG", "JPEG L 8-bit"),
        ("CMYK", "JPEG", "JPEG CMYK 8-bit"),
        ("RGB", "MPO", "JPEG RGB 8-bit"),
        ("RGB", "WEBP", "WebP RGB 8-bit"),
        ("RGB", "AVIF", "AVIF RGB 8-bit"),
        ("RGB", "BMP", "BMP RGB 8-bit"),
        ("P", "BMP", "BMP P 8-bit"),
        ("1", "BMP", "BMP 1 1-bit"),
        ("P", "GIF", "GIF P 8-bit"),
        ("1", "PNG", "PNG L 1-bit"),
        ("L", "PNG", "PNG L 8-bit"),
        ("P", "PNG", "PNG P 8-bit"),
        ("RGB", "PNG", "PNG RGB 8-bit"),
        ("1", "TIFF", "TIFF 1 1-bit"),
        ("RGB", "TIFF", "TIFF RGB 8-bit"),
        ("YCbCr", "TIFF", "TIFF YCbCr 8-bit"),
        ("CMYK", "TIFF", "TIFF CMYK 8-bit"),
        ("LAB", "TIFF", "TIFF LAB 8-bit"),
    ],
)
def test_an_opaque_8_bit_file_is_exactly_what_pillow_converts(
    mode: str, kind: str, said: str
) -> None:
    data = encoded(noise(mode), kind)
    picture = decode(data)
    assert_is(picture, as_pillow_converts(data), None)
    assert (picture.mode, picture.stored_size, picture.orientation) == (said, (23, 31), 1)
    assert picture.notes == ()


@pytest.mark.parametrize("mode", ["HSV", "YCbCr", "LAB", "CMYK", "RGBX", "1", "L", "P", "RGB"])
def test_an_opaque_pillow_image_is_exactly_what_pillow_converts(mode: str) -> None:
    image = noise(mode)
    picture = picture_of(image)
    assert_is(picture, np.asarray(image.convert("RGB")), None)
    assert picture.mode == f"PIL {mode}"


def test_an_rgb_image_is_not_copied() -> None:
    image = noise("RGB")
    assert picture_of(image).rgb is image


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "TIFF"), ("LA", "TIFF")],
)
def test_a_file_with_alpha_is_premultiplied(mode: str, kind: str) -> None:
    image = noise(mode)
    assert_is(decode(encoded(image, kind)), *multiplied(image))


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_a_lossy_file_with_alpha_is_premultiplied_as_decoded(kind: str) -> None:
    data = encoded(noise("RGBA"), kind)
    with Image.open(io.BytesIO(data)) as image:
        assert_is(decode(data), *multiplied(image))


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_what_is_premultiplied_is_not_multiplied_again(mode: str) -> None:
    image = noise(mode)
    bands = [np.asarray(band) for band in image.split()]
    colours = bands[:-1] if mode == "RGBa" else bands[:1] * 3
    assert_is(picture_of(image), np.dstack(colours), bands[-1])


def test_the_hidden_colour_of_transparent_pixels_does_not_show() -> None:
    image = Image.new("RGBA", (2, 1), (255, 100, 50, 0))
    assert np.asarray(decode(encoded(image)).rgb).max() == 0


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_counts_as_alpha(kind: str) -> None:
    image = noise("P")
    data = encoded(image, kind, transparency=3)
    index = np.asarray(image)
    with Image.open(io.BytesIO(data)) as again:
        colour, alpha = multiplied(again)
    assert_is(decode(data), colour, alpha)
    assert np.array_equal(alpha == 0, index == 3)


def test_a_palette_with_alpha_for_each_entry_counts_as_alpha() -> None:
    image = noise("P")
    table = bytes(range(40, 100))
    colour = np.asarray(image.convert("RGB")).astype(int)
    alpha = np.frombuffer(table, np.uint8)[np.asarray(image)].astype(int)
    picture = decode(encoded(image, transparency=table))
    assert_is(picture, (2 * colour * alpha[..., None] + 255) // 510, alpha)


@pytest.mark.parametrize(("mode", "key"), [("L", 90), ("RGB", (1, 2, 3)), ("1", 255)])
def test_a_transparent_colour_counts_as_alpha(mode: str, key: object) -> None:
    image = noise(mode)
    if mode == "RGB":
        image.putpixel((4, 5), (1, 2, 3))
    pixels = np.asarray(image.convert("RGB" if mode == "RGB" else "L")).reshape(23, 31, -1)
    hidden = (pixels == np.array(key)).all(2)
    assert hidden.any()
    picture = decode(encoded(image, transparency=key if mode != "1" else 1))
    assert_is(picture, as_pillow_converts(encoded(image)) * ~hidden[..., None], 255 * ~hidden)


def test_a_pillow_image_with_a_palette_with_alpha_counts_as_alpha() -> None:
    image = noise("RGBA").quantize(40, method=Image.Quantize.FASTOCTREE)
    assert image.palette is not None
    assert image.palette.mode == "RGBA"
    assert_is(picture_of(image), *multiplied(image))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa"])
def test_alpha_that_is_opaque_throughout_is_none(mode: str) -> None:
    image = noise("RGBA")
    image.putalpha(255)
    picture = picture_of(image.convert(mode))
    assert_is(picture, np.asarray(image.convert(mode).convert("RGBA").convert("RGB")), None)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "MPO"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encoded(first, kind, save_all=True, append_images=[second])
    assert np.asarray(decode(data).rgb)[4, 4, 0] > 250


@pytest.mark.parametrize(("kind", "options"), ORIENTED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_is_turned_upright_as_pillow_turns_it(
    orientation: int, kind: str, options: dict[str, object]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise("RGB"), kind, exif=exif.tobytes(), **options)
    picture = decode(data)
    assert_is(picture, as_pillow_converts(data), None)
    assert (picture.orientation, picture.stored_size) == (orientation, (23, 31))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_alpha_is_turned_with_its_image(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise("RGBA"), exif=exif.tobytes())
    with Image.open(io.BytesIO(data)) as image:
        assert_is(decode(data), *multiplied(ImageOps.exif_transpose(image)))
        upright = multiplied(ImageOps.exif_transpose(image))[1]
    assert np.array_equal(decode_mask(data), upright)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("block", [b"garbage, garbage", b"II*\0\xff\xff\xff\xff"])
def test_a_garbled_exif_block_does_not_cost_the_image(block: bytes, kind: str) -> None:
    assert decode(encoded(noise("RGB"), kind, exif=block)).orientation == 1


def test_the_bytes_decide_whatever_a_file_is_called() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF", "GIF"):
        assert decode(encoded(noise("RGB"), kind)).mode.upper().startswith(kind)


READ = "read are PNG, JPEG, WebP, BMP, TIFF, AVIF, GIF"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "the file is empty"),
        (bytes(5000), "the file holds zero bytes only, as an interrupted copy does"),
        (b"<!DOCTYPE html><html>404", "its bytes are HTML or XML"),
        (b"\n <svg xmlns=''>", "its bytes are SVG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "its bytes are JPEG 2000"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "its bytes are HEIC"),
        (b"\0\0\0\x1cftypisom\0\0", "its bytes are a video or the like (brand 'isom')"),
        (b"%PDF-1.7", "its bytes are PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "its bytes are PostScript"),
        (b"\0\0\x01\0\x01\0", "its bytes are ICO"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "its bytes are a Git LFS pointer (git lfs pull fetches the file)",
        ),
        (
            b"\x89PNG\n\x1a\n\0\0\0\rIHDR",
            "its bytes are a PNG whose signature is damaged, as a transfer in text mode does",
        ),
        (b"P6 1 1 255 abc", "its bytes are of no known image (they begin 50 36 20 31 20 31 20 32)"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, what: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert (str(caught.value), caught.value.stage) == (f"{what}; {READ}", "decode")


@pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "EPS", "PCX", "JPEG2000", "DDS", "SGI"])
def test_decoders_of_other_formats_are_never_opened(kind: str) -> None:
    data = encoded(noise("RGB"), kind)
    Image.init()
    with pytest.raises(ImageError, match=r"^its bytes are "):
        decode(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF", "GIF"])
def test_a_file_cut_short_is_a_failure(kind: str) -> None:
    data = encoded(noise("RGB"), kind)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(ImageError):
            decode(data[: int(len(data) * share)])


def test_a_truncated_photo_is_said_to_be_truncated() -> None:
    with pytest.raises(ImageError) as caught:
        decode(encoded(noise("RGB"), "JPEG")[:-300])
    assert str(caught.value) == "JPEG is truncated: the file ends before the image does"


def test_a_chunk_that_claims_gigabytes_gets_no_more_memory_than_it_holds() -> None:
    values = RNG.integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    data = bytearray(png(values))
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = b"\xff\0\0\xe5"  # the last chunk, of 4.3 GB: Pillow reads what is there
    assert np.array_equal(decode(bytes(data)).rgb, decode(png(values)).rgb)


def test_too_many_pixels_are_refused_before_any_is_decoded() -> None:
    header = struct.pack(">IIBBBBB", 30_000, 20_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert str(caught.value) == (
        "30000×20000 is 600,000,000 pixels, more than --max_pixels 200,000,000"
    )


def test_too_many_pixels_of_a_deep_tiff_are_refused_before_any_is_decoded() -> None:
    data = tiff(np.zeros((1, 1, 3), np.float32), {256: [30_000], 257: [20_000]})
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels=1000)
    assert str(caught.value) == "30000×20000 is 600,000,000 pixels, more than --max_pixels 1,000"


def test_an_image_of_exactly_the_limit_is_read() -> None:
    assert decode(encoded(noise("RGB")), max_pixels=23 * 31).rgb.size == (31, 23)


def test_a_mask_file_is_its_alpha_where_it_has_some() -> None:
    image = noise("RGBA")
    assert np.array_equal(decode_mask(encoded(image)), np.asarray(image)[..., 3])
    assert np.array_equal(decode_mask(encoded(noise("LA"))), NOISE[..., 3])
    keyed = np.asarray(noise("L")) != 90
    assert np.array_equal(decode_mask(encoded(noise("L"), transparency=90)), 255 * keyed)


def test_a_mask_file_without_alpha_is_its_grey_value() -> None:
    for mode in ("1", "L", "RGB", "P"):
        image = noise(mode)
        assert np.array_equal(decode_mask(encoded(image)), np.asarray(image.convert("L")))
    assert np.array_equal(
        decode_mask(encoded(noise("CMYK"), "TIFF")),
        np.asarray(noise("CMYK").convert("RGB").convert("L")),
    )


def test_a_mask_file_keeps_its_depth() -> None:
    values = RNG.integers(0, 65536, (4, 5)).astype(np.uint16)
    assert np.array_equal(decode_mask(png(values)), values)
    assert decode_mask(png(values)).dtype == np.uint16
    tiny = np.array([[0.0, 1e-9, 0.5, 1.0]], np.float32)
    assert decode_mask(tiff(tiny)).tolist() == [[0, 1, 32768, 65535]]


@pytest.mark.parametrize(("kind", "options"), ORIENTED)
def test_a_pillow_image_that_was_opened_and_not_read_is_turned_once(
    kind: str, options: dict[str, object]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise("RGB"), kind, exif=exif.tobytes(), **options)
    with Image.open(io.BytesIO(data)) as image:
        assert_is(picture_of(image), as_pillow_converts(data), None)


def test_an_empty_pillow_image_is_refused() -> None:
    with pytest.raises(ImageError) as caught:
        picture_of(Image.new("RGB", (0, 4)))
    assert str(caught.value) == "an image of 0×4 pixels is empty"


@settings(max_examples=300)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"]), st.data())
def test_a_damaged_file_is_a_picture_or_a_failure_and_nothing_else(
    kind: str, draw: st.DataObject
) -> None:
    data = bytearray(encoded(noise("RGB").resize((9, 7)), kind))
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(ImageError):
        assert decode(bytes(data), max_pixels=1_000_000).rgb.mode == "RGB"
