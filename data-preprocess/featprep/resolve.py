"""What a config means for one encoder: geometry, want, fingerprint; checks that need a spec.

All of it happens before any work, so that a bad setting costs no image.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featprep.config import EncodeConfig
from featprep.devices import Precision
from featprep.encoders import wants
from featprep.encoders.base import EncoderSpec, Want, check_pos_embed, predict_grid
from featprep.errors import UsageError
from featprep.geometry import Geometry
from featprep.settings import colour_of

FORMAT = 1  # of maps, masks and metadata; a change that alters bytes raises it
PLAIN_SIZE = 224

Grid = Callable[[int, int], tuple[int, int]]


def by_patch(spec: EncoderSpec) -> Grid:
    """What the grid will be, while there is no model to ask."""
    return lambda height, width: predict_grid(spec, height, width)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A run's settings, resolved against its encoder."""

    geometry: Geometry
    want: Want
    channels: int

    @property
    def map_shape(self) -> tuple[int, int, int] | None:
        """(C, grid_h, grid_w); None where the grid differs from image to image (keep)."""
        return None if self.geometry.grid is None else (self.channels, *self.geometry.grid)

    def bytes_per_image(self, meta: bool) -> int | None:
        """Bytes a result takes on disk, NumPy's headers included; metadata estimated at 1.5 kB."""
        if self.geometry.grid is None:
            return None
        cells = self.geometry.grid[0] * self.geometry.grid[1]
        feature = self.channels * cells * (2 if self.want.dtype == "float16" else 4) + 128
        mask = {"none": 0, "any": cells + 128, "coverage": 4 * cells + 128}[self.geometry.mask]
        return feature + mask + 1500 * meta


def resolve(
    config: EncodeConfig, spec: EncoderSpec, storage: str, grid: Grid, *, is_plain: bool
) -> Resolved:
    """Raises UsageError. `is_plain`: the model was named without its family (SPEC 1, --size)."""
    want = wants.check(spec, want_of(config, storage))
    geometry = _geometry(config, spec, grid, is_plain)
    check_pos_embed(spec, config.pos_embed, *(geometry.size or (0, 0)))
    return Resolved(geometry, want, wants.channels(spec, want, want.layers[0]))


def want_of(config: EncodeConfig, storage: str) -> Want:
    """What the settings ask of an encoder, whichever it is."""
    feature: Any = config.feature
    dtype: Any = storage
    return Want(feature=feature, dtype=dtype)


def _geometry(config: EncodeConfig, spec: EncoderSpec, grid: Grid, is_plain: bool) -> Geometry:
    recipe = spec.recipe if config.resize == "native" else None
    if config.resize == "native" and recipe is None:
        raise UsageError(
            f"--resize native: {spec.name} gives each image a size of its own, which is not done "
            "here; nearest to it is --resize keep --max_tokens 256"
        )
    if config.resize == "keep" and spec.fixed_size:
        raise UsageError(f"--resize keep: {spec.name} takes {_typed(spec.native_size)} only")
    size: tuple[int, int] | None = recipe.crop if recipe else _size(config, spec, is_plain)
    if config.resize == "keep":
        size = None
    resize: Any = config.resize
    mask: Any = config.mask
    return Geometry(
        resize=resize,
        size=size,
        patch=spec.patch,
        grid=grid(*size) if size else None,
        kernel=recipe.kernel if recipe else "bicubic",
        rounding=recipe.rounding if recipe else "torchvision",
        scale_to=recipe.resize if recipe else None,
        max_tokens=config.max_tokens,
        background=colour_of(config.background, spec.mean),
        mask=mask,
        alpha_threshold=config.alpha_threshold,
    )


def _size(config: EncodeConfig, spec: EncoderSpec, is_plain: bool) -> tuple[int, int]:
    asked = config.size
    if asked is None and is_plain and spec.family not in ("clip", "openclip"):  # names say it
        return PLAIN_SIZE, PLAIN_SIZE
    if asked is None or isinstance(asked, str):
        return spec.native_size
    if asked == spec.native_size:
        return asked
    if spec.fixed_size:
        raise UsageError(
            f"--size {_typed(asked)}: {spec.name} takes {_typed(spec.native_size)} only; "
            "drop --size"
        )
    if spec.unit is not None:
        if min(predict_grid(spec, *asked)) < 1:
            raise UsageError(
                f"--size {_typed(asked)}: {spec.name} makes no cell of it; allowed is "
                f"{spec.unit} or more"
            )
        return asked
    if any(side % spec.patch for side in asked):
        near = tuple(max(1, round(side / spec.patch)) * spec.patch for side in asked)
        raise UsageError(
            f"--size {_typed(asked)}: {spec.name} takes multiples of its patch, {spec.patch}, or "
            f"native; for example --size {_typed(near)}"
        )
    return asked


def _typed(size: tuple[int, ...]) -> str:
    return str(size[0]) if len(set(size)) == 1 else ",".join(map(str, size))


def fingerprint(
    config: EncodeConfig, spec: EncoderSpec, digest: str, resolved: Resolved, precision: Precision
) -> dict[str, Any]:
    """Everything that shapes a result's bytes, as flat plain values. Two runs with one fingerprint
    may share a folder."""
    geometry, want = dataclasses.asdict(resolved.geometry), resolved.want
    return {
        "format": FORMAT,
        "encoder": spec.name,
        "weights": digest,
        "layer": spec.depth - 1,
        "feature": config.feature,
        "norm": "final" if wants.is_normed(spec, want, want.layers[0]) else "none",
        "pos_embed": config.pos_embed,
        "compute": precision.compute,
        "storage": precision.storage,
        **{name: _plain(value) for name, value in geometry.items()},
        "mask_dir": os.path.realpath(config.mask_dir) if config.mask_dir else None,
        "names": config.names,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def metadata(
    fingerprint: dict[str, Any], precision: Precision, versions: Mapping[str, str]
) -> dict[str, Any]:
    """The run's part of NAME.json; the image's part is in Prepared.meta."""
    names = ("encoder", "weights", "layer", "feature", "norm", "pos_embed", "background", "resize")
    rule = {"any": "1 where a pixel with alpha above the threshold overlaps the cell",
            "coverage": "area-weighted mean of alpha over the cell", "none": "no mask"}  # fmt: skip
    source = "mask files" if fingerprint["mask_dir"] else "alpha"
    return {
        "format": fingerprint["format"],
        **{name: fingerprint[name] for name in names},
        "mask": {
            "kind": fingerprint["mask"],
            "rule": rule[fingerprint["mask"]],
            "of": source,
            "alpha_threshold": fingerprint["alpha_threshold"],
        },
        "precision": {
            "compute": precision.compute,
            "storage": precision.storage,
            "reason": precision.reason,
        },
        "versions": dict(versions),
    }
