"""What a config means for one encoder: geometry, want, fingerprint; checks that need a spec.

All of it happens before any work, so that a bad setting costs no image.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

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


class Grid(Protocol):
    """Encoder.grid, or what stands for it."""

    def __call__(self, height: int, width: int, layer: int = -1) -> tuple[int, int]: ...


def by_patch(spec: EncoderSpec) -> Grid:
    """What the grid will be by the stride of its cells, while there is no model to ask."""

    def grid(height: int, width: int, layer: int = -1) -> tuple[int, int]:
        return predict_grid(spec, height, width, layer)

    return grid


@dataclass(frozen=True, slots=True)
class Resolved:
    """A run's settings, resolved against its encoder."""

    geometry: Geometry
    want: Want  # its layers count from 0
    channels: int  # of the first layer's map
    tiling: Tiling | None = None
    more_channels: Mapping[int, int] = field(default_factory=dict)  # layer → of each further map
    masked_pool: bool = False
    vector_sizes: Mapping[str, int] = field(default_factory=dict)  # of NAME_vec.npz: name → values

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers, the first listed first; the others by number, since each has its file."""
        return self.want.layers[0], *self.more_channels

    @property
    def map_shape(self) -> tuple[int, int, int] | None:
        """(C, grid_h, grid_w); None where the grid differs from image to image (keep)."""
        return None if self.geometry.grid is None else (self.channels, *self.geometry.grid)

    def bytes_per_image(self, meta: bool) -> int | None:
        """Bytes a result takes on disk, NumPy's headers included; metadata is estimated at 1.5 kB,
        and NAME_vec.npz closely."""
        if self.geometry.grid is None:
            return None
        cells = self.geometry.grid[0] * self.geometry.grid[1]
        value = 2 if self.want.dtype == "float16" else 4
        channels = (self.channels, *self.more_channels.values())
        features = sum(count * cells * value + 128 for count in channels)
        mask = {"none": 0, "any": cells + 128, "coverage": 4 * cells + 128}[self.geometry.mask]
        return features + mask + self._vector_bytes(value) + 1500 * meta

    def _vector_bytes(self, value: int) -> int:
        """A zip says the name of each array twice, in 76 bytes of headers, and ends with 22."""
        if not self.vector_sizes:
            return 0
        each = (
            128 + 76 + 2 * len(f"{name}.npy") + count * (1 if name == "empty" else value)
            for name, count in self.vector_sizes.items()
        )
        return sum(each) + 22


def resolve(
    config: EncodeConfig, spec: EncoderSpec, storage: str, grid: Grid, *, is_plain: bool
) -> Resolved:
    """Raises UsageError. `is_plain`: the model was named without its family (SPEC 1, --size)."""
    want = wants.check(spec, want_of(config, storage))
    tiling = _tiling(config, spec, grid, want)
    if tiling:
        spec, grid = untied(spec), by_patch(spec)
    geometry = _geometry(config, spec, want, grid, is_plain)
    seen = tiling.tile if tiling else geometry.size
    check_pos_embed(spec, config.pos_embed, *(seen or (0, 0)))
    if tiling:
        geometry = _tiled(geometry, tiling)
    _check_one_grid(config, spec, want, grid, geometry)
    channels = {layer: wants.channels(spec, want, layer) for layer in want.layers}
    first, *more = want.layers
    return Resolved(
        geometry,
        want,
        channels[first],
        tiling,
        {layer: channels[layer] for layer in sorted(more)},
        config.masked_pool,
        _vector_sizes(spec, want, channels, config.masked_pool),
    )


def _check_one_grid(
    config: EncodeConfig, spec: EncoderSpec, want: Want, grid: Grid, geometry: Geometry
) -> None:
    """One mask and one affine stand beside the maps of an image, whatever their number."""
    if len(want.layers) == 1:
        return
    height, width = geometry.size or (spec.patch, spec.patch)
    grids = {layer: grid(height, width, layer) for layer in want.layers}
    layers = f"--layer {','.join(map(str, want.layers))}"
    shown = ", ".join(f"{rows}×{columns} of layer {n}" for n, (rows, columns) in grids.items())
    sides = {(rows * (n := wants.stride(spec, layer)), columns * n)
             for layer, (rows, columns) in grids.items()}  # fmt: skip
    if not config.grid and len(set(grids.values())) > 1:
        raise UsageError(
            f"{layers}: at {height}×{width} the layers of {spec.name} have grids that differ "
            f"({shown}): take one a run, or --grid H,W for all"
        )
    if len(sides) > 1:
        near = typed(tuple(max(1, side // spec.patch) * spec.patch for side in (height, width)))
        raise UsageError(
            f"{layers}: of {height}×{width} pixels the layers of {spec.name} cover parts that "
            f"differ ({shown}): take one a run, or multiples of {spec.patch}, such as --size {near}"
        )


def _vector_sizes(
    spec: EncoderSpec, want: Want, channels: Mapping[int, int], masked_pool: bool
) -> dict[str, int]:
    """Values of each array of NAME_vec.npz; of the pooled vector, as most models have it."""
    first, *more = want.layers
    sizes = {"prefix": (spec.cls + spec.registers) * channels[first]} if want.prefix else {}
    if want.pooled:
        sizes["pooled"] = spec.projected_dim or spec.hidden_dim
    if masked_pool:
        sizes["masked"] = channels[first]
        sizes |= {f"masked@{layer}": channels[layer] for layer in sorted(more)}
        sizes["empty"] = 1
    return sizes


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
    facet: Any = config.facet
    norm: Any = config.norm
    dtype: Any = storage
    return Want(config.layer, feature, facet, norm, config.prefix, config.pooled, dtype)


def _geometry(
    config: EncodeConfig, spec: EncoderSpec, want: Want, grid: Grid, is_plain: bool
) -> Geometry:
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
    first = want.layers[0]
    stride, cells = wants.stride(spec, first), grid(*size, first) if size else None
    resize: Any = config.resize
    mask: Any = config.mask
    return Geometry(
        resize=resize,
        size=size,
        patch=stride,
        grid=config.grid or cells,
        kernel=recipe.kernel if recipe else "bicubic",
        rounding=recipe.rounding if recipe else "torchvision",
        scale_to=recipe.resize if recipe else None,
        max_tokens=config.max_tokens,
        background=colour_of(config.background, spec.mean),
        mask=mask,
        alpha_threshold=config.alpha_threshold,
        cells=cells if config.grid else None,
        multiple=spec.patch if config.resize == "keep" and stride != spec.patch else None,
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
    may share a folder. What was not asked of `_taken`, and --fast_decode, are left out, so
    that outputs resume that were made before they could be."""
    geometry = dataclasses.asdict(resolved.geometry)
    return {
        "format": FORMAT,
        "encoder": spec.name,
        "weights": digest,
        **_taken(resolved),
        "feature": config.feature,
        "norm": _norm(spec, resolved),
        "pos_embed": config.pos_embed,
        "compute": precision.compute,
        "storage": precision.storage,
        **{name: _plain(value) for name, value in geometry.items()},
        "overlap": _plain(resolved.tiling.overlap) if resolved.tiling else None,
        "mask_dir": os.path.realpath(config.mask_dir) if config.mask_dir else None,
        "names": config.names,
        **({"fast_decode": True} if config.fast_decode else {}),
    }


