"""Any model of timm that gives a spatial map, built and run by timm. Knows no network.

The map is the last of forward_intermediates, with the final norm where forward_features applies it:
what timm's classifiers pool, and for ViTs what transformers calls last_hidden_state. EfficientNets
and their like put a 1 × 1 convolution between the last stage and the pooling; it is no part of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import weights
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName
from featprep.encoders.module_encoder import (
    ModuleEncoder,
    map_shape,
    measure_unit,
    used_tensors,
)
from featprep.encoders.timm_building import (
    Card,
    can_resize,
    create_model,
    read_card,
    sketch_model,
    watched_loading,
)
from featprep.encoders.timm_catalogue import KNOWN, make_recipe
from featprep.encoders.torch_encoder import check_feature
from featprep.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

POSITIONS = "model.pos_embed"


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec without torch; None where only timm could tell."""
    is_folder = name.path is not None and Path(name.path).is_dir()
    return None if is_folder else KNOWN.get(name.id)


def load(name: ModelName, options: LoadOptions) -> ModuleEncoder:
    card = read_card(name)
    sketch = sketch_model(name, card)
    resizes = can_resize(sketch)
    outline = _last_map(name, sketch, swaps=False)
    spec = _spec_of(name, sketch, outline, resizes)
    check_feature(spec, options.feature)
    used = used_tensors(outline, *spec.native_size)
    tensors, origin = _read(name, sketch)
    model = _build(name, card, tensors, used, resizes)
    swaps = options.pos_embed == "transformers" and resizes and model.pos_embed is not None
    network = _last_map(name, model, swaps)
    state = network.state_dict()
    settings = {
        "architecture": card.architecture.partition(".")[0],
        "arguments": {key: repr(card.arguments[key]) for key in sorted(card.arguments)},
        "mean": spec.mean,
        "std": spec.std,
    }
    digest = weights.digest({key: state[key] for key in used}, settings)
    prefix, positions = int(getattr(model, "num_prefix_tokens", 0)), POSITIONS if swaps else None
    return ModuleEncoder(spec, network, options, digest, origin, prefix=prefix, positions=positions)


# --- what it is


