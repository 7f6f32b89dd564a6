"""OpenAI CLIP's text towers, run by `clip` itself: its tokenizer, its encode_text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from featprep.encoders import digests, openai_clip, weights
from featprep.encoders.base import LoadOptions, ModelName
from featprep.encoders.text_tower import Parts, TextTower, Tokens, scalar

if TYPE_CHECKING:
    from torch import Tensor


def load(name: ModelName, options: LoadOptions) -> TextTower:
    """Raises WeightsError and UsageError. Of the file's tensors the image tower's are let go."""
    found = openai_clip.find(name)
    spec, tensors = openai_clip.read(name, found, options)
    text = {key: item for key, item in tensors.items() if not key.startswith("visual.")}
    weights.of_tower(name, found.path, text.items())
    model = _build(tensors, text, name, found.path)
    clip, context = openai_clip.import_clip(), int(model.context_length)

    def tokenize(texts: Sequence[str]) -> Tokens:
        return {"text": clip.tokenize(list(texts), context_length=context, truncate=True)}

    def embed(tokens: Tokens) -> Tensor:
        vectors: Tensor = model.encode_text(tokens["text"])
        return vectors

    parts = Parts(
        module=model,
        tokenize=tokenize,
        embed=embed,
        is_long=lambda texts: [_is_long(clip, text, context) for text in texts],
        dim=spec.projected_dim or 0,
        context=context,
        scale=math.exp(scalar(text["logit_scale"])),
    )
    digest = digests.digest(text, {"architecture": "openai-clip-text"}, found.weights)
    return TextTower(name, parts, options, digest, found)


def _is_long(clip: Any, text: str, context: int) -> bool:
    try:
        clip.tokenize(text, context_length=context)
    except RuntimeError:  # "Input … is too long for context length 77"
        return True
    return False


def _build(
    tensors: Mapping[str, Tensor], text: Mapping[str, Tensor], name: ModelName, path: Path
) -> Any:
    """clip's model in float32 with its text tower filled in, strictly, and none for images."""
    import torch

    room = openai_clip.model_room()
    try:
        with torch.device("meta"):
            model = room.build_model({key: item.to("meta") for key, item in tensors.items()})
        model.float()
        model.visual = torch.nn.Module()  # asked for its dtype alone
        model.visual.conv1 = SimpleNamespace(weight=torch.empty(0))
        model.load_state_dict(
            {key: item.float() for key, item in text.items()}, strict=True, assign=True
        )
    except openai_clip.BUILD_ERRORS as error:
        raise openai_clip.unfit(name, path, error) from error
    for block in model.transformer.resblocks:  # no tensor of the file: clip makes it as it builds
        block.attn_mask = model.build_attention_mask()
    return model
