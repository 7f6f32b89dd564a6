"""What timm's models give, asked of their forward_intermediates, forward_head and attentions.

Two kinds: blocks that are all alike (ViTs), and stages. Knows no weights.
"""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any

from featprep.encoders import wants, weights
from featprep.encoders.base import EncoderSpec, ModelName, Norm, Stage, Want, predict_grid
from featprep.encoders.module_encoder import (
    Ask,
    Given,
    as_network,
    measure_unit,
    outline,
    trace,
)
from featprep.encoders.taps import run_and_take
from featprep.encoders.timm_building import can_resize
from featprep.encoders.timm_catalogue import make_recipe
from featprep.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

POSITIONS = "model.pos_embed"


def has_blocks(model: Any) -> bool:
    """Whether its layers are the blocks of a ViT, any of which its last norm can follow."""
    kinds = {(row["reduction"], row["num_chs"]) for row in model.feature_info}
    is_even = len(kinds) == 1 and len(model.feature_info) == len(getattr(model, "blocks", ()))
    gives_prefix = "return_prefix_tokens" in signature(model.forward_intermediates).parameters
    is_patched = hasattr(getattr(model, "patch_embed", None), "dynamic_feat_size")
    return is_even and gives_prefix and is_patched and hasattr(model, "norm")


def make_network(name: ModelName, model: Any, swaps: bool) -> nn.Module:
    """A network around timm's model: see as_network.

    `swaps`: its position embeddings are always of the grid asked, so timm is to leave them alone.
    """
    if not hasattr(model, "forward_intermediates"):
        raise WeightsError(
            f"{name}: timm gives no map of it (no forward_intermediates); allowed are models whose "
            "forward_intermediates gives one"
        )
    patch = int(model.feature_info[-1]["reduction"]) if can_resize(model) else 1
    take = _take_blocks if has_blocks(model) else _take_stages

    def forward(model: Any, pixels: Tensor, ask: Ask) -> Given:
        # A native size may leave a remainder (384 of 14), which dynamic_img_size refuses.
        rows, columns = (side // patch for side in pixels.shape[-2:])
        if swaps:  # timm resamples, antialiased, what is not of `grid_size`
            model.patch_embed.grid_size = (rows, columns)
        return take(model, pixels[..., : rows * patch, : columns * patch], ask)

    return as_network(model, forward)


def _take_blocks(model: Any, pixels: Tensor, ask: Ask) -> Given:
    """Tokens as timm has them, (B, P + N, C), the N cells seen as (B, C, rows, columns)."""
    prefix, grid = (
        int(model.num_prefix_tokens),
        model.patch_embed.dynamic_feat_size(pixels.shape[-2:]),
    )
    if ask.facet == "token":
        final, taken = _intermediates(
            model, pixels, ask, output_fmt="NLC", return_prefix_tokens=prefix > 0
        )
        cells = {layer: item[0] if prefix else item for layer, item in taken.items()}
        before = {layer: item[1] for layer, item in taken.items()} if prefix else {}
    else:
        want = Want(layers=ask.layers, facet=ask.facet)
        tokens, (final, _) = run_and_take(
            lambda: _intermediates(model, pixels, ask), model.blocks, want
        )
        cells = {layer: item[:, prefix:] for layer, item in tokens.items()}
        before = {layer: item[:, :prefix] for layer, item in tokens.items()} if prefix else {}
    for layer in ask.normed:
        for part in (cells, before) if prefix else (cells,):
            part[layer] = model.norm(part[layer])
    maps = {layer: item.mT.unflatten(2, tuple(grid)) for layer, item in cells.items()}
    return Given(maps, before, _pooled(model, final, ask))


def _take_stages(model: Any, pixels: Tensor, ask: Ask) -> Given:
    # What is not normed here is no stage that timm norms: make_spec sees to it.
    final, maps = _intermediates(model, pixels, ask, norm=bool(ask.normed), output_fmt="NCHW")
    return Given(maps, pooled=_pooled(model, final, ask))


def _intermediates(
    model: Any, pixels: Tensor, ask: Ask, **how: Any
) -> tuple[Tensor | None, dict[int, Any]]:
    """(what forward_features gives if it is to be pooled, layer → what it gave)."""
    layers = sorted(ask.layers)  # timm's order, whatever is asked
    out = model.forward_intermediates(
        pixels,
        indices=layers,
        stop_early=not ask.pooled,
        intermediates_only=not ask.pooled,
        **how,
    )
    final, taken = out if ask.pooled else (None, out)
    return final, dict(zip(layers, taken, strict=True))


def _pooled(model: Any, final: Tensor | None, ask: Ask) -> Tensor | None:
    """What timm's classifier gets."""
    return model.forward_head(final, pre_logits=True) if ask.pooled else None


# --- what it is


def make_spec(name: ModelName, model: Any, network: nn.Module, resizes: bool) -> EncoderSpec:
    """All of it asked of the model, by shapes alone. Raises WeightsError if it gives no map."""
    config, last = model.pretrained_cfg, len(model.feature_info) - 1
    height, width = _native_size(model)
    own = _own_ask(network, last, height, width)
    patch, channels = _check_map(name, model, network, own, (height, width))
    is_fixed = bool(config.get("fixed_input_size")) and not resizes
    unit = None
    if not is_fixed and not resizes:
        unit = measure_unit(network, own, patch, height, width)
    spec = EncoderSpec(
        name=str(name),
        family="timm",
        patch=patch,
        hidden_dim=channels,
        depth=last + 1,
        native_size=(height, width),
        recipe=make_recipe(name, config, (height, width)),
        mean=_three(config["mean"]),
        std=_three(config["std"]),
        cls=getattr(model, "cls_token", None) is not None and _prefix(model) > 0,
        final_norm=bool(own.normed),
        pos_embeds=("transformers", "hub") if resizes else ("transformers",),
        fixed_size=is_fixed,
        unit=unit,
    )
    spec = replace(spec, registers=_prefix(model) - spec.cls)
    return _with_parts(spec, model, network)


def _prefix(model: Any) -> int:
    return int(getattr(model, "num_prefix_tokens", 0)) if has_blocks(model) else 0


def _native_size(model: Any) -> tuple[int, int]:
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)  # a folder's own
    height, width = size or model.pretrained_cfg["input_size"][1:]
    return int(height), int(width)


