"""Names and shapes of the tensors in OpenAI's checkpoints: what random ones are drawn to.

The text tower is one narrow block, whatever the published one is.
"""

from __future__ import annotations

from collections.abc import Sequence

from featprep.encoders.base import EncoderSpec
from featprep.encoders.openai_clip_cards import RESNET_STRIDE

_TEXT_WIDTH, _CONTEXT, _VOCABULARY = 64, 77, 49408
Shapes = dict[str, tuple[int, ...]]


def vit_shapes(spec: EncoderSpec) -> Shapes:
    width, patch, embed = spec.hidden_dim, spec.patch, spec.projected_dim or 0
    cells = (spec.native_size[0] // patch) ** 2
    return {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (cells + 1, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, patch, patch),
        **_pair("visual.ln_pre", width),
        **_blocks("visual.transformer", spec.depth, width),
        **_pair("visual.ln_post", width),
        **_text_shapes(embed),
    }


def resnet_shapes(spec: EncoderSpec, blocks: Sequence[int]) -> Shapes:
    """`blocks`: of each of the four stages."""
    hidden, embed = spec.hidden_dim, spec.projected_dim or 0
    width = hidden // 32
    cells = (spec.native_size[0] // RESNET_STRIDE) ** 2
    shapes: Shapes = {
        **_stem("visual", width),
        "visual.attnpool.positional_embedding": (cells + 1, hidden),
        **_pair("visual.attnpool.q_proj", hidden, hidden),
        **_pair("visual.attnpool.k_proj", hidden, hidden),
        **_pair("visual.attnpool.v_proj", hidden, hidden),
        **_pair("visual.attnpool.c_proj", embed, hidden),
    }
    before = width
    for stage, count in enumerate(blocks):
        planes = width << stage
        for index in range(count):
            shapes |= _bottleneck(f"visual.layer{stage + 1}.{index}", before, planes, index == 0)
            before = planes * 4
    return shapes | _text_shapes(embed)


def _text_shapes(embed: int) -> Shapes:
    return {
        "positional_embedding": (_CONTEXT, _TEXT_WIDTH),
        "text_projection": (_TEXT_WIDTH, embed),
        "logit_scale": (),
        **_blocks("transformer", 1, _TEXT_WIDTH),
        "token_embedding.weight": (_VOCABULARY, _TEXT_WIDTH),
        **_pair("ln_final", _TEXT_WIDTH),
    }


def _blocks(tower: str, depth: int, width: int) -> Shapes:
    shapes: Shapes = {}
    for block in (f"{tower}.resblocks.{index}" for index in range(depth)):
        shapes[f"{block}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{block}.attn.in_proj_bias"] = (3 * width,)
        shapes |= _pair(f"{block}.attn.out_proj", width, width)
        shapes |= _pair(f"{block}.ln_1", width) | _pair(f"{block}.ln_2", width)
        shapes |= _pair(f"{block}.mlp.c_fc", 4 * width, width)
        shapes |= _pair(f"{block}.mlp.c_proj", width, 4 * width)
    return shapes


def _stem(visual: str, width: int) -> Shapes:
    half = width // 2
    return {
        f"{visual}.conv1.weight": (half, 3, 3, 3),
        f"{visual}.conv2.weight": (half, half, 3, 3),
        f"{visual}.conv3.weight": (width, half, 3, 3),
        **_batch_norm(f"{visual}.bn1", half),
        **_batch_norm(f"{visual}.bn2", half),
        **_batch_norm(f"{visual}.bn3", width),
    }


def _bottleneck(block: str, inputs: int, planes: int, is_first: bool) -> Shapes:
    shapes: Shapes = {
        f"{block}.conv1.weight": (planes, inputs, 1, 1),
        f"{block}.conv2.weight": (planes, planes, 3, 3),
        f"{block}.conv3.weight": (planes * 4, planes, 1, 1),
        **_batch_norm(f"{block}.bn1", planes),
        **_batch_norm(f"{block}.bn2", planes),
        **_batch_norm(f"{block}.bn3", planes * 4),
    }
    if is_first:  # every stage changes its channels
        shapes[f"{block}.downsample.0.weight"] = (planes * 4, inputs, 1, 1)
        shapes |= _batch_norm(f"{block}.downsample.1", planes * 4)
    return shapes


def _batch_norm(module: str, width: int) -> Shapes:
    mean, variance = f"{module}.running_mean", f"{module}.running_var"
    return {**_pair(module, width), mean: (width,), variance: (width,)}


def _pair(module: str, outputs: int, *inputs: int) -> Shapes:
    return {f"{module}.weight": (outputs, *inputs), f"{module}.bias": (outputs,)}