def fixed(
    config: EncodeConfig, threads: int | None, batch_size: int | None, compiled: bool = False
) -> dict[str, Any]:
    """What --deterministic adds to the fingerprint: the last bits depend on these too."""
    if not config.deterministic:
        return {}
    run = {"deterministic": True, "threads": threads, "batch_size": batch_size}
    return run | ({"compile": True} if compiled else {})


def _taken(resolved: Resolved) -> dict[str, Any]:
    """`layer`: a number, or where there are several a list, the first one's map in NAME.npy."""
    want, layers = resolved.want, resolved.layers
    asked = {
        "facet": want.facet if want.facet != "token" else None,
        "prefix": want.prefix,
        "pooled": want.pooled,
        "masked_pool": resolved.masked_pool,
    }
    layer = list(layers) if len(layers) > 1 else layers[0]
    return {"layer": layer, **{name: value for name, value in asked.items() if value}}


def _norm(spec: EncoderSpec, resolved: Resolved) -> str | list[str]:
    """What --norm came to: one word, or where layers differ one for each, in their order."""
    normed = [wants.is_normed(spec, resolved.want, layer) for layer in resolved.layers]
    words = ["final" if is_normed else "none" for is_normed in normed]
    return words[0] if len(set(words)) == 1 else words


def layers_of(fingerprint: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers a run took, the first one's map in NAME.npy; none if it does not say."""
    layers = fingerprint.get("layer")
    listed = layers if isinstance(layers, list) else [layers]
    return tuple(layer for layer in listed if isinstance(layer, int))


def has_vectors(fingerprint: Mapping[str, Any]) -> bool:
    """Whether a run wrote NAME_vec.npz."""
    return any(fingerprint.get(name) for name in ("prefix", "pooled", "masked_pool"))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def metadata(
    fingerprint: dict[str, Any], precision: Precision, versions: Mapping[str, str]
) -> dict[str, Any]:
    """The run's part of NAME.json; the image's part is in Prepared.meta."""
    names = (
        *("encoder", "weights", "layer", "feature", "norm", "facet", "prefix", "pooled"),
        *("masked_pool", "pos_embed", "background", "resize", "fast_decode"),
        *("deterministic", "threads", "batch_size"),
    )
    rule = {"any": "1 where a pixel with alpha above the threshold overlaps the cell",
            "coverage": "area-weighted mean of alpha over the cell", "none": "no mask"}  # fmt: skip
    source = "mask files" if fingerprint["mask_dir"] else "alpha"
    return {
        "format": fingerprint["format"],
        **{name: fingerprint[name] for name in names if name in fingerprint},
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
