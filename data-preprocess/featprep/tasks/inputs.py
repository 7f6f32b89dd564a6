"""What a caller may mean by an image, and by several: → (its name for a message, its pixels).

One of these: a path, an http(s) address, the bytes of a file, a data URI, an open file, a PIL
image, a NumPy array (H, W) or (H, W, 1…4), a torch tensor (C, H, W), (H, W, C) or (H, W). Of
several: a list gives a list; a generator, an iterator or a dataset gives an iterator. Knows no
encoder.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from featprep.errors import ImageError, UsageError
from featprep.image_files import read_image_file
from featprep.images import MAX_PIXELS
from featprep.naming import printable
from featprep.records import AnyArray
from featprep.tasks import urls
from featprep.tasks.urls import UrlLimits

Shape = Literal["one", "list", "stream"]
Pixels = bytes | Image.Image | AnyArray  # of a file, still to be decoded; or decoded

_KINDS = (
    "a path, an http(s) address, a data URI, the bytes of a file, an open file, a PIL image, an "
    "array or a tensor"
)
_CHANNELS = range(1, 5)


def shape_of(images: Any) -> Shape:
    """One image, a list of them, or anything else that yields them. Raises UsageError."""
    if _is_image(images):
        return "one"
    if isinstance(images, list | tuple):
        return "list"
    is_iterable = hasattr(images, "__iter__") or hasattr(images, "__getitem__")
    if isinstance(images, Mapping) or not is_iterable:
        raise UsageError(
            f"{_type_name(images)} is neither an image nor images; allowed is {_KINDS}, or a list, "
            "a generator or a dataset of these"
        )
    return "stream"


def each(images: Any) -> Iterator[Any]:
    """The images of a list or stream. A dataset may have __len__ and __getitem__ alone."""
    if hasattr(images, "__iter__") or not hasattr(images, "__len__"):
        return iter(images)
    return (images[position] for position in range(len(images)))


def name_of(image: Any) -> str:
    """What an image is called in a message about it, never its content."""
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if isinstance(image, str):
        if _is_data(image):
            return f"a data URI of {len(image):,} characters"
        if _scheme(image):
            return urls.shown(image)
        return printable(image) if len(image) <= 200 else f"{printable(image[:80])}…"
    if isinstance(image, bytes | bytearray | memoryview):
        return f"{len(image):,} bytes"
    if isinstance(image, Image.Image):
        return f"a PIL image, {image.width}×{image.height} {image.mode}"
    if isinstance(image, np.ndarray) or _is_tensor(image):
        what = "an array" if isinstance(image, np.ndarray) else "a tensor"
        return f"{what} of shape {tuple(image.shape)}"
    if hasattr(image, "read"):
        inner = getattr(image, "name", None)
        return f"the open file {printable(inner)}" if isinstance(inner, str) else "an open file"
    return _type_name(image)


def read(image: Any, limits: UrlLimits) -> Pixels:
    """The bytes of its file, or what is decoded already. Raises ImageError, stage "read"."""
    if isinstance(image, str):
        return _read_text(image, limits)
    if isinstance(image, os.PathLike):
        return _read_file(os.fspath(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray) or _is_tensor(image):
        if image.ndim == 4:
            raise ImageError("four axes are a batch; pass it as a list, list(images)", "read")
        return image if isinstance(image, np.ndarray) else _array_of(image)
    if hasattr(image, "read"):
        return _read_open(image)
    raise ImageError(
        f"no image; allowed is {_KINDS}: of a row, pass the image alone, as in "
        "(row['image'] for row in rows)",
        "read",
    )


def _is_image(given: Any) -> bool:
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    return isinstance(given, kinds) or _is_tensor(given) or hasattr(given, "read")


def _is_tensor(given: Any) -> bool:
    """A torch tensor, without importing torch for whoever passes none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(given, torch.Tensor)


def _is_data(text: str) -> bool:
    return text[:5].lower() == "data:"


def _scheme(text: str) -> str:
    """Of an address; "" for a path, which may hold a colon but hardly "://"."""
    head, mark, _ = text.partition("://")
    return head.lower() if mark and head.isalpha() else ""


def _read_text(text: str, limits: UrlLimits) -> bytes:
    if _is_data(text):
        return _read_data(text)
    scheme = _scheme(text)
    if scheme in ("http", "https"):
        return urls.fetch(text, limits)
    if scheme:
        raise ImageError(
            f"{scheme}: is not read; allowed is http:, https: or data:, or a path", "read"
        )
    return _read_file(text)


def _read_data(text: str) -> bytes:
    """RFC 2397: data:[TYPE][;base64],DATA. What it is, its bytes decide, not TYPE."""
    head, comma, body = text.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageError("no base64 data URI; write data:image/png;base64,DATA", "read")
    plain = b"".join(unquote_to_bytes(body).split())
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise ImageError(f"its base64 is damaged ({error})", "read") from error


def _read_file(path: str | bytes) -> bytes:
    try:
        return read_image_file(path, MAX_PIXELS)[0]
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ImageError(
                "no path; for base64 write data:image/png;base64,DATA", "read"
            ) from error
        raise ImageError(error.strerror or str(error), "read") from error
    except ValueError as error:  # a NUL in it
        raise ImageError(str(error), "read") from error


def _read_open(file: Any) -> bytes:
    """From where it stands to its end."""
    try:
        data = file.read()
    except (OSError, ValueError) as error:  # ValueError: it is closed, or text that is no UTF-8
        raise ImageError(f"cannot be read ({' '.join(str(error).split())})", "read") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError("is open for text; open it with mode 'rb'", "read")
    return bytes(data)


def _array_of(tensor: Any) -> AnyArray:
    """(H, W, C) of a tensor in either order: channels first, as torch has it, where the first axis
    can be channels, even if the last can too."""
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    array: AnyArray = tensor.detach().cpu().numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] in _CHANNELS else array


def _type_name(given: Any) -> str:
    return f"{type(given).__module__}.{type(given).__qualname__}".removeprefix("builtins.")
