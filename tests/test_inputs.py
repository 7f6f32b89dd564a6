"""What may be an image and what may be several, and what each is called in a message."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from featprep.errors import ImageError, UsageError
from featprep.tasks import inputs
from featprep.tasks.inputs import name_of, read, shape_of
from featprep.tasks.urls import UrlLimits
from PIL import Image

ALLOWED = (
    "a path, an http(s) address, a data URI, the bytes of a file, an open file, a PIL image, an "
    "array or a tensor"
)
DATA = bytes(range(256))
PICTURE = Image.new("RGB", (5, 3))


class Rows:
    """A dataset as torch's are: a length and items, nothing else."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, position: int) -> str:
        return f"{position}.png"  # no IndexError: only the length tells the end


class Untold:
    """A sequence of the old kind: items until IndexError."""

    def __getitem__(self, position: int) -> str:
        return ["a.png", "b.png"][position]


def refusal(image: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read(image, UrlLimits())
    assert caught.value.stage == "read"
    return str(caught.value)


@pytest.mark.parametrize(
    ("images", "shape"),
    [
        ("a.png", "one"),
        (Path("a.png"), "one"),
        (b"", "one"),
        (bytearray(), "one"),
        (PICTURE, "one"),
        (np.zeros((2, 3)), "one"),
        (torch.zeros(3, 2, 2), "one"),
        (io.BytesIO(), "one"),  # though it has __iter__ and __next__
        ([], "list"),
        (("a.png",), "list"),
        (iter(["a.png"]), "stream"),
        ((name for name in ("a.png",)), "stream"),
        ({"a.png"}, "stream"),
        (Rows(), "stream"),
        (Untold(), "stream"),
    ],
)
def test_one_image_a_list_and_a_stream_are_told_apart(images: Any, shape: str) -> None:
    assert shape_of(images) == shape


@pytest.mark.parametrize(("given", "name"), [({}, "dict"), (None, "NoneType"), (5, "int")])
def test_what_is_neither_is_refused_with_what_is_allowed(given: Any, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        shape_of(given)
    assert str(caught.value) == (
        f"{name} is neither an image nor images; allowed is {ALLOWED}, or a list, a generator or a "
        "dataset of these"
    )


def test_a_dataset_is_read_by_its_length_a_sequence_without_one_to_its_end() -> None:
    assert list(inputs.each(Rows())) == ["0.png", "1.png"]
    assert list(inputs.each(Untold())) == ["a.png", "b.png"]


def test_files_bytes_and_data_uris_give_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "ä.png"
    path.write_bytes(DATA)
    text = base64.b64encode(DATA).decode()
    broken = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    uris = [f"data:image/png;base64,{text}", f"DATA:;BASE64,{broken.replace('+', '%2B')}"]
    with path.open("rb") as file, tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(DATA)
        spooled.seek(0)
        given = [path, str(path), DATA, bytearray(DATA), memoryview(DATA), io.BytesIO(DATA)]
        for image in [*given, *uris, uris[0].rstrip("="), file, spooled]:
            assert read(image, UrlLimits()) == DATA, image


def test_an_open_file_is_read_from_where_it_stands() -> None:
    file = io.BytesIO(b"header" + DATA)
    file.seek(6)
    assert read(file, UrlLimits()) == DATA


def test_pictures_and_arrays_stay_what_they_are() -> None:
    array = np.zeros((2, 3, 4), np.uint16)
    assert read(PICTURE, UrlLimits()) is PICTURE
    assert read(array, UrlLimits()) is array


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 5, 7), (5, 7, 3)),
        ((5, 7, 3), (5, 7, 3)),
        ((1, 5, 7), (5, 7, 1)),
        ((4, 5, 4), (5, 4, 4)),  # both could be channels: torch's order counts
        ((5, 7), (5, 7)),
        ((5, 6, 7), (5, 6, 7)),  # neither: refused where arrays are
    ],
)
def test_a_tensors_channels_are_its_first_axis_where_they_can_be(
    shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    values = torch.arange(int(np.prod(shape))).reshape(shape).to(torch.uint8)
    array = read(values, UrlLimits())
    assert isinstance(array, np.ndarray)
    assert array.shape == expected
    moved = values.movedim(0, -1) if expected != shape else values
    assert np.array_equal(array, moved.numpy())


def test_a_tensor_of_any_float_and_on_a_graph_is_read() -> None:
    values = torch.tensor([[0.5, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    array = read(values, UrlLimits())
    assert isinstance(array, np.ndarray)
    assert (array.dtype, array.tolist()) == (np.float32, [[0.5, 1.0]])


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("/no/such.png", "No such file or directory"),
        ("/", "Is a directory"),
        ("a\0b", "embedded null byte"),
        ("A" * 5000, "no path; for base64 write data:image/png;base64,DATA"),
        ("file:///etc/passwd", "file: is not read; allowed is http:, https: or data:, or a path"),
        ("data:image/png,abc", "no base64 data URI; write data:image/png;base64,DATA"),
        ("data:image/png;base64", "no base64 data URI; write data:image/png;base64,DATA"),
        ("data:;base64,@@@@", "its base64 is damaged (Only base64 data is allowed)"),
        (np.zeros((2, 5, 7, 3)), "four axes are a batch; pass it as a list, list(images)"),
        (torch.zeros(2, 3, 5, 7), "four axes are a batch; pass it as a list, list(images)"),
        (io.StringIO("text"), "is open for text; open it with mode 'rb'"),
        (
            {"image": PICTURE},
            f"no image; allowed is {ALLOWED}: of a row, pass the image alone, as in (row['image'] "
            "for row in rows)",
        ),
    ],
)
def test_what_cannot_be_read_is_told_with_what_to_type(image: Any, reason: str) -> None:
    assert refusal(image) == reason


def test_a_closed_file_is_told() -> None:
    file = io.BytesIO(DATA)
    file.close()
    assert refusal(file) == "cannot be read (I/O operation on closed file.)"


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("a/b.png", "a/b.png"),
        (Path("a/b.png"), "a/b.png"),
        ("a\x1b[2J.png", "a\\x1b[2J.png"),
        ("A" * 300, "A" * 80 + "…"),
        ("http://me:secret@host/a.png?key=secret", "http://host/a.png"),
        ("data:image/png;base64,AAAA", "a data URI of 26 characters"),
        (b"secret", "6 bytes"),
        (PICTURE, "a PIL image, 5×3 RGB"),
        (np.zeros((4, 6)), "an array of shape (4, 6)"),
        (torch.zeros(3, 4, 6), "a tensor of shape (3, 4, 6)"),
        (io.BytesIO(), "an open file"),
        (object(), "object"),
    ],
)
def test_a_message_names_an_image_and_never_shows_its_content(image: Any, name: str) -> None:
    assert name_of(image) == name
