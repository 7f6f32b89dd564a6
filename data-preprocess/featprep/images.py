"""bytes → Picture: upright, premultiplied RGB with alpha. Knows no encoder, size or background.

What a file is, its bytes decide (image_kinds): each kind has one Pillow decoder, opened by its
class, so that no other (PostScript and the like) is ever reached, whatever a program has registered
with Pillow. MPO is read as the JPEG it begins with; of several frames the first is taken.

Pillow reads everything, since it is the reference for pixels, refuses truncated files, and no other
decoder is faster once its pixels are a PIL image (docs/speed.md). OpenCV reads what Pillow would
cut to 8 bits: deep_samples says what, and why. On 8-bit JPEG, PNG, WebP and AVIF without alpha the
two agree bit for bit on all our test material; in BMP of 16 bits a pixel, CMYK and animations they
do not, so there OpenCV would be wrong, and elsewhere it is not needed. ICC profiles are ignored,
CMYK is as Pillow converts it.

Sizes are checked between the header and the first pixel. A decoder's class, unlike Image.open, does
not ask Pillow's own bomb limit (179 million, below ours); the three that ask it by themselves get a
second try with the limit at ours, under a lock (codec_state).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from featprep.codec_state import lenient_pillow, pillow_limit, strict_pillow
from featprep.deep_samples import (
    LENGTH,
    ORIENTATION,
    WIDTH,
    Tags,
    png_mode,
    samples_of,
    tiff_mode,
    tiff_samples,
    tiff_tags,
)
from featprep.errors import ImageError, TruncatedError
from featprep.image_kinds import kind_of
from featprep.naming import printable
from featprep.pixels import Alpha, Samples, from_array, mask_values, premultiplied, turned
from featprep.records import AnyArray, Picture

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".gif"})

MAX_PIXELS = 200_000_000

# (height, width) of an upright JPEG → how many pixels of either side its decoder makes one: 1, 2,
# 4 or 8
Reduction = Callable[[int, int], int]

_OPENERS: dict[str, Callable[[io.BytesIO, str], ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "GIF": GifImagePlugin.GifImageFile,
}

# Pillow's words that say nothing to who does not know Pillow
_PLAINLY = {
    "not identified by this driver": "its header is damaged",
    "cannot load this image": "it holds no image data",
    "decoder error -2": "its compressed data is damaged or its compression is not supported",
    "broken PNG file": "a chunk of it is damaged or cut short",
    "GIF file|GIF frame": "it holds no image, or is cut short before its first",
    "index out of range|could not create decoder": "it is damaged or cut short",
    "BMFF parsing failed": "its boxes are damaged or cut short",
    "text too large|too large for|Too much memory used in text": "its texts unfold to too much",
    "Missing dimensions|unknown data organization": "its tags are damaged or cut short",
}
_ENDED = re.compile("truncated|requires a buffer of|incomplete checksum", re.IGNORECASE)

CUT_SHORT = "cut short: what its file lacks of the image is left as the decoder leaves it"

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class _Decoded:
    """An image as a decoder left it. `turn`: the orientation that is still to be applied."""

    pixels: Image.Image | Samples
    stored_size: tuple[int, int]
    orientation: int
    turn: int
    mode: str
    reduced: int | None = None


def decode(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    allow_truncated: bool = False,
    reduction: Reduction | None = None,
) -> Picture:
    """The file's first image, upright and premultiplied, rounded to 8 bits once.

    Alpha keeps its own depth; None where it is missing or opaque throughout. Raises ImageError
    (stage "decode") for what cannot be read, and for more than `max_pixels` before decoding any.
    `allow_truncated`: of a file that ends too early, what is there, and a note. `reduction` is
    asked of JPEGs alone.
    """
    kind = kind_of(data)
    try:
        with _explained(kind, max_pixels, data):
            return _picture(_load(kind, data, max_pixels, reduction))
    except TruncatedError:
        if not allow_truncated:
            raise
    with _explained(kind, max_pixels, data, lenient_pillow):
        picture = _picture(_load(kind, data, max_pixels, reduction))
    return replace(picture, notes=(*picture.notes, CUT_SHORT))


def decode_mask(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Alpha:
    """A mask file, upright: its alpha if it has some, else its grey value. (H, W) uint8 or uint16.

    Both at the file's own depth; a palette counts as its colours' luminance. Raises ImageError.
    """
    kind = kind_of(data)
    with _explained(kind, max_pixels, data):
        decoded = _load(kind, data, max_pixels)
        return turned(mask_values(decoded.pixels), decoded.turn)


def picture_of(image: Image.Image | AnyArray) -> Picture:
    """A PIL image or an array (H, W), (H, W, 1 | 2 | 3 | 4) as if it came from a file.

    A PIL image is as deep as Pillow read it, and is turned by the EXIF orientation it carries; for
    all 16 bits of a colour file pass its bytes to `decode`. Raises ImageError.
    """
    with _explained("image", MAX_PIXELS, b""):
        if isinstance(image, Image.Image):
            return _picture(_from_pillow(image))
        if not isinstance(image, np.ndarray):
            raise ImageError(
                f"{type(image).__name__} is no image: pass a PIL image or a NumPy array"
            )
        shape = "×".join(map(str, image.shape))
        mode = f"array {shape} {image.dtype.name}"
        return _picture(_Decoded(from_array(image), image.shape[:2], 1, 1, mode))


def _picture(decoded: _Decoded) -> Picture:
    rgb, alpha, notes = premultiplied(decoded.pixels)
    if decoded.turn != 1:
        rgb = rgb.transpose(_TURNS[decoded.turn])
        alpha = None if alpha is None else turned(alpha, decoded.turn)
    size, turn = decoded.stored_size, decoded.orientation
    return Picture(rgb, alpha, size, turn, decoded.mode, notes, decoded.reduced)


def _load(kind: str, data: bytes, max_pixels: int, reduction: Reduction | None = None) -> _Decoded:
    try:
        return _open(kind, data, max_pixels, reduction)
    except Image.DecompressionBombError:
        with pillow_limit(max_pixels):
            return _open(kind, data, max_pixels, reduction)


def _open(kind: str, data: bytes, max_pixels: int, reduction: Reduction | None) -> _Decoded:
    try:
        image = _OPENERS[kind](io.BytesIO(data), "")
    except SyntaxError as error:
        if kind == "TIFF" and "unknown pixel mode" in str(error):
            return _unknown_tiff(data, max_pixels)
        raise
    _check_size(image.width, image.height, max_pixels)
    reduced = None
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # its load() turns it and forgets the tag
        stored, orientation, turn = _size_in(image.tag_v2), _orientation(image), 1
        image.load()
    else:
        stored = (image.height, image.width)
        if isinstance(image, JpegImagePlugin.JpegImageFile) and reduction is not None:
            reduced = _reduce(image, reduction)
        image.load()
        orientation = turn = _orientation(image)
    pixels = samples_of(image, data, orientation) or image
    return _Decoded(pixels, stored, orientation, turn, _mode(kind, image, data), reduced)


def _reduce(image: JpegImagePlugin.JpegImageFile, reduction: Reduction) -> int:
    """Have the decoder deliver less of each side, cut up to whole pixels."""
    width, height = image.size
    is_turned = _orientation(image) in (5, 6, 7, 8)
    by = reduction(width, height) if is_turned else reduction(height, width)
    if by > 1:
        image.draft(None, (width // by, height // by))
        if image.size != (-(-width // by), -(-height // by)):
            raise AssertionError(f"asked for 1/{by} of {width}×{height}, Pillow set {image.size}")
    return by


def _unknown_tiff(data: bytes, max_pixels: int) -> _Decoded:
    """Colour of more than 8 bits, floats among them, for which Pillow has no mode."""
    tags = tiff_tags(data)
    height, width = _size_in(tags)
    _check_size(width, height, max_pixels)
    orientation = tags.get(ORIENTATION, 1)
    orientation = orientation if orientation in _TURNS else 1
    samples = tiff_samples(data, tags, orientation)
    return _Decoded(samples, (height, width), orientation, 1, tiff_mode(tags))


def _from_pillow(image: Image.Image) -> _Decoded:
    if 0 in image.size:
        raise ImageError(f"an image of {image.width}×{image.height} pixels is empty")
    stored = (image.height, image.width)
    image.load()
    orientation = _orientation(image)
    pixels = samples_of(image, b"", 1) or image
    return _Decoded(pixels, stored, orientation, orientation, f"PIL {image.mode}")


def _size_in(tags: Tags) -> tuple[int, int]:
    return int(tags[LENGTH]), int(tags[WIDTH])


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{width}×{height} is {width * height:,} pixels, more than --max_pixels {max_pixels:,}"
        )


def _orientation(image: Image.Image) -> int:
    """EXIF's or XMP's, as ImageOps.exif_transpose finds it; 1 where it is missing or garbage."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block raises nearly anything, and the pixels are whole
        return 1
    return int(value) if value in _TURNS else 1


