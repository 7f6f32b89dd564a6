"""Files whose numbers Pillow would cut to 8 bits or cannot hold: the numbers at their own depth.

What was found with Pillow 13 and OpenCV 5, and what therefore reads what; a test holds each line:

    grey of 16 and 32 bits, grey floats   Pillow, modes I;16, I and F: exact.
    16-bit colour or alpha, PNG           OpenCV. Pillow keeps the high byte, so that alpha 1…255
                                          becomes 0, and compares a transparent colour of 16 bits
                                          with pixels of 8.
    RGB(A) of 16 to 64 bits, TIFF         OpenCV, where the channels are interleaved.
      with a plane for each channel       Pillow, each plane as a grey image: OpenCV gives noise.
    grey + alpha of 16 bits, TIFF         Pillow, as a grey image of twice the width: it has no mode
                                          for it, and OpenCV returns one garbled channel.
    8-bit RGBA with associated alpha, TIFF    OpenCV, as stored: Pillow divides by alpha.
    16-bit CMYK TIFF, 10-bit AVIF         Pillow at 8 bits.

OpenCV never sees a file as it came. A PNG is reduced to the chunks that say what its pixels are:
OpenCV composes animations, which gives another image than the first frame. A TIFF gets a new
directory with the tags of its first image alone, without orientation, which decoders apply or do
not. Where Pillow can decode the file it has done so before: libpng may make up what a truncated
file lacks (libtiff does not). Knows no scaling, no premultiplying.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from featprep.codec_state import opencv_decode
from featprep.errors import ImageError
from featprep.naming import printable
from featprep.pixels import Samples, turned
from featprep.records import AnyArray

Tags = Mapping[int, Any]

PNG_CHANNELS = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, CHANNELS, STRIP_COUNTS, PLANAR = 273, 274, 277, 279, 284
PREDICTOR, TILE_WIDTH, TILE_OFFSETS, TILE_COUNTS, EXTRA, FORMAT = 317, 322, 324, 325, 338, 339
# FillOrder 266, RowsPerStrip 278, TileLength 323
TIFF_PIXELS = (
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    277,
    278,
    279,
    284,
    317,
    322,
    323,
    324,
    325,
    338,
    339,
)
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
JPEG = 7
ASSOCIATED = 1
UNSIGNED, SIGNED, FLOAT = 1, 2, 3

_MOST_TOLD = 60  # characters of a tag in a message


def samples_of(image: Image.Image, data: bytes, orientation: int) -> Samples | None:
    """The numbers of an image that Pillow has loaded; None where its 8-bit mode tells everything.

    `data`: the file, b"" if the image never was one. A TIFF comes back upright, as Pillow loads it.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _of_tiff(image, data, orientation)
    if image.format == "PNG" and data:
        depth, channels = _png_header(data)
        if depth == 16 and channels != 0:
            return _png_colour(data)
        if depth < 8 and channels == 0:
            _widen_colour_key(image, depth)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey(image)
    return None


def tiff_tags(data: bytes) -> Tags:
    """The directory of a TIFF's first image."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    return directory


def png_mode(data: bytes) -> str:
    """Such as "PNG RGBA 16-bit", from the header chunk."""
    depth, channels = _png_header(data)
    return f"PNG {PNG_CHANNELS[channels]} {depth}-bit"


def tiff_mode(tags: Tags, mode: str = "") -> str:
    """Such as "TIFF L float 32-bit"; `mode` is Pillow's, if it has one for this file."""
    grey = not mode or mode in ("I", "F") or mode.startswith("I;16")
    name = ("L", "LA", "RGB", "RGBA")[min(tags.get(CHANNELS, 1), 4) - 1] if grey else mode
    kind = {SIGNED: "signed ", FLOAT: "float "}.get(tags.get(FORMAT, (UNSIGNED,))[0], "")
    return f"TIFF {name} {kind}{tags.get(BITS, (1,))[0]}-bit"


def _told(values: Iterable[Any]) -> str:
    """A tag's numbers, which in a damaged file may be text, or hundreds."""
    text = printable("/".join(sorted(map(str, values))))
    return text if len(text) <= _MOST_TOLD else text[:_MOST_TOLD] + "…"


