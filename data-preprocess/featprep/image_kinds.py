"""What a file is, by its first bytes: a kind that is read, or what it looks like; no decoding."""

from __future__ import annotations

from typing import Literal, get_args

from featprep.errors import ImageError

Kind = Literal["PNG", "JPEG", "WebP", "BMP", "TIFF", "AVIF", "GIF"]

_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")

# what people's folders hold beside images, for a reason they understand
_OTHERS = (
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "Photoshop PSD"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"\0\0\x01\0", "ICO"),
    (b"SIMPLE  =", "FITS"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
    (b"version https://git-lfs", "a Git LFS pointer (git lfs pull fetches the file)"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML or SVG"),
    (b"<", "HTML or XML"),
)

_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def kind_of(data: bytes) -> Kind:
    """The format that the first bytes say, or ImageError with what they look like instead."""
    head = data[:64]
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"BM"):
        return "BMP"
    if head.startswith(_TIFF_HEADS):
        return "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp" and (b"avif" in head[8:] or b"avis" in head[8:]):
        return "AVIF"
    raise ImageError(f"{_what(data)}; read are {', '.join(get_args(Kind))}")


def _what(data: bytes) -> str:
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not data:
        return "the file is empty"
    if not data.strip(b"\0"):
        return "the file holds zero bytes only, as an interrupted copy does"
    if data[12:16] == b"IHDR" or data[1:4] == b"PNG":
        return "its bytes are a PNG whose signature is damaged, as a transfer in text mode does"
    if data[4:8] == b"ftyp":
        brand = data[8:12].decode("ascii", "replace")
        is_heif = data[8:12] in _HEIF
        return f"its bytes are {'HEIC' if is_heif else f'a video or the like (brand {brand!r})'}"
    for start, name in _OTHERS:
        if head.startswith(start) or data.startswith(start):
            return f"its bytes are {name}"
    return f"its bytes are of no known image (they begin {data[:8].hex(' ')})"
