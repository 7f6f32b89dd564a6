"""Text towers of transformers' models of images and texts, and their tokenizers: one table.

Each is run alone by its own class; what its parent's get_text_features adds to it stands in the
table. Knows no network; runs no remote code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import digests, hf_building, hf_config, hub, huggingface, text_tower, weights
from featprep.encoders.base import LoadOptions, ModelName
from featprep.encoders.text_tower import Parts, TextTower, Tokens, scalar
from featprep.encoders.weights import Found
from featprep.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

_SCALE, _BIAS = "logit_scale", "logit_bias"
# A counter that older files hold, and BERT's pooler, which neither AltCLIP nor BLIP has use for.
_UNUSED = re.compile(r"\.position_ids$|^text_model\.roberta\.pooler\.|^text_encoder\.pooler\.")
_INPUTS = ("input_ids", "attention_mask")  # of those, what the checkpoint's tokenizer gives
_SIGLIP_LENGTH = 64  # what every SigLIP was trained on: its vector is read off the last place


@dataclass(frozen=True, slots=True)
class TextType:
    """`class_name`: of the text tower. `root`: how its tensors begin. `projection`: the linear
    layer behind it, none in SigLIP, whose tower holds its own. `is_first`: the vector is that of
    the first token, not the tower's pooler_output. `renamed`: as in hf_config.ModelType.
    """

    class_name: str
    root: str = "text_model."
    projection: str = "text_projection"
    is_first: bool = False
    renamed: tuple[str, str] | None = None


TEXT_TYPES = {
    "clip": TextType("CLIPTextModel"),
    "altclip": TextType(
        "AltCLIPTextModel", is_first=True, renamed=("encoder.layer.", "encoder.layers.")
    ),
    "siglip": TextType("SiglipTextModel", projection=""),
    "siglip2": TextType("Siglip2TextModel", projection=""),
    "blip": TextType("BlipTextModel", "text_encoder.", "text_proj", is_first=True),
}


def load(name: ModelName, options: LoadOptions) -> TextTower:
    """Raises WeightsError and UsageError. The image tower's tensors are not looked at."""
    found = find(name)
    config = hf_config.read_config(name, found.path)
    whole, kind = _whole_config(name, found.path, config), TEXT_TYPES[config["model_type"]]
    tensors, beside = _tensors(name, found.path, kind)
    module = _build(name, found.path, kind, whole, tensors)
    projection = _projection(name, found.path, kind, whole, beside)
    tokenizer = _tokenizer(name, found.path)
    context = _context(tokenizer, whole)
    scale, bias = _logit(name, found.path, whole, beside)
    parts = Parts(
        module=_joined(module, projection),
        tokenize=_tokenize(name, found.path, tokenizer, whole, context),
        embed=lambda tokens: _embed(kind, module, projection, tokens),
        is_long=lambda texts: [length > context for length in _lengths(tokenizer, texts)],
        dim=_dim(whole),
        context=context,
        scale=scale,
        bias=bias,
    )
    settings = {"text_config": _plain(whole.text_config), "scale": scale, "bias": bias}
    digest = digests.digest({**tensors, **beside}, settings, found.weights)
    return TextTower(name, parts, options, digest, found)


def find(name: ModelName) -> Found:
    """Its folder with the tokenizer's files: local, in the hub's cache, or downloaded."""
    found = huggingface.find(name)
    if not hf_config.read_spec(name, found.path).text:
        raise text_tower.refusal(name)
    if name.path is None:
        tokenizer = hub.tokenizer(name, name.id)
    else:
        tokenizer = hub.local_tokenizer(name, found.path)
    return Found(found.path, found.weights, found.origin, (*found.others, *tokenizer), found.sha256)


def _whole_config(name: ModelName, folder: Path, config: Mapping[str, Any]) -> Any:
    """transformers' own reading of config.json, the text tower's defaults filled in."""
    from transformers import CONFIG_MAPPING

    mapping: Any = CONFIG_MAPPING
    try:
        with hf_building.quiet_transformers():
            return mapping[config["model_type"]].from_dict(dict(config))
    except Exception as error:  # of any field, of any class
        raise WeightsError(
            f"{name}: transformers refuses {folder / weights.CONFIG}: {weights.one_line(error)}; "
            "put the checkpoint's own there"
        ) from error