def tiff_samples(data: bytes, tags: Tags, orientation: int) -> Samples:
    """A grey, grey + alpha, RGB or RGBA TIFF of 16 to 64 bits, upright. Raises ImageError."""
    photometric, channels = tags.get(PHOTOMETRIC), tags.get(CHANNELS, 1)
    bits, kind = set(tags.get(BITS, (1,))), tags.get(FORMAT, (UNSIGNED,))[0]
    is_planar = channels > 1 and tags.get(PLANAR, 1) == 2
    is_grey = photometric == BLACK_IS_ZERO and channels in (1, 2)
    is_rgb = photometric == RGB and (channels in (3, 4) or (is_planar and channels > 4))
    if (
        not (is_grey or is_rgb)
        or bits not in ({16}, {32}, {64})
        or (bits == {64} and kind != FLOAT)
    ):
        raise ImageError(
            f"TIFF with {channels} channels of {_told(bits)} bits and "
            f"photometric interpretation {_told([photometric])}: not read; convert it to PNG"
        )
    _check_whole(data, tags)
    if is_planar:
        planes = range(min(channels, 4 if is_rgb else 2))
        values = np.dstack([_pillow_grey(_plane(data, tags, plane)) for plane in planes])
    elif channels == 2:
        values = _pillow_grey(_double_width(data, tags)).reshape(tags[LENGTH], tags[WIDTH], 2)
    else:
        values = opencv_decode(_retagged(data, tags, {}))
    shape = (tags[LENGTH], tags[WIDTH], min(channels, 4))[: 2 if channels == 1 else 3]
    if values.shape != shape or values.dtype.itemsize * 8 not in bits:
        raise ImageError(f"TIFF: {values.dtype} {values.shape} where {shape} was due: not trusted")
    return _channels(turned(values, orientation), tuple(tags.get(EXTRA, ())))


def _check_whole(data: bytes, tags: Tags) -> None:
    """All strips or tiles lie in the file: else what _retagged appends is read as their rest."""
    offsets = tags.get(TILE_OFFSETS) or tags[STRIP_OFFSETS]
    counts = tags.get(TILE_COUNTS) or tags[STRIP_COUNTS]
    ends = [offset + count for offset, count in zip(offsets, counts, strict=True)]
    due = tags[WIDTH] * tags[LENGTH] * tags.get(CHANNELS, 1) * tags[BITS][0] // 8
    if max(ends) > len(data) or (tags.get(COMPRESSION, 1) == 1 and sum(counts) < due):
        raise ImageError("TIFF is truncated: the file ends before the image does")


def _of_tiff(image: TiffImagePlugin.TiffImageFile, data: bytes, orientation: int) -> Samples | None:
    tags = image.tag_v2
    bits, kind = tags.get(BITS, (1,))[0], tags.get(FORMAT, (UNSIGNED,))[0]
    if image.mode in ("RGB", "RGBA"):
        return _tiff_colour(data, tags, bits, orientation) if data else None
    if image.mode == "L" and kind == SIGNED:
        return Samples(np.asarray(image).view(np.int8))
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return None
    grey = _grey(image)
    if image.mode == "I":  # Pillow's one mode for int16, int32 and uint32
        own = {(16, SIGNED): np.int16, (32, UNSIGNED): np.uint32}.get((bits, kind), np.int32)
        return Samples(grey.colour.astype(own))
    if image.mode != "F" and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        return Samples(~grey.colour)  # Pillow inverts up to 8 bits, not these
    return Samples(grey.colour, bits=bits if bits == 12 else None)


def _tiff_colour(data: bytes, tags: Tags, bits: int, orientation: int) -> Samples | None:
    extra = tuple(tags.get(EXTRA, ()))
    if bits == 16:
        return tiff_samples(data, tags, orientation)
    if extra == (ASSOCIATED,) and tags.get(COMPRESSION) != JPEG:
        values = opencv_decode(_retagged(data, tags, {}))
        return _channels(turned(values, orientation), extra)
    return None


def _grey(image: Image.Image) -> Samples:
    values = np.asarray(image)
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    key = image.info.get("transparency")
    if values.dtype != np.uint16 or not isinstance(key, int):
        return Samples(values)
    return Samples(values, np.where(values == key, 0, 65535).astype(np.uint16))


def _png_header(data: bytes) -> tuple[int, int]:
    """(bits per sample, colour type)."""
    start = data.index(b"IHDR") + 4
    return data[start + 8], data[start + 9]


