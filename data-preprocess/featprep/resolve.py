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
from featprep.encoders.base import Encoder, EncoderSpec, Want, check_pos_embed, predict_grid
from featprep.encoders.regridding import RegriddedEncoder
from featprep.encoders.sizes import checked, typed
from featprep.encoders.tiling import TiledEncoder, Tiling, plan, refuse_vectors, untied
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
    tiling: Tiling | None = None

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
    tiling = _tiling(config, spec, grid, want)
    if tiling:
        spec, grid = untied(spec), by_patch(spec)
    geometry = _geometry(config, spec, grid, is_plain)
    seen = tiling.tile if tiling else geometry.size
    check_pos_embed(spec, config.pos_embed, *(seen or (0, 0)))
    if tiling:
        geometry = _tiled(geometry, tiling)
    return Resolved(geometry, want, wants.channels(spec, want, want.layers[0]), tiling)


def wrapped(encoder: Encoder, config: EncodeConfig, resolved: Resolved) -> Encoder:
    """The encoder as the settings want it: behind windows, its maps on one grid."""
    if resolved.tiling:
        encoder = TiledEncoder(encoder, resolved.tiling)
    return RegriddedEncoder(encoder, config.grid) if config.grid else encoder


def _tiling(config: EncodeConfig, spec: EncoderSpec, grid: Grid, want: Want) -> Tiling | None:
    if config.tile is None:
        return None
    refuse_vectors(want)
    return plan(spec, grid, config.tile, config.overlap)


def _tiled(geometry: Geometry, tiling: Tiling) -> Geometry:
    size, tile, patch = geometry.size, tiling.tile, geometry.patch
    if size and (size[0] // patch < tile[0] // patch or size[1] // patch < tile[1] // patch):
        raise UsageError(
            f"--tile {typed(tile)}: larger than the input, {typed(size)}; take a smaller --tile, "
            f"or a larger input, for example --size {typed(tuple(2 * side for side in tile))}"
        )
    return dataclasses.replace(geometry, tile=tile)


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
        raise UsageError(
            f"--resize keep: {spec.name} takes {typed(spec.native_size)} only; add --tile native, "
            "or drop it"
        )
    size: tuple[int, int] | None = recipe.crop if recipe else _size(config, spec, is_plain)
    if config.resize == "keep":
        size = None
    cells = grid(*size) if size else None
    resize: Any = config.resize
    mask: Any = config.mask
    return Geometry(
        resize=resize,
        size=size,
        patch=spec.patch,
        grid=config.grid or cells,
        kernel=recipe.kernel if recipe else "bicubic",
        rounding=recipe.rounding if recipe else "torchvision",
        scale_to=recipe.resize if recipe else None,
        max_tokens=config.max_tokens,
        background=colour_of(config.background, spec.mean),
        mask=mask,
        alpha_threshold=config.alpha_threshold,
        cells=cells if config.grid else None,
    )


def _size(config: EncodeConfig, spec: EncoderSpec, is_plain: bool) -> tuple[int, int]:
    asked = config.size
    if asked is None and is_plain and spec.family not in ("clip", "openclip"):  # names say it
        return PLAIN_SIZE, PLAIN_SIZE
    return checked(spec, "size", asked or "native")


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
        "overlap": _plain(resolved.tiling.overlap) if resolved.tiling else None,
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
        **_shaped(fingerprint),
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


def _shaped(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """What --tile and --grid made of the network's own maps."""
    tiles = {name: fingerprint[name] for name in ("tile", "overlap") if fingerprint["tile"]}
    has_grid = fingerprint["cells"] or (fingerprint["resize"] == "keep" and fingerprint["grid"])
    return {**tiles, **({"resampled": "bilinear, align_corners=False"} if has_grid else {})}
