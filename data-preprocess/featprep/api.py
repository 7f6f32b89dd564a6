"""`featprep.encode`: the command's own code on images in memory, without a file written."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from featprep import encoders, images
from featprep.config import FIELDS, EncodeConfig, parse_value
from featprep.decoding import prepare_bytes, prepare_picture
from featprep.errors import ImageError, UsageError
from featprep.image_files import read_image_file
from featprep.python_words import python_words
from featprep.records import AnyArray, Failure, FeatureMaps, Features, ImageRef, Prepared
from featprep.session import Session, open_session
from featprep.settings import nearest

ImageLike = str | os.PathLike[str] | bytes | Image.Image | AnyArray

# What belongs to files and runs has no meaning here.
_NOT_HERE = {
    *("input", "output", "names", "mask_dir", "shard", "limit"),
    *("overwrite", "moved", "break_lock", "save_meta", "workers", "decode_timeout"),
    *("plan", "quiet", "verbose", "summary"),
}


def encode(images: ImageLike | Iterable[ImageLike], *, model: str, **settings: Any) -> FeatureMaps:
    """Encode images held in memory or on disk.

    images: one image or an iterable of them; each a path, the bytes of a file, a PIL image or an
    array (H, W), (H, W, 1|2|3|4) of uint8, uint16, bool or float. `settings` are those of the
    command line (`size=448`, `size=(224, 448)`, `resize="pad"`, `fp16=True` …).

    Returns FeatureMaps: `.map` (B, C, grid_h, grid_w) float32 or float16, `.masks` (B, grid_h,
    grid_w) uint8, or None with mask="none"; with `layer=(11, 5)` `.maps` by layer, with `prefix`,
    `pooled` and `masked_pool` those vectors. Row i is image i. Raises UsageError for a bad setting,
    WeightsError, and ImageError for the first image that cannot be read or encoded, naming its
    position.

    The encoder of the last call is kept, so a second call does not load it again.
    """
    with python_words():
        session = _session(_config(model, settings))
    prepared = [_prepare(i, image, session) for i, image in enumerate(_each(images))]
    if not prepared:
        raise UsageError("featprep.encode was given no image; give it at least one")
    features = _features(prepared, session)
    masks = [item.mask for item in prepared if item.mask is not None]
    return _stacked(features, np.stack(masks) if masks else None, session)


def _stacked(rows: list[Features], masks: AnyArray | None, session: Session) -> FeatureMaps:
    def stack(name: str) -> AnyArray | None:
        return np.stack([row.vectors[name] for row in rows]) if name in rows[0].vectors else None

    layers = session.resolved.want.layers
    names = {layer: f"masked@{layer}" if i else "masked" for i, layer in enumerate(layers)}
    masked = {layer: stack(name) for layer, name in names.items()}
    return FeatureMaps(
        {layer: np.stack([row.maps[layer] for row in rows]) for layer in layers},
        stack("prefix"),
        stack("pooled"),
        masks,
        {layer: mean for layer, mean in masked.items() if mean is not None} or None,
    )


def _config(model: str, settings: dict[str, Any]) -> EncodeConfig:
    allowed = [name for name in FIELDS if name not in _NOT_HERE]
    for name in settings:
        if name not in allowed:
            raise UsageError(
                f"featprep.encode has no setting {name!r}.{nearest(name, allowed)} "
                f"There are: {', '.join(allowed)}"
            )
    if not isinstance(model, str) or not isinstance(parse_value("model", model), str):
        raise UsageError(
            f"featprep.encode takes one encoder, and not model={model!r}: give "
            "model='FAMILY:NAME', and call it for each in turn"
        )
    values = {name: parse_value(name, raw) for name, raw in settings.items() if raw is not None}
    return EncodeConfig(**{**values, "input": "(memory)", "output": "(memory)", "model": model})


@functools.lru_cache(maxsize=1)
def _session(config: EncodeConfig) -> Session:
    return open_session(config, encoders.resolve(str(config.model), "any"))


def _each(given: ImageLike | Iterable[ImageLike]) -> Iterator[ImageLike]:
    if isinstance(given, str | os.PathLike | bytes | Image.Image | np.ndarray):
        yield given
    else:
        yield from given


def _prepare(position: int, image: ImageLike, session: Session) -> Prepared:
    name = f"image {position}"
    try:
        if isinstance(image, Image.Image | np.ndarray):
            return _prepare_array(name, image, session)
        path = "" if isinstance(image, bytes) else os.fspath(image)
        data = image if isinstance(image, bytes) else _read(path, session.config.max_pixels)
        ref = ImageRef(path or name, path or name, path, len(data), 0)
        return prepare_bytes(data, ref, session.rules)
    except ImageError as error:
        where = name if not isinstance(image, str | os.PathLike) else f"{name} ({image})"
        raise ImageError(f"{where}: {error}", error.stage) from error


def _read(path: str, max_pixels: int) -> bytes:
    try:
        return read_image_file(path, max_pixels)[0]
    except OSError as error:
        raise ImageError(error.strerror or str(error), "read") from error


def _prepare_array(name: str, image: Image.Image | AnyArray, session: Session) -> Prepared:
    picture = images.picture_of(image)
    sha256 = hashlib.sha256(picture.rgb.tobytes()).hexdigest()  # there is no file: of its pixels
    ref = ImageRef(name, name, "", 0, 0)
    return prepare_picture(picture, picture.alpha, ref, session.resolved.geometry, sha256)


def _features(prepared: list[Prepared], session: Session) -> list[Features]:
    shapes = {item.pixels.shape[1:] for item in prepared}
    if len(shapes) > 1:
        sizes = ", ".join(f"{h}×{w}" for h, w in sorted(shapes))
        raise UsageError(
            f"these images give inputs of different sizes ({sizes}), which do not stack: encode "
            "them one by one, or use resize='crop', 'squash' or 'pad'"
        )
    encoder, features = session.batch_encoder(), []
    for start in range(0, len(prepared), session.batch_size):
        for row in encoder.encode(prepared[start : start + session.batch_size]):
            if isinstance(row, Failure):
                raise ImageError(f"{row.source}: {row.reason}", row.stage)
            features.append(row[1])
    return features