def _spec_of(name: ModelName, model: Any, network: nn.Module, resizes: bool) -> EncoderSpec:
    config = model.pretrained_cfg
    height, width = (int(side) for side in config["input_size"][1:])
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is not None:  # a folder's own img_size
        height, width = size
    try:
        channels, *grid = map_shape(network, height, width)
        patch = int(model.feature_info[-1]["reduction"])
    except Exception as error:  # each architecture has its own way to refuse
        raise WeightsError(
            f"{name}: timm gives no map of it ({weights.one_line(error, 120)}); allowed are models "
            "whose forward_intermediates gives one"
        ) from error
    sides = [(side // patch, -(-side // patch)) for side in (height, width)]
    if any(cells not in both for cells, both in zip(grid, sides, strict=True)):
        raise WeightsError(
            f"{name}: its {grid[0]}×{grid[1]} cells at {height}×{width} do not lie {patch} pixels "
            "apart from the upper left corner, so a mask could not follow them; take another model"
        )
    is_fixed = bool(config.get("fixed_input_size")) and not resizes
    can_vary = not is_fixed and not resizes
    unit = measure_unit(network, patch, height, width) if can_vary else None
    registers = getattr(model, "reg_token", None)
    return EncoderSpec(
        name=str(name),
        family="timm",
        patch=patch,
        hidden_dim=channels,
        depth=len(model.feature_info),
        native_size=(height, width),
        recipe=make_recipe(name, config, (height, width)),
        mean=_three(config["mean"]),
        std=_three(config["std"]),
        registers=0 if registers is None else registers.shape[1],
        pos_embeds=("transformers", "hub") if resizes else ("transformers",),
        fixed_size=is_fixed,
        unit=unit,
    )


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


# --- its weights


def _read(name: ModelName, sketch: Any) -> tuple[dict[str, Tensor], str]:
    """(tensors, origin): a file, a folder in the hub's form, or the hub's own."""
    if name.path is not None and not Path(name.path).is_dir():
        return weights.read_tensors(Path(name.path), name), name.path
    if name.path is not None:
        folder, origin = Path(name.path), name.path
    elif sketch.pretrained_cfg.get("hf_hub_id"):
        repo_id = sketch.pretrained_cfg["hf_hub_id"]
        folder, origin = weights.hub_folder(name, repo_id, (weights.CONFIG,))
    else:
        raise WeightsError(
            f"{name}: timm publishes no weights of it on the hub; give --model {name}=FILE"
        )
    files = weights.weight_files(folder)
    if not files:
        raise WeightsError(f"{name}: {folder} holds no weights; put model.safetensors there")
    tensors = [weights.read_tensors(file, name) for file in files]
    return {key: item for part in tensors for key, item in part.items()}, origin


def _build(
    name: ModelName, card: Card, tensors: dict[str, Tensor], used: set[str], resizes: bool
) -> Any:
    """timm's own loading, which renames what older checkpoints call otherwise, made strict."""
    more: dict[str, Any] = {"dynamic_img_size": True} if resizes else {}
    try:
        with watched_loading() as reports:
            model = create_model(
                card, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(tensors)}, **more
            )
    except Exception as error:  # misshapen tensors, and whatever a filter trips over
        raise WeightsError(
            f"{name}: the weights do not fit {card.architecture}, get a whole copy: "
            f"{weights.one_line(error)}"
        ) from error
    (report,) = reports
    plain = {key.removeprefix("model.") for key in used}
    lacking = sorted(plain & set(report.missing_keys))
    if lacking:
        more_text = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise WeightsError(
            f"{name}: the weights lack {', '.join(lacking[:3])}{more_text}, on which the map "
            "depends; get a whole copy of the checkpoint"
        )
    rooms = {key.partition(".")[0] for key in plain}
    strange = sorted(key for key in report.unexpected_keys if key.partition(".")[0] in rooms)
    if strange:
        raise WeightsError(
            f"{name}: the weights hold {strange[0]}, which {card.architecture} has not; give them "
            "under the name of their own architecture"
        )
    resampled = tensors.get("pos_embed")
    if resampled is not None and resampled.shape != model.pos_embed.shape:
        raise WeightsError(
            f"{name}: the weights are of another size, positions {tuple(resampled.shape)} and not "
            f"{tuple(model.pos_embed.shape)}; give them under the name of their own size"
        )
    return model


# --- its map


def _last_map(name: ModelName, model: Any, swaps: bool) -> nn.Module:
    """A module around timm's whose forward is the last map of forward_intermediates.

    `swaps`: its position embeddings are always of the grid asked, so timm is to leave them alone.
    """
    from torch import nn

    if not hasattr(model, "forward_intermediates"):
        raise WeightsError(
            f"{name}: timm gives no map of it (no forward_intermediates); allowed are models whose "
            "forward_intermediates gives one"
        )
    patch = int(model.feature_info[-1]["reduction"]) if can_resize(model) else 1
    # Hiera and SAM 2's norm nothing before they pool, and refuse to: their norm is the head's.
    norm = "hiera" not in type(model).__name__.lower()

    class LastMap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: Tensor) -> Tensor:
            # A native size may leave a remainder (384 of 14), which dynamic_img_size refuses.
            rows, columns = (side // patch for side in pixels.shape[-2:])
            if swaps:  # timm resamples, antialiased, what is not of `grid_size`
                self.model.patch_embed.grid_size = (rows, columns)
            maps: list[Tensor] = self.model.forward_intermediates(
                pixels[..., : rows * patch, : columns * patch],
                indices=1,
                norm=norm,
                output_fmt="NCHW",
                intermediates_only=True,
            )
            return maps[-1]

    return LastMap()
