"""One decode job: read → decode → place → render → mask. Knows no encoder, no store, no run, and
imports no torch: decode_pool.py runs it in processes of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featprep import images
from featprep.errors import ImageError
from featprep.fast_decoding import Pictures, reduction_for
from featprep.geometry import Geometry, Placement, place, render
from featprep.image_files import read_image_file
from featprep.masks import mask_grid
from featprep.naming import printable
from featprep.records import AnyArray, Failure, ImageRef, Picture, Prepared, UInt8

Outcome = Prepared | Failure


@dataclass(frozen=True, slots=True)
class DecodeRules:
    """What every job of a run shares."""

    geometry: Geometry
    max_pixels: int = 200_000_000
    mask_dir: str | None = None
    allow_truncated: bool = False
    fast: bool = False  # --fast_decode


def prepare(ref: ImageRef, rules: DecodeRules) -> Outcome:
    """Everything between a path and the network's pixels; what is wrong with it is a Failure."""
    return prepare_job(ref, (rules,))[0]


def prepare_job(ref: ImageRef, rules: Sequence[DecodeRules]) -> tuple[Outcome, ...]:
    """The same for several networks, in order, whose rules differ in their geometry alone: decoded
    once, and resized once for those that see it alike."""
    try:
        began = time.perf_counter()
        data, ref = _read(ref, rules[0].max_pixels)
        read = time.perf_counter()
        picture, alpha = _decode(data, ref, rules[0])
    except ImageError as error:
        return (Failure(ref.key, ref.source, error.stage, str(error)),) * len(rules)
    except MemoryError:
        return (_no_memory(ref),) * len(rules)
    sha256, drawn = hashlib.sha256(data).hexdigest(), Drawn()
    pictures = Pictures(picture, lambda reduction: _decode_image(data, rules[0], reduction))
    outcomes = [_place(pictures, alpha, ref, each.geometry, sha256, drawn) for each in rules]
    decoded = time.perf_counter()
    for i, outcome in enumerate(outcomes):
        if isinstance(outcome, Prepared):  # the first one speaks for all of them
            outcomes[i] = dataclasses.replace(outcome, read_s=read - began, decode_s=decoded - read)
            break
    return tuple(outcomes)


def prepare_bytes(data: bytes, ref: ImageRef, rules: DecodeRules) -> Prepared:
    picture, alpha = _decode(data, ref, rules)
    return prepare_picture(picture, alpha, ref, rules.geometry, hashlib.sha256(data).hexdigest())


def _decode(data: bytes, ref: ImageRef, rules: DecodeRules) -> tuple[Picture, AnyArray | None]:
    picture = _decode_image(data, rules, reduction_for(rules.geometry) if rules.fast else None)
    return picture, picture.alpha if rules.mask_dir is None else _mask_file(ref, picture, rules)


def _decode_image(data: bytes, rules: DecodeRules, reduction: images.Reduction | None) -> Picture:
    return images.decode(
        data,
        max_pixels=rules.max_pixels,
        allow_truncated=rules.allow_truncated,
        reduction=reduction,
    )


def _place(
    pictures: Pictures,
    alpha: AnyArray | None,
    ref: ImageRef,
    geometry: Geometry,
    sha256: str,
    drawn: Drawn,
) -> Outcome:
    try:
        picture = pictures.under(geometry)
        return prepare_picture(picture, alpha, ref, geometry, sha256, drawn)
    except ImageError as error:
        return Failure(ref.key, ref.source, error.stage, str(error))
    except MemoryError:
        return _no_memory(ref)


def _no_memory(ref: ImageRef) -> Failure:
    return Failure(ref.key, ref.source, "decode", "not enough memory to decode it")


class Drawn(dict[tuple[Any, ...], UInt8]):
    """Pixels of one picture, by what made them."""

    def pixels(self, picture: Picture, placement: Placement, geometry: Geometry) -> UInt8:
        where = (placement.resized, placement.offset, placement.canvas, placement.windowed)
        key = (*where, geometry.kernel, geometry.background)
        if key not in self:
            self[key] = render(picture, placement, geometry)
        return self[key]


def prepare_picture(
    picture: Picture,
    alpha: AnyArray | None,
    ref: ImageRef,
    geometry: Geometry,
    sha256: str,
    drawn: Drawn | None = None,
) -> Prepared:
    placement = place(geometry, *picture.size)
    meta = {
        "source": ref.source,
        "source_bytes": ref.size,
        "sha256": sha256,
        "stored_size": list(picture.stored_size),
        "orientation": picture.orientation,
        "mode": picture.mode,
        "notes": [*picture.notes, *_placement_notes(geometry, placement)],
        **({"decode_scale": 1 / picture.reduced} if picture.reduced else {}),
        "geometry": placement.metadata(),
    }
    pixels = (Drawn() if drawn is None else drawn).pixels(picture, placement, geometry)
    return Prepared(ref, pixels, mask_grid(alpha, placement, geometry), sha256, meta)


def _placement_notes(geometry: Geometry, placement: Placement) -> list[str]:
    (height, width), patch = placement.source, geometry.multiple or geometry.patch
    whole = max(1, height // patch) * max(1, width // patch) * patch**2
    if geometry.resize != "keep" or placement.footprint[0] * placement.footprint[1] == whole:
        return []
    limit = f"--max_tokens {geometry.max_tokens}"
    return [f"made smaller, to {placement.canvas[1]}×{placement.canvas[0]}, by {limit}"]


def _read(ref: ImageRef, max_pixels: int) -> tuple[bytes, ImageRef]:
    """The bytes, and the size and time of what was truly read: the file may have changed."""
    try:
        data, found = read_image_file(ref.path, max_pixels)
    except OSError as error:
        raise ImageError(error.strerror or str(error), "read") from error
    return data, dataclasses.replace(ref, size=found.st_size, mtime_ns=found.st_mtime_ns)


def _mask_file(ref: ImageRef, picture: Picture, rules: DecodeRules) -> AnyArray:
    stem = os.path.splitext(ref.source)[0]
    folder = os.path.join(str(rules.mask_dir), os.path.dirname(stem))
    found = _mask_candidates(folder, os.path.basename(stem), os.path.basename(ref.source))
    if len(found) != 1:
        what = "no mask file" if not found else f"several mask files ({', '.join(found)})"
        raise ImageError(f"{what} for it in --mask_dir: wanted {printable(stem)}.png or another "
                         "image suffix", "mask")  # fmt: skip
    try:
        data, _ = read_image_file(os.path.join(folder, found[0]), rules.max_pixels)
        alpha: AnyArray = images.decode_mask(data, max_pixels=rules.max_pixels)
    except (OSError, ImageError) as error:
        raise ImageError(f"mask file {printable(found[0])}: {error}", "mask") from error
    height, width = picture.size
    if alpha.shape != (height, width):
        raise ImageError(
            f"mask file {printable(found[0])} is {alpha.shape[1]}×{alpha.shape[0]}, the image "
            f"{width}×{height}: they must agree",
            "mask",
        )
    return alpha


def _mask_candidates(folder: str, stem: str, name: str) -> list[str]:
    """`stem` with any image suffix; a file called as the image itself settles it."""
    wanted = [stem + suffix for suffix in sorted(images.SUFFIXES)]
    wanted += [stem + suffix.upper() for suffix in sorted(images.SUFFIXES)]
    found = [name_ for name_ in wanted if os.path.exists(os.path.join(folder, name_))]
    return [name] if name in found else found
