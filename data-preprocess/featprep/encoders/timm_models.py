"""Any model of timm that gives a spatial map, built by timm and loaded strictly.

The map is the last of forward_intermediates, with the final norm where forward_features applies it:
for ViTs what transformers calls last_hidden_state. EfficientNets and their like put a 1 × 1
convolution between the last stage and the pooling; it is no part of it. Knows no network.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import digests, hub, wants, weights
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName, Terms
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
from featprep.encoders.weights import Found
from featprep.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec without torch; None where only timm could tell."""
    is_folder = name.path is not None and Path(name.path).is_dir()
    return None if is_folder else KNOWN.get(name.id)


@dataclass(frozen=True, slots=True)
class Sketch:
    """A model by shapes alone. `config`: its pretrained_cfg."""

    card: Card
    config: Mapping[str, Any]
    network: nn.Module
    spec: EncoderSpec
    resizes: bool


def sketch(name: ModelName) -> Sketch:
    """What timm says of it, without weights. Raises WeightsError if it gives no map."""
    card = read_card(name)
    model = sketch_model(name, card)
    resizes, network = can_resize(model), make_network(name, model, swaps=False)
    spec = make_spec(name, model, network, resizes)
    return Sketch(card, model.pretrained_cfg, network, spec, resizes)


def list_more(text: str) -> list[str]:
    """Names of timm's with published weights that hold this and are not KNOWN."""
    import timm

    library: Any = timm
    names: list[str] = library.list_models(pretrained=True)
    return [name for name in names if text in name.lower() and name not in KNOWN]


def ask(name: ModelName) -> tuple[EncoderSpec, Terms]:
    """The spec and terms of a name that `list_more` gave. Raises WeightsError, UsageError."""
    found = sketch(name)
    return found.spec, Terms(found.config.get("license") or "unknown")


def load(name: ModelName, options: LoadOptions) -> ModuleEncoder:
    outline = sketch(name)
    card, spec, resizes = outline.card, outline.spec, outline.resizes
    want, last = wants.check(spec, options.want), spec.depth - 1
    asked = Ask((last,), frozenset({last} if spec.final_norm else ()), pooled=want.pooled)
    used = trace(outline.network, *spec.native_size, asked).tensors
    found = find(name, outline.config)
    tensors = _read(name, found)
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
    digest = digests.digest({key: state[key] for key in used}, settings, found.weights)
    positions = POSITIONS if swaps else None
    return ModuleEncoder(spec, network, options, digest, found, positions=positions)


# --- its weights


def find(name: ModelName, config: Mapping[str, Any] | None = None) -> Found:
    """Its file, or its folder in the hub's form: local, in the hub's cache, or downloaded.

    `config`: its pretrained_cfg, if that was read.
    """
    path = None if name.path is None else Path(name.path)
    if path is None:
        config = config or sketch_model(name, read_card(name)).pretrained_cfg
        if not config.get("hf_hub_id"):
            raise WeightsError(
                f"{name}: timm publishes no weights of it on the hub; give --model {name}=FILE"
            )
        return hub.folder(name, config["hf_hub_id"], (weights.CONFIG,))
    if not path.is_dir():
        return weights.local_file(str(path))
    files = weights.need_weight_files(name, path)
    others = (path / weights.CONFIG,)
    return Found(path, tuple(files), str(path), others, digests.hub_sha256(files))


def _read(name: ModelName, found: Found) -> dict[str, Tensor]:
    tensors = [weights.read_tensors(file, name) for file in found.weights]
    return {key: item for part in tensors for key, item in part.items()}


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
            f"{name}: the weights lack {', '.join(lacking[:3])}{more_text}, on which what "
            "is wanted depends; get a whole copy of the checkpoint"
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
