"""Any model of timm that gives a spatial map, built by timm and loaded strictly.

The map is the last of forward_intermediates, with the final norm where forward_features applies it:
for ViTs what transformers calls last_hidden_state. EfficientNets and their like put a 1 × 1
convolution between the last stage and the pooling; it is no part of it. Knows no network.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import wants, weights
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName
from featprep.encoders.module_encoder import Ask, ModuleEncoder, trace
from featprep.encoders.timm_building import (
    Card,
    can_resize,
    create_model,
    read_card,
    sketch_model,
    watched_loading,
)
from featprep.encoders.timm_catalogue import KNOWN
from featprep.encoders.timm_networks import POSITIONS, make_network, make_spec
from featprep.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec without torch; None where only timm could tell."""
    is_folder = name.path is not None and Path(name.path).is_dir()
    return None if is_folder else KNOWN.get(name.id)


def load(name: ModelName, options: LoadOptions) -> ModuleEncoder:
    card = read_card(name)
    sketch = sketch_model(name, card)
    resizes = can_resize(sketch)
    outline = make_network(name, sketch, swaps=False)
    spec = make_spec(name, sketch, outline, resizes)
    want, last = wants.check(spec, options.want), spec.depth - 1
    normed = frozenset({last} if spec.final_norm else ())
    used = trace(outline, *spec.native_size, Ask((last,), normed, pooled=want.pooled)).tensors
    tensors, origin = _read(name, sketch)
    model = _build(name, card, tensors, used, resizes)
    swaps = options.pos_embed == "transformers" and resizes and model.pos_embed is not None
    network = make_network(name, model, swaps)
    state = network.state_dict()
    settings = {
        "architecture": card.architecture.partition(".")[0],
        "arguments": {key: repr(card.arguments[key]) for key in sorted(card.arguments)},
        "mean": spec.mean,
        "std": spec.std,
    }
    digest = weights.digest({key: state[key] for key in used}, settings)
    positions = POSITIONS if swaps else None
    return ModuleEncoder(spec, network, options, digest, origin, positions=positions)


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
    name: ModelName, card: Card, tensors: dict[str, Tensor], used: Collection[str], resizes: bool
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