def _mode(kind: str, image: Image.Image, data: bytes) -> str:
    """Such as "PNG RGBA 16-bit": the file's channels and depth, not what Pillow makes of them."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return tiff_mode(image.tag_v2, image.mode)
    if kind == "PNG":
        return png_mode(data)
    return f"{kind} {image.mode} {1 if image.mode == '1' else 8}-bit"


@contextmanager
def _explained(
    kind: str,
    max_pixels: int,
    data: bytes,
    pillow: Callable[[], AbstractContextManager[None]] = strict_pillow,
) -> Iterator[None]:
    """Whatever a decoder raises on a hostile file, as an ImageError; Pillow is held strict."""
    try:
        with pillow():
            yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{kind}: not enough memory to decode it") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{kind} of more pixels than --max_pixels {max_pixels:,}") from error
    except Exception as error:  # OSError, SyntaxError, ValueError, KeyError, struct.error …
        raise _told(kind, data, error) from error


def _told(kind: str, data: bytes, error: Exception) -> ImageError:
    words = printable(" ".join(str(error).split())) or type(error).__name__
    if _ENDED.search(words) or isinstance(error, EOFError) or _is_short_webp(data):
        return TruncatedError(f"{kind} is truncated: the file ends before the image does")
    if kind == "TIFF" and words.isdigit():  # a KeyError of the tag dictionary
        words = f"its tag {words} is missing"
    elif not isinstance(error, (OSError, SyntaxError, ValueError)):
        words = f"it holds what no such file can hold ({type(error).__name__})"
    plain = next((text for sign, text in _PLAINLY.items() if re.search(sign, words)), words)
    return ImageError(f"{kind} cannot be decoded: {plain}")


def _is_short_webp(data: bytes) -> bool:
    """Its decoder does not say why it cannot; its header says how long it is."""
    return data[8:12] == b"WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)