def _tensors(
    name: ModelName, folder: Path, kind: TextType
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(tensors of the tower, less their root; what stands beside it)."""
    tower: list[tuple[str, Tensor]] = []
    beside: list[tuple[str, Tensor]] = []
    for file in weights.need_weight_files(name, folder):
        for key, item in weights.read_tensors(file, name).items():
            if key.startswith(kind.root) and not _UNUSED.search(key):
                plain = key.removeprefix(kind.root)
                tower.append((plain.replace(*kind.renamed) if kind.renamed else plain, item))
            elif key.partition(".")[0] in (kind.projection, _SCALE, _BIAS):
                beside.append((key, item))
    return weights.of_tower(name, folder, tower), weights.of_tower(name, folder, beside)


def _build(
    name: ModelName, folder: Path, kind: TextType, whole: Any, tensors: Mapping[str, Tensor]
) -> Any:
    import transformers

    model_class = getattr(transformers, kind.class_name)
    # BLIP's tower of retrieval has no pooler; the other classes have none that one could leave out.
    more: dict[str, Any] = (
        {"add_pooling_layer": False} if kind.class_name == "BlipTextModel" else {}
    )
    return hf_building.build(
        name, folder, model_class, lambda: whole.text_config, tensors, what="texts depend", **more
    )


def _projection(
    name: ModelName, folder: Path, kind: TextType, whole: Any, beside: Mapping[str, Tensor]
) -> Any:
    if not kind.projection:
        return None
    tensors = {key: item for key, item in beside.items() if key.startswith(f"{kind.projection}.")}
    inputs = getattr(whole.text_config, "project_dim", whole.text_config.hidden_size)
    return hf_building.linear(name, folder, (inputs, _dim(whole)), tensors)


def _joined(module: nn.Module, projection: nn.Module | None) -> nn.Module:
    from torch import nn

    return nn.ModuleList([module, *([projection] if projection is not None else [])])


def _embed(kind: TextType, module: Any, projection: Any, tokens: Tokens) -> Tensor:
    out = module(**tokens)
    pooled: Tensor = out.last_hidden_state[:, 0] if kind.is_first else out.pooler_output
    vectors: Tensor = pooled if projection is None else projection(pooled)
    return vectors


def _dim(whole: Any) -> int:
    """Of the space that images and texts share."""
    text = whole.text_config
    if whole.model_type.startswith("siglip"):
        return int(text.projection_size)
    return int(getattr(whole, "image_text_hidden_size", 0) or whole.projection_dim)


def _logit(
    name: ModelName, folder: Path, whole: Any, beside: Mapping[str, Tensor]
) -> tuple[float, float | None]:
    """(scale, bias or None). Files of BLIP for retrieval hold no scale: their config says it."""
    is_sigmoid = whole.model_type.startswith("siglip")
    wanted = [_BIAS] * is_sigmoid + [_SCALE] * (whole.model_type != "blip")
    if lacking := [key for key in wanted if key not in beside]:
        raise WeightsError(
            f"{name}: {folder} lacks {' and '.join(lacking)}, on which scores depend; get a whole "
            "copy of the checkpoint"
        )
    scale = scalar(beside[_SCALE]) if _SCALE in beside else float(whole.logit_scale_init_value)
    return math.exp(scale), scalar(beside[_BIAS]) if is_sigmoid else None


# --- tokens


def _tokenizer(name: ModelName, folder: Path) -> Any:
    from transformers import AutoTokenizer

    auto: Any = AutoTokenizer
    try:
        with hf_building.quiet_transformers():
            return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of any class, of any tokenizer
        raise WeightsError(
            f"{name}: transformers reads no tokenizer in {folder}: {weights.one_line(error)}; put "
            "the checkpoint's own tokenizer files there"
        ) from error


def _context(tokenizer: Any, whole: Any) -> int:
    """Tokens a text may have: what the positions allow, less if the tokenizer says so."""
    places = int(whole.text_config.max_position_embeddings)
    if whole.model_type.startswith("siglip"):
        return min(_SIGLIP_LENGTH, places)
    if whole.model_type == "altclip":  # RoBERTa counts its positions from after the padding's id
        places -= int(whole.text_config.pad_token_id) + 1
    return min(places, int(tokenizer.model_max_length))


def _tokenize(name: ModelName, folder: Path, tokenizer: Any, whole: Any, context: int) -> Any:
    padding = "max_length" if whole.model_type.startswith("siglip") else True
    words = int(whole.text_config.vocab_size)

    def tokenize(texts: Sequence[str]) -> Tokens:
        rows = tokenizer(
            list(texts),
            padding=padding,
            max_length=context,
            truncation=True,
            return_tensors="pt",
        )
        given = {key: rows[key] for key in _INPUTS if key in rows}
        if int(given["input_ids"].max()) >= words:
            raise WeightsError(
                f"{name}: the tokenizer in {folder} has more words than the {words:,} of its "
                "text tower; put the checkpoint's own tokenizer files there"
            )
        return given

    return tokenize


def _lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    with hf_building.quiet_transformers():  # which warns of every long one
        return [len(ids) for ids in tokenizer(list(texts), truncation=False)["input_ids"]]


def _plain(config: Any) -> dict[str, Any]:
    """What shapes the outputs beside the tensors, whatever the release adds."""
    keys = ("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "eos_token_id")
    return {key: getattr(config, key, None) for key in keys}
