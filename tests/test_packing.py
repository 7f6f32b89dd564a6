"""Packed layers: the numbers of plain ones, on models of every kind, and plain where they must be.

The machine decides whether anything is packed at all: see packing.is_possible.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from featprep.encoders import load_encoder, packing
from featprep.encoders.base import Encoder, Facet, LoadOptions, ModelName, Want
from featprep.encoders.thread_copies import ThreadCopies
from featprep.encoders.tiny import write_tiny
from test_thread_copies import KINDS, questions, written
from torch import nn

needs_onednn = pytest.mark.skipif(
    not packing.is_possible(), reason="oneDNN computes no bfloat16 on this CPU"
)


@pytest.fixture(scope="module", params=KINDS)
def name(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelName:
    return written(request.param, tmp_path_factory.mktemp("weights"))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    """plain(name): the encoder as it is where nothing can be packed."""

    def load(name: ModelName, compute: Any = "bfloat16") -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(packing, "is_possible", lambda: False)
            return load_encoder(name, LoadOptions(compute=compute, threads=1))

    return load


def load(name: ModelName, compute: Any = "bfloat16") -> Any:
    return load_encoder(name, LoadOptions(compute=compute, threads=1))


def packed_layers(encoder: Any) -> list[nn.Module]:
    """The linear ones."""
    linears = [module for module in modules_of(encoder) if isinstance(module, nn.Linear)]
    return [module for module in linears if hasattr(module, "packed")]


def modules_of(encoder: Any) -> Iterator[nn.Module]:
    for part in vars(encoder).values():
        if isinstance(part, nn.Module):
            yield from part.modules()


def wants_of(encoder: Encoder) -> list[Want]:
    spec = encoder.spec
    facets: tuple[Facet, ...] = ("query", "value") if spec.has_facets else ()
    more = [Want(feature="value")] if spec.has_value else []
    return [Want(), *(Want(facet=facet) for facet in facets), *more]


def cosine(ours: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> float:
    left, right = ours.astype(np.float64).ravel(), exact.astype(np.float64).ravel()
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


@needs_onednn
def test_every_kind_of_feature_is_what_plain_layers_give(name: ModelName, plain: Any) -> None:
    ours, wanted = load(name), plain(name)
    assert ours.digest == wanted.digest
    pixels, _ = questions(ours)[0]
    for want in wants_of(ours):
        found, expected = (one.encode(pixels, want).map for one in (ours, wanted))
        assert cosine(found, expected) > 0.9999, want
    asked = questions(ours)
    copies = ThreadCopies(ours, 2)
    with ThreadPoolExecutor(2) as threads:
        maps = list(threads.map(lambda one: copies.encode(*one).map, asked))
    for found, one in zip(maps, asked, strict=True):
        assert np.array_equal(found, ours.encode(*one).map)


@needs_onednn
def test_the_layers_of_a_vit_are_packed_and_its_weights_are_there_once(tmp_path: Path) -> None:
    encoder = load(written("hf:tiny", tmp_path))
    layers = packed_layers(encoder)
    assert len(layers) == encoder.spec.depth * 6  # q, k, v, out, fc1, fc2
    assert all(set(layer._parameters) == {"bias"} for layer in layers)


@needs_onednn
def test_attentions_that_read_the_weights_of_their_layers_keep_them(tmp_path: Path) -> None:
    encoder = load(written("openclip:small/eva", tmp_path))
    kept = [n for n, m in encoder.visual.named_modules() if type(m) is nn.Linear]
    assert [n for n in kept if n.endswith("attn.qkv")] != []
    assert packed_layers(encoder) != []


@needs_onednn
def test_whoever_reads_a_weight_has_it_and_a_plain_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 32), nn.GELU()).bfloat16().eval()
    weight, tokens = model[0].weight.detach().clone(), torch.randn(2, 5, 48).bfloat16()
    expected = model(tokens)
    packing.pack(model)
    assert hasattr(model[0], "packed")
    assert torch.allclose(model(tokens), expected, rtol=0.01, atol=0.01)
    assert model(tokens.to("meta")).shape == (2, 5, 32)
    assert torch.equal(model[0].weight, weight)
    assert type(model[0]) is nn.Linear
    assert torch.equal(model(tokens), expected)


@pytest.fixture(params=[False, True], ids=["tokens first", "images first"])
def attention(request: pytest.FixtureRequest) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(64, 4, batch_first=request.param).bfloat16()
    nn.init.normal_(made.in_proj_bias)
    return made.eval().requires_grad_(False)


@needs_onednn
def test_a_packed_attention_gives_what_torchs_own_gives(attention: nn.MultiheadAttention) -> None:
    tokens = torch.randn(5, 3, 64).bfloat16()
    expected = attention(tokens, tokens, tokens, need_weights=False)[0]
    packing.pack(attention)
    assert hasattr(attention, "packed")
    assert hasattr(attention.out_proj, "packed")
    assert set(attention._parameters) == {"in_proj_bias"} | {
        f"{name}_proj_weight" for name in "qkv"
    }
    for named in ({"need_weights": False}, {"need_weights": False, "attn_mask": None}):
        found, weights = attention(tokens, tokens, tokens, **named)
        assert weights is None
        assert torch.allclose(found, expected, rtol=0.01, atol=0.01)
    assert hasattr(attention, "packed")
    shaped = tokens.to("meta")
    assert attention(shaped, shaped, shaped, need_weights=False)[0].shape == (5, 3, 64)


@needs_onednn
@pytest.mark.parametrize("asked", ["weights", "mask", "padding", "other keys"])
def test_what_a_packed_attention_does_not_know_torchs_own_does(
    attention: nn.MultiheadAttention, asked: str
) -> None:
    tokens, keys = torch.randn(2, 5, 5, 64).bfloat16()
    names = {
        "weights": {},
        "mask": {"need_weights": False, "attn_mask": torch.eye(5).bool().logical_not()},
        "padding": {"need_weights": False, "key_padding_mask": torch.arange(25).view(5, 5) == 3},
        "other keys": {"need_weights": False},
    }
    keys = keys if asked == "other keys" else tokens
    expected = attention(tokens, keys, keys, **names[asked])
    packing.pack(attention)
    found = attention(tokens, keys, keys, **names[asked])
    assert torch.equal(found[0], expected[0])
    assert (found[1] is None) == (asked != "weights")
    assert type(attention) is nn.MultiheadAttention


@needs_onednn
def test_whoever_reads_an_attentions_weight_has_it(attention: nn.MultiheadAttention) -> None:
    weight = attention.in_proj_weight.detach().clone()
    packing.pack(attention)
    assert torch.equal(attention.in_proj_weight, weight)
    assert type(attention) is nn.MultiheadAttention


@needs_onednn
def test_attentions_with_keys_of_another_width_or_more_keys_stay_plain() -> None:
    for named in ({"kdim": 32}, {"add_bias_kv": True}, {"add_zero_attn": True}):
        attention = nn.MultiheadAttention(64, 4, **named).bfloat16()
        packing.pack(attention)
        assert type(attention) is nn.MultiheadAttention


@needs_onednn
@pytest.mark.parametrize("want", [Want(facet="key"), Want(feature="value")], ids=str)
def test_facets_and_values_leave_an_attention_packed(tmp_path: Path, want: Want) -> None:
    encoder = load(written("clip:tiny", tmp_path))
    encoder.encode(questions(encoder)[0][0], want)
    attentions = [m for m in modules_of(encoder) if isinstance(m, nn.MultiheadAttention)]
    assert len(attentions) == encoder.spec.depth
    assert all(hasattr(attention, "packed") for attention in attentions)


def test_float32_stays_plain(tmp_path: Path) -> None:
    assert packed_layers(load(written("hf:tiny", tmp_path), "float32")) == []


def test_without_bfloat16_in_onednn_nothing_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing.is_possible.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        encoder = load(ModelName("hf", "test", str(write_tiny("hf", tmp_path))))
    packing.is_possible.cache_clear()
    assert packed_layers(encoder) == []
    exact = load(ModelName("hf", "test", str(tmp_path)), "float32")
    pixels, want = questions(encoder)[0]
    assert cosine(encoder.encode(pixels, want).map, exact.encode(pixels, want).map) > 0.999
