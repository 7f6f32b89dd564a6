"""Numbers of any type become premultiplied 8-bit RGB and alpha, rounded once."""

from __future__ import annotations

import numpy as np
import pytest
from featprep import pixels
from featprep.errors import ImageError
from featprep.images import picture_of
from featprep.pixels import Samples, mask_values, turned
from featprep.records import AnyArray
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

RNG = np.random.default_rng(3)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))


def exact(colour: AnyArray, alpha: AnyArray | None, white: int) -> AnyArray:
    """colour·alpha as 8 bits, by integers: floor(x + 1/2) of the exact quotient."""
    wide, below = colour.astype(object), white
    if alpha is not None:
        wide, below = wide * alpha.astype(object)[..., None], white * white
    return ((2 * 255 * wide + below) // (2 * below)).astype(np.uint8)


def channels(array: AnyArray) -> tuple[AnyArray, AnyArray | None]:
    """(H, W, C) as (H, W, 3) colour and alpha."""
    count = array.shape[2]
    colour = array[..., :3] if count > 2 else array[..., :1].repeat(3, 2)
    return colour, array[..., -1] if count in (2, 4) else None


@pytest.mark.parametrize(("dtype", "white"), [("uint8", 255), ("uint16", 65535)])
def test_arrays_are_premultiplied_and_rounded_once(dtype: str, white: int) -> None:
    @given(SHAPES.flatmap(lambda shape: arrays(dtype, shape)))
    def holds(array: AnyArray) -> None:
        colour, alpha = channels(array)
        picture = picture_of(array)
        assert np.array_equal(np.asarray(picture.rgb), exact(colour, alpha, white))
        if alpha is None or alpha.min() == white:
            assert picture.alpha is None
        else:
            assert picture.alpha is not None
            assert picture.alpha.dtype == dtype
            assert np.array_equal(picture.alpha, alpha)

    holds()


def test_every_8_bit_colour_under_every_alpha_is_rounded_to_the_nearest() -> None:
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256))
    array = np.dstack([colour, colour, colour, alpha]).astype(np.uint8)
    expected = (2 * colour * alpha + 255) // 510
    assert np.array_equal(np.asarray(picture_of(array).rgb)[..., 1], expected)


def test_an_array_of_many_strips_is_read_row_for_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "STRIP", 40)
    array = RNG.integers(0, 65536, (20, 15, 4)).astype(np.uint16)
    colour, alpha = channels(array)
    assert np.array_equal(np.asarray(picture_of(array).rgb), exact(colour, alpha, 65535))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 2), (2, 3, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int32", "float16", "float64"])
def test_every_shape_and_type_of_array_becomes_a_picture(
    shape: tuple[int, ...], dtype: str
) -> None:
    picture = picture_of(np.ones(shape, dtype))
    assert (picture.rgb.mode, picture.rgb.size) == ("RGB", (3, 2))
    assert (picture.stored_size, picture.orientation) == ((2, 3), 1)


def test_a_picture_says_which_array_it_was() -> None:
    assert picture_of(np.zeros((2, 3, 4), np.uint16)).mode == "array 2×3×4 uint16"


def test_true_is_white_and_opaque() -> None:
    array = np.array([[[True, True], [True, False]]])
    picture = picture_of(array)
    assert np.asarray(picture.rgb)[0, :, 0].tolist() == [255, 0]
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[255, 0]]


def test_float_alpha_above_zero_stays_above_zero() -> None:
    array = np.array([[[0.5, 0.0], [0.5, 1e-9], [0.5, 1.0]]])
    alpha = picture_of(array).alpha
    assert alpha is not None
    assert alpha.dtype == np.uint16
    assert alpha.tolist() == [[0, 1, 65535]]


def test_float_colour_and_alpha_have_their_own_ranges() -> None:
    array = np.array([[[200.0, 0.5], [100.0, 1.0]]])
    picture = picture_of(array)
    assert np.asarray(picture.rgb)[0, :, 0].tolist() == [100, 100]
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[32768, 65535]]


def test_float_alpha_without_a_meaning_is_refused() -> None:
    array = np.array([[[0.5, -1.0], [0.5, 1.0]]])
    with pytest.raises(ImageError) as caught:
        picture_of(array)
    assert str(caught.value) == (
        "its alpha or mask runs from -1 to 1: allowed are floats in [0, 1] or [0, 255], "
        "and integers"
    )


def test_a_constant_float_image_off_the_scale_is_black() -> None:
    picture = picture_of(np.full((1, 2), 300.0))
    assert np.asarray(picture.rgb).max() == 0
    assert picture.notes == ("float values 300 to 300 stretched to black and white",)


def test_big_endian_arrays_are_read_by_value() -> None:
    array = np.array([[[1000, 2000], [65535, 65535]]], ">u2")
    assert np.array_equal(
        np.asarray(picture_of(array).rgb), np.asarray(picture_of(array.astype("<u2")).rgb)
    )


@pytest.mark.parametrize("shape", [(3,), (2, 2, 5), (0, 4, 3), (1, 3, 4, 4)])
def test_an_array_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError) as caught:
        picture_of(np.zeros(shape, np.uint8))
    assert str(caught.value) == (
        f"an array of shape {shape} is no image: allowed (H, W) and (H, W, 1…4), H and W above 0; "
        "for (3, H, W) pass array.transpose(1, 2, 0)"
    )


@pytest.mark.parametrize("dtype", ["int64", "uint64", "complex64", "int8"])
def test_an_array_without_a_known_white_is_refused(dtype: str) -> None:
    with pytest.raises(ImageError) as caught:
        picture_of(np.zeros((2, 2), dtype))
    assert str(caught.value) == (
        f"an array of {dtype} has no known white: allowed bool, uint8, uint16, uint32, int16, "
        "int32, float16, float32, float64; if its values are 0…255, pass array.astype('uint8')"
    )


def test_an_object_that_is_no_image_is_refused() -> None:
    with pytest.raises(ImageError) as caught:
        picture_of("photo.png")  # type: ignore[arg-type]
    assert str(caught.value) == "str is no image: pass a PIL image or a NumPy array"


def test_a_mask_of_deep_colour_is_its_luminance_at_16_bits() -> None:
    colour = np.array([[[65535, 0, 0], [0, 65535, 0], [0, 0, 65535], [700, 700, 700]]], np.uint16)
    assert mask_values(Samples(colour)).tolist() == [[19595, 38469, 7471, 700]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_arrays_turn_as_pillow_turns_images(orientation: int) -> None:
    array = RNG.integers(0, 256, (4, 7)).astype(np.uint8)
    image = Image.fromarray(array)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    expected = np.asarray(picture_of(image).rgb)[..., 0]
    assert np.array_equal(turned(array, orientation), expected)
