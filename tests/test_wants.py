"""What may be asked of an encoder: layers, features, facets, norms, and how each is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes import SPEC
from featprep.encoders.base import EncoderSpec, Stage, Want
from featprep.encoders.wants import channels, check, is_normed, stride
from featprep.errors import UsageError

VIT = replace(
    SPEC, name="clip:x", depth=12, hidden_dim=768, projected_dim=512, final_norm=False, pooled=True,
    has_layers=True, norms=("auto", "final", "none"), has_value=True, has_facets=True,
)  # fmt: skip
DINO = replace(VIT, name="hf:x", projected_dim=None, final_norm=True, has_value=False)
CNN = replace(
    SPEC, name="timm:x", depth=4, cls=False, has_layers=True, norms=("auto", "none"),
    stages=(Stage(4, 96), Stage(8, 192), Stage(16, 384), Stage(32, 768)),
)  # fmt: skip


def test_layers_count_from_the_beginning_or_the_end_in_the_order_asked() -> None:
    assert check(VIT, Want((-1, 5, 0, -3))).layers == (11, 5, 0, 9)


@pytest.mark.parametrize(
    ("spec", "want", "message"),
    [
        (
            VIT,
            {"layers": (12,)},
            "--layer 12: clip:x has 12 blocks; allowed are 0 to 11, or -1 (the last) to -12",
        ),
        (
            CNN,
            {"layers": (0, -5)},
            "--layer 0,-5: timm:x has 4 stages; allowed are 0 to 3, or -1 (the last) to -4",
        ),
        (
            VIT,
            {"layers": (-1, 11)},
            "--layer -1,11: of clip:x, a layer stands there twice; drop one",
        ),
        (SPEC, {"layers": (1,)}, "--layer 1: of fake:mean, allowed is -1 (or 0), the last block"),
        (
            DINO,
            {"feature": "projected"},
            "--feature projected: hf:x has no projection; allowed is --feature patch",
        ),
        (
            replace(VIT, has_value=False),
            {"feature": "value"},
            "--feature value: clip:x has no value path to a projection; allowed is --feature patch "
            "or projected",
        ),
        (
            VIT,
            {"feature": "value", "layers": (3,)},
            "--feature value is of the last block; drop --layer, or --feature",
        ),
        (
            CNN,
            {"facet": "key"},
            "--facet key: timm:x has no attention that gives one; allowed is --facet token",
        ),
        (
            VIT,
            {"facet": "key", "feature": "projected"},
            "--facet key with --feature projected: drop one of them",
        ),
        (
            VIT,
            {"facet": "query", "norm": "final"},
            "--norm final: a query is no token and has no norm; drop it",
        ),
        (
            VIT,
            {"feature": "projected", "norm": "none"},
            "--norm none: --feature projected is after the final norm; drop it",
        ),
        (
            CNN,
            {"norm": "final"},
            "--norm final: timm:x has no other map of it; allowed is --norm auto or none",
        ),
        (
            replace(CNN, norms=("auto", "final", "none")),
            {"norm": "final", "layers": (1,)},
            "--norm final: the norm of timm:x is its last stage's; drop --layer",
        ),
        (
            CNN,
            {"prefix": True},
            "--prefix: timm:x has no CLS or register tokens; there is --masked_pool",
        ),
        (
            replace(CNN, pooled=True),
            {"prefix": True},
            "--prefix: timm:x has no CLS or register tokens; there is --pooled or --masked_pool",
        ),
        (CNN, {"pooled": True}, "--pooled: timm:x has no pooled vector; there is --masked_pool"),
        (
            replace(VIT, pooled=False),
            {"pooled": True},
            "--pooled: clip:x has no pooled vector; there is --prefix or --masked_pool",
        ),
    ],
)
def test_what_is_lacking_is_refused_with_what_there_is(
    spec: EncoderSpec, want: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        check(spec, Want(**want))
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("spec", "want", "normed"),
    [
        (DINO, {"layers": (0, 11)}, [False, True]),
        (VIT, {"layers": (0, 11)}, [False, False]),
        (DINO, {"layers": (0, 11), "norm": "final"}, [True, True]),
        (DINO, {"layers": (0, 11), "norm": "none"}, [False, False]),
        (VIT, {"layers": (11,), "feature": "projected"}, [True]),
        (DINO, {"layers": (11,), "facet": "key"}, [False]),
    ],
)
def test_auto_is_the_familys_norm_at_the_last_block_and_none_before(
    spec: EncoderSpec, want: dict[str, Any], normed: list[bool]
) -> None:
    asked = check(spec, Want(**want))
    assert [is_normed(spec, asked, layer) for layer in asked.layers] == normed


def test_a_layer_has_its_stages_channels_and_stride_and_a_projection_its_own() -> None:
    assert [channels(CNN, Want(), layer) for layer in range(4)] == [96, 192, 384, 768]
    assert [stride(CNN, layer) for layer in range(4)] == [4, 8, 16, 32]
    assert channels(VIT, Want(), 3) == 768
    assert channels(VIT, Want(feature="value"), 11) == 512
    assert stride(VIT, 3) == SPEC.patch