def _widen_colour_key(image: Image.Image, depth: int) -> None:
    """Pillow stretches 2- and 4-bit grey to 8 bits, but not the value that is transparent."""
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int):
        largest = (1 << depth) - 1
        image.info["transparency"] = (key & largest) * 255 // largest


def _png_colour(data: bytes) -> Samples:
    values = opencv_decode(data[:8] + b"".join(_png_chunks(data)) + b"\0\0\0\0IEND\xaeB`\x82")
    if values.dtype != np.uint16 or values.ndim != 3:
        raise ImageError(f"PNG: OpenCV gives {values.dtype} {values.shape}, not 16-bit colour")
    return _channels(values, ())


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """With new checksums and lengths: Pillow, which has decoded the data, overlooks wrong ones;
    libpng does not, and OpenCV takes as much memory as a chunk claims to be long, up to 4 GB."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] in PNG_PIXELS:
            body = data[at + 4 : at + 8 + length]
            yield struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length


def _channels(values: AnyArray, extra: tuple[int, ...]) -> Samples:
    """Colour and alpha apart; a fourth channel that the file calls unspecified (0) is no alpha."""
    if values.ndim == 2:
        return Samples(values)
    colour = values[:, :, 0] if values.shape[2] == 2 else values[:, :, :3]
    if values.shape[2] == 3 or extra[:1] == (0,):
        return Samples(colour)
    return Samples(colour, values[:, :, -1], premultiplied=extra[:1] == (ASSOCIATED,))


def _plane(data: bytes, tags: Tags, plane: int) -> bytes:
    """One channel of a planar TIFF as a grey TIFF: its own share of the strips or tiles."""
    change: dict[int, tuple[int, ...]] = {}
    for tag in (STRIP_OFFSETS, STRIP_COUNTS, TILE_OFFSETS, TILE_COUNTS):
        if tag in tags:
            share = len(tags[tag]) // tags[CHANNELS]
            change[tag] = tags[tag][plane * share : (plane + 1) * share]
    return _retagged(data, tags, _AS_GREY | change)


def _double_width(data: bytes, tags: Tags) -> bytes:
    """Interleaved grey + alpha as one grey TIFF of twice the width: the same bytes, read so."""
    if tags.get(PREDICTOR, 1) != 1:
        raise ImageError("TIFF of grey + alpha with a predictor: not read; convert it to PNG")
    change = {tag: (2 * tags[tag],) for tag in (WIDTH, TILE_WIDTH) if tag in tags}
    return _retagged(data, tags, _AS_GREY | change)


_AS_GREY: dict[int, tuple[int, ...]] = {
    PHOTOMETRIC: (BLACK_IS_ZERO,),
    CHANNELS: (1,),
    PLANAR: (1,),
    EXTRA: (),
}


def _retagged(data: bytes, tags: Tags, change: Mapping[int, tuple[int, ...]]) -> bytes:
    """The file with a new directory behind it: the tags that say what its pixels are, changed."""
    found = {tag: tags[tag] for tag in TIFF_PIXELS if tag in tags}
    plain = {tag: value if isinstance(value, tuple) else (value,) for tag, value in found.items()}
    plain.update(change)
    if plain[CHANNELS] == (1,):
        plain.update({tag: plain[tag][:1] for tag in (BITS, FORMAT) if tag in plain})
    entries = sorted((tag, values) for tag, values in plain.items() if values)
    order = "<" if data[:2] == b"II" else ">"
    start = len(data) + len(data) % 2
    beyond = start + 2 + 12 * len(entries) + 4
    table, long_values = struct.pack(f"{order}H", len(entries)), b""
    for tag, values in entries:  # every value as a LONG, which readers take for a SHORT too
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            long_values += packed
            packed = struct.pack(f"{order}I", beyond + len(long_values) - len(packed))
        table += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
    header = data[:2] + struct.pack(f"{order}HI", 42, start)
    return b"".join((header, data[8:], bytes(start - len(data)), table, bytes(4), long_values))


def _pillow_grey(data: bytes) -> AnyArray:
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(data), "")
    image.load()
    samples = _of_tiff(image, b"", 1)
    return np.asarray(image) if samples is None else samples.colour
