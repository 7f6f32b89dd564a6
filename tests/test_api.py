"""featprep.encode and featprep.open: the command's own code, from Python."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import featprep
import numpy as np
import pytest
from fakes import FakeEncoder, fake_session, mean_colours
from featprep import api
from featprep.errors import ImageError, UsageError
from PIL import Image


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEncoder]:
    fake = FakeEncoder()
    monkeypatch.setattr(api, "open_session", fake_session(fake))
    api._session.cache_clear()
    yield fake
    api._session.cache_clear()


def _picture(colour: tuple[int, ...] = (9, 8, 7)) -> Image.Image:
    return Image.new("RGB", (32, 32), colour)


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_paths_bytes_pictures_and_arrays_give_the_same_map(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(array)
    path = tmp_path / "a.png"
    picture.save(path)
    images = [path, str(path), _encoded(picture), picture, array]
    maps = featprep.encode(images, model="clip:tiny", size=32)
    expected = mean_colours(array.transpose(2, 0, 1)[None])
    assert np.array_equal(maps.map, np.repeat(expected, 5, axis=0))
    assert maps.masks is not None
    assert maps.masks.shape == (5, 4, 4)


def test_one_image_alone_is_a_batch_of_one(encoder: FakeEncoder) -> None:
    assert featprep.encode(_picture(), model="clip:tiny", size=32).map.shape == (1, 3, 4, 4)
    assert encoder.calls == [(4, 3, 32, 32)]


def test_alpha_becomes_the_mask_and_black() -> None:
    picture = Image.new("RGBA", (32, 32), (200, 100, 50, 255))
    picture.paste((200, 100, 50, 0), (0, 0, 8, 32))
    maps = featprep.encode(picture, model="clip:tiny", size=32)
    assert maps.masks is not None
    assert maps.masks[0].tolist() == [[0, 1, 1, 1]] * 4
    assert maps.map[0, :, 0, 0].tolist() == [0, 0, 0]
    none = featprep.encode(picture, model="clip:tiny", size=32, mask="none")
    assert none.masks is None


def test_a_bad_image_is_named_by_its_position(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        featprep.encode([_picture(), tmp_path / "gone.png"], model="clip:tiny")
    assert str(error.value) == f"image 1 ({tmp_path}/gone.png): No such file or directory"


def test_settings_are_checked_as_on_the_command_line() -> None:
    with pytest.raises(UsageError) as error:
        featprep.encode(_picture(), model="clip:tiny", sizes=3)
    assert str(error.value).startswith("featprep.encode has no setting 'sizes'. Did you mean size?")
    with pytest.raises(UsageError) as error:
        featprep.encode(_picture(), model="clip:tiny", resize="crop it")
    assert str(error.value) == (
        "resize='crop it': allowed is one of crop, squash, pad, keep, native. Did you mean crop?"
    )
    with pytest.raises(UsageError) as error:
        featprep.encode([], model="clip:tiny")
    assert str(error.value) == "featprep.encode was given no image; give it at least one"


def test_images_of_different_sizes_do_not_stack_and_say_what_to_do() -> None:
    images = [Image.new("RGB", (16, 16)), Image.new("RGB", (24, 16))]
    with pytest.raises(UsageError) as error:
        featprep.encode(images, model="clip:tiny", resize="keep")
    assert str(error.value) == (
        "these images give inputs of different sizes (16×16, 16×24), which do not stack: encode "
        "them one by one, or use resize='crop', 'squash' or 'pad'"
    )


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'featprep' has no attribute 'encoder'"):
        _ = featprep.encoder


def test_what_there_is_to_call_can_be_listed() -> None:
    assert {"encode", "open", "pipeline", "__version__"} <= set(dir(featprep))
    assert {"Any", "import_module"}.isdisjoint(dir(featprep))


def test_maps_tell_their_shapes_and_no_values() -> None:
    maps = featprep.encode([_picture(), _picture()], model="clip:tiny", size=32)
    assert repr(maps) == "<FeatureMaps: map 0 (2, 3, 4, 4) float32, masks (2, 4, 4) uint8>"