def _own_ask(network: nn.Module, last: int, height: int, width: int) -> Ask:
    """For the map that forward_features ends with: normed if norming makes a difference.

    Hiera and SAM 2's refuse to norm: their norm is the head's. ViTs that pool the mean norm it
    afterwards.
    """
    plain, normed = Ask((last,)), Ask((last,), frozenset({last}))
    try:
        sizes = [trace(network, height, width, ask).size for ask in (plain, normed)]
    except Exception:  # an assert; what cannot be run at all, _check_map tells
        return plain
    return normed if sizes[1] > sizes[0] else plain


def _check_map(
    name: ModelName, model: Any, network: nn.Module, own: Ask, size: tuple[int, int]
) -> tuple[int, int]:
    """(patch, channels) of the last map."""
    try:
        channels, *grid = outline(network, *size, own).maps[own.layers[0]].shape[1:]
        patch = int(model.feature_info[-1]["reduction"])
    except Exception as error:  # each architecture has its own way to refuse
        raise WeightsError(
            f"{name}: timm gives no map of it ({weights.one_line(error, 120)}); allowed are models "
            "whose forward_intermediates gives one"
        ) from error
    sides = [(side // patch, -(-side // patch)) for side in size]
    if any(cells not in both for cells, both in zip(grid, sides, strict=True)):
        raise WeightsError(
            f"{name}: its {grid[0]}×{grid[1]} cells at {size[0]}×{size[1]} do not lie {patch} "
            "pixels apart from the upper left corner, so a mask could not follow them; take "
            "another model"
        )
    return patch, channels


def _with_parts(spec: EncoderSpec, model: Any, network: nn.Module) -> EncoderSpec:
    """The spec with the layers, norms, facets and pooled vector that the model is found to give."""
    last, every = spec.depth - 1, tuple(range(spec.depth))
    is_blocks, rows = has_blocks(model), model.feature_info
    stages = tuple(Stage(int(row["reduction"]), int(row["num_chs"])) for row in rows)
    whole = replace(spec, has_layers=True, stages=() if is_blocks else stages)
    norms: tuple[Norm, ...] = ("auto", "final", "none") if spec.final_norm else ("auto", "none")
    is_pooled = None  # asked of the same pass where it can be
    if spec.final_norm and not _gives(network, spec, Ask((last,))):
        norms = ("auto", "final")  # SAM's norm is of another width
    elif is_blocks or _norms_last_alone(network, spec):
        is_pooled = _gives(network, whole, Ask(every, pooled=True)) or None
        spec = whole if is_pooled or _gives(network, whole, Ask(every)) else spec
    return replace(
        spec,
        norms=norms,
        has_facets=is_blocks and spec.has_layers and _gives(network, spec, Ask(every, facet="key")),
        pooled=is_pooled or _gives(network, spec, Ask((last,), pooled=True)),
    )


def _gives(network: nn.Module, spec: EncoderSpec, ask: Ask) -> bool:
    """Whether what is asked comes in the shapes that the spec says, at odd sizes too."""
    (height, width), patch = spec.native_size, spec.patch
    sizes = [(height, width)]
    if spec.unit is not None:
        sizes.append((height - height % patch + patch // 2 + 1, width - width % patch + patch - 1))
    try:
        found = [outline(network, *size, ask) for size in sizes]
    except Exception:  # each architecture has its own way to refuse
        return False
    return all(
        item.shape[1:] == (wants.channels(spec, Want(), layer), *predict_grid(spec, *size, layer))
        for size, given in zip(sizes, found, strict=True)
        for layer, item in given.maps.items()
    ) and all(given.pooled is None or given.pooled.ndim == 2 for given in found)


def _norms_last_alone(network: nn.Module, spec: EncoderSpec) -> bool:
    """Whether timm's norm=True leaves all but the last stage as they are."""
    others = tuple(range(spec.depth - 1))
    if not spec.final_norm or not others:
        return True
    sizes = {
        trace(network, *spec.native_size, Ask(others, normed)).size
        for normed in (frozenset[int](), frozenset({0}))
    }
    return len(sizes) == 1


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
