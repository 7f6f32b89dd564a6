"""open_clip's text towers, built and run by open_clip itself, with its own tokenizers."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import digests, hf_building, hub, openclip, weights
from featprep.encoders.base import LoadOptions, ModelName
from featprep.encoders.openclip_cards import CONFIG, Card, card_of
from featprep.encoders.text_tower import Parts, TextTower, Tokens, scalar
from featprep.encoders.weights import Found
from featprep.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

# open_clip's CLIP wants an image tower: the smallest there is stands in, and is let go.
_NO_VISION = {"layers": 1, "width": 8, "head_width": 8, "image_size": 1, "patch_size": 1}
_LOGITS = ("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale")
_LOGIT_TENSORS = ("logit_scale", "logit_bias")
_NOT_TEXT = ("visual.", "text_decoder.", openclip.APPLE)  # the decoder: CoCa's, of captions
_LEFT_OUT = (
    "text.transformer.embeddings.position_ids",  # a counter that older files hold
    *("input_resolution", "context_length", "vocab_size"),  # of OpenAI's archives
)


def load(name: ModelName, options: LoadOptions) -> TextTower:
    """Raises WeightsError and UsageError. The image tower's tensors are not looked at."""
    open_clip = openclip.import_open_clip()
    if not openclip.is_folder(name):  # refused before anything is downloaded
        _activation(name, card_of(name), options.quick_gelu)
    found = openclip.find(name)
    card = card_of(name, found.path if openclip.is_folder(name) else None)
    text = _text_config(name, card)
    quick_gelu = _activation(name, card, options.quick_gelu)
    tokenizer = _tokenizer(open_clip, name, text)
    named = openclip.read(name, found, options)
    is_apples = any(key.startswith(openclip.APPLE) for key, _ in named)
    plan = _Plan(name, card, text, quick_gelu, is_apples)
    model = _filled(open_clip, plan, found.weights[0], named)
    tensors = model.state_dict()
    context = int(tokenizer.context_length)
    parts = Parts(
        module=model,
        tokenize=lambda texts: {"text": tokenizer(list(texts))},
        embed=lambda tokens: _embed(model, tokens),
        is_long=lambda texts: _are_long(tokenizer, texts, context),
        dim=int(card.config["embed_dim"]),
        context=context,
        scale=math.exp(scalar(tensors["logit_scale"])),
        bias=scalar(tensors["logit_bias"]) if "logit_bias" in tensors else None,
    )
    digest = digests.digest(tensors, {"text": text, "quick_gelu": quick_gelu}, found.weights)
    return TextTower(name, parts, options, digest, found)


def blank(name: ModelName, card: Card) -> dict[str, Tensor]:
    """The tensors of the text tower, logit scale and bias, by their shapes alone."""
    plan = _Plan(name, card, _text_config(name, card), bool(card.quick_gelu), is_apples=False)
    return dict(_texts_own(_outline(openclip.import_open_clip(), plan).state_dict()))


def find(name: ModelName) -> Found:
    """Its files with the tokenizer's, where that lies on the hub; what transformers' encoders need
    of it comes into the hub's cache."""
    found = openclip.find(name)
    card = card_of(name, found.path if openclip.is_folder(name) else None)
    if not card.config.get("text_cfg"):
        return found
    text = _text_config(name, card)
    if text.get("hf_model_name"):
        hub.fetch(name, text["hf_model_name"], [(weights.CONFIG,)])
    others = _tokenizer_files(name, text)
    if not openclip.is_folder(name):  # one file, beside which a folder of them has no place
        return found
    return Found(found.path, found.weights, found.origin, (*found.others, *others), found.sha256)


def _tokenizer_files(name: ModelName, text: Mapping[str, Any]) -> list[Path]:
    """Fetched where they must be; [] if open_clip brings its own."""
    repo = text.get("hf_tokenizer_name")
    if not repo:
        return []
    if name.path is not None and openclip.is_folder(name):
        return hub.local_tokenizer(name, Path(name.path))
    return hub.tokenizer(name, repo, has_config=True)


def _text_config(name: ModelName, card: Card) -> dict[str, Any]:
    """text_cfg, of which no weights are downloaded."""
    text = card.config.get("text_cfg")
    if not isinstance(text, dict):
        raise WeightsError(
            f"{name}: its open_clip_config.json has no text_cfg, which texts need; put the "
            "checkpoint's own there"
        )
    return {**text, **({"hf_model_pretrained": False} if text.get("hf_model_name") else {})}


def _activation(name: ModelName, card: Card, asked: bool | None) -> bool:
    """QuickGELU or not, which the text tower has even where the image tower has no such choice."""
    if card.quick_gelu is not None:
        return card.quick_gelu
    if card.trunk is not None:
        return False
    if asked is None:
        flags = "add --quick_gelu or --no_quick_gelu, or " if card.has_activation else ""
        raise UsageError(
            f"--model {name}: a checkpoint does not say its activation, which texts need; {flags}"
            f"name its tag, openclip:{name.id}/TAG=FILE"
        )
    return asked


# --- the model


@dataclass(frozen=True, slots=True)
class _Plan:
    """What open_clip is to build. `is_apples`: its converter asks for the true image tower."""

    name: ModelName
    card: Card
    text: Mapping[str, Any]
    quick_gelu: bool
    is_apples: bool

    def make(self, open_clip: Any, device: str, **text: object) -> Any:
        """open_clip's model without weights; `text` replaces entries of text_cfg."""
        import torch

        config = self.card.config
        is_custom = config.get("custom_text") or config.get("multimodal_cfg")
        custom = is_custom or self.text.get("hf_model_name")
        model_class = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        vision = openclip.vision_of(self.name, self.card) if self.is_apples else dict(_NO_VISION)
        try:
            with torch.device(device):
                return model_class(
                    embed_dim=config["embed_dim"],
                    vision_cfg=vision,
                    text_cfg={**self.text, **text},
                    quick_gelu=self.quick_gelu,
                    **{key: config[key] for key in _LOGITS if key in config},
                )
        except (*openclip.BUILD_ERRORS, OSError) as error:
            raise WeightsError(
                f"{self.name}: open_clip cannot build this text tower "
                f"({weights.one_line(error)}); check its {CONFIG}"
            ) from error


def _outline(open_clip: Any, plan: _Plan) -> Any:
    """Without numbers, but for those of transformers' models, whose buffers no checkpoint holds."""
    encoder = plan.text.get("hf_model_name")
    if not encoder:
        return plan.make(open_clip, "meta")
    (config,), _ = hub.fetch(plan.name, encoder, [(weights.CONFIG,)])
    return plan.make(open_clip, "cpu", hf_model_name=str(config.parent))


def _filled(open_clip: Any, plan: _Plan, path: Path, named: Sequence[tuple[str, Tensor]]) -> Any:
    """open_clip's model in float32 with its text tower filled in, strictly, none for images."""
    from torch import nn

    model = _outline(open_clip, plan)
    state = _state(model, plan.name, path, named)
    model.visual = nn.Identity()
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:  # lacking, unexpected and misshapen tensors
        raise openclip.unfit(plan.name, path, error) from error
    if any(item.is_meta for item in model.buffers()):
        _compute_masks(model, plan.make(open_clip, "cpu", width=1, heads=1, layers=1, vocab_size=1))
    return model


def _state(
    model: Any, name: ModelName, path: Path, named: Sequence[tuple[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of the text tower, under the model's names, as open_clip's load_checkpoint finds
    them."""
    convert: Any = importlib.import_module("open_clip.convert")
    room: Any = importlib.import_module("open_clip.model")
    state = convert.convert_state_dict(model, dict(named))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = room.convert_to_custom_text_state_dict(state)
    own, text = model.state_dict(), {}
    for key, item in weights.of_tower(name, path, _texts_own(state)).items():
        if key in _LOGIT_TENSORS and key in own:  # some files have them with an axis, some without
            item = item.reshape(own[key].shape)
        text[key] = item.float() if item.is_floating_point() else item
    return text


def _texts_own(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, item in state.items():
        if not key.startswith(_NOT_TEXT) and key not in _LEFT_OUT:
            yield key, item


def _compute_masks(model: Any, twin: Any) -> None:
    """Buffers that no checkpoint holds, left on the meta device: those of a narrow twin."""
    computed = dict(twin.named_buffers())
    for key, item in model.named_buffers():
        if item.is_meta:
            module = model.get_submodule(key.rpartition(".")[0])
            setattr(module, key.rpartition(".")[2], computed[key])


def _embed(model: Any, tokens: Tokens) -> Tensor:
    vectors = model.encode_text(tokens["text"])
    first: Tensor = vectors[0] if isinstance(vectors, tuple) else vectors  # CoCa's has tokens too
    return first


# --- tokens


def _tokenizer(open_clip: Any, name: ModelName, text: Mapping[str, Any]) -> Any:
    """As open_clip.get_tokenizer makes it. Its own lies in its package; others are read from where
    their files lie by now: by a repository's name, transformers would ask the hub once more."""
    files = _tokenizer_files(name, text)
    room: Any = importlib.import_module("open_clip.tokenizer")
    try:
        with hf_building.quiet_transformers():
            if not files:
                source = name.id if name.path is None else f"local-dir:{name.path}"
                return open_clip.get_tokenizer(
                    source if openclip.is_folder(name) else name.id.partition("/")[0]
                )
            return room.HFTokenizer(
                str(files[0].parent),
                context_length=text.get("context_length", room.DEFAULT_CONTEXT_LENGTH),
                tokenizer_mode=text.get("tokenizer_mode"),
                local_files_only=True,
                trust_remote_code=False,
                **(text.get("tokenizer_kwargs") or {}),
            )
    except Exception as error:  # of any class, of any tokenizer
        raise WeightsError(
            f"{name}: open_clip makes no tokenizer of it: {weights.one_line(error)}; get a whole "
            "copy of the checkpoint"
        ) from error


def _are_long(tokenizer: Any, texts: Sequence[str], context: int) -> list[bool]:
    """Those of which one more place would hold one more token."""
    padding = getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", 0)
    fits, more = (
        (tokenizer(list(texts), context_length=length) != padding).sum(1)
        for length in (context, context + 1)
    )
    return [bool(is_long) for is_long in more > fits]
