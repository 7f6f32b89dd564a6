"""What stands between packed layers: fewer passes, the same numbers, and left alone in doubt."""

from __future__ import annotations

import copy
import importlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from featprep.encoders import fusing, packing
from featprep.encoders.openai_clip import import_clip
from open_clip.transformer import LayerNormFp32
from test_packing import load, modules_of, needs_onednn, written
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

import_clip()
clip_model: Any = importlib.import_module("clip.model")
QuickGELU, LayerNorm = clip_model.QuickGELU, clip_model.LayerNorm


def mlp(act: nn.Module, *between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    parts = (nn.Linear(64, 256), act, *between, nn.Linear(256, 64))
    return nn.Sequential(*parts).bfloat16().eval().requires_grad_(False)


class ByName(nn.Module):
    """As transformers' MLPs: children in another order than that of their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.activation_fn: Any = QuickGELUActivation()
        self.fc1, self.fc2 = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.activation_fn(self.fc1(tokens)))
        return result


class Gated(ByName):
    """The same children, but not one after the other."""

    def forward(self, tokens: Tensor) -> Tensor:
        wide = self.fc1(tokens)
        result: Tensor = self.fc2(self.activation_fn(wide) * wide)
        return result


class Reading(ByName):
    """Computes with the weight by itself."""

    def forward(self, tokens: Tensor) -> Tensor:
        wide = nn.functional.linear(tokens, self.fc1.weight, self.fc1.bias)
        result: Tensor = self.fc2(self.activation_fn(wide))
        return result


class Twofold(ByName):
    """Takes more than tokens."""

    def forward(self, tokens: Tensor, more: Tensor | None = None) -> Tensor:
        if more is None:
            raise TypeError("more")
        return super().forward(tokens) + more


def names_of(network: nn.Module) -> list[str]:
    return [type(module).__name__ for module in network.modules()]


@needs_onednn
@pytest.mark.parametrize(
    "made",
    [lambda: mlp(QuickGELU()), ByName, lambda: mlp(QuickGELU(), nn.Dropout(0.5), nn.Identity())],
    ids=["clip", "hf", "timm"],
)
def test_quick_gelu_is_done_with_the_product_before_it(made: Any) -> None:
    network = made().bfloat16().eval().requires_grad_(False)
    exact = copy.deepcopy(network).float()
    tokens = torch.randn(2, 7, 64).bfloat16()
    wanted, rounded = exact(tokens.float()), network(tokens).float()
    packing.pack(network)
    assert "LinearWithSiLU" in names_of(network)
    assert (network(tokens).float() - wanted).norm() < 1.5 * (rounded - wanted).norm()
    assert network(tokens.to("meta")).shape == (2, 7, 64)


@needs_onednn
@pytest.mark.parametrize("made", [Gated, Reading, lambda: mlp(QuickGELU(), nn.LayerNorm(256))])
def test_an_mlp_of_another_course_is_left_as_it_is(made: Any) -> None:
    network = made().bfloat16().eval().requires_grad_(False)
    tokens = torch.randn(2, 7, 64).bfloat16()
    expected = network(tokens)
    packing.pack(network)
    assert {"LinearWithSiLU", "ScaledLinear"}.isdisjoint(names_of(network))
    assert torch.allclose(network(tokens), expected, rtol=0.02, atol=0.02)


@needs_onednn
def test_a_module_that_takes_more_than_tokens_is_left_as_it_is() -> None:
    network = Twofold().bfloat16().eval()
    packing.pack(network)
    assert hasattr(network.fc1, "packed")
    assert "LinearWithSiLU" not in names_of(network)


@pytest.mark.parametrize("name", sorted(fusing._QUICK_GELUS))
def test_what_is_called_quick_gelu_is_that(name: str) -> None:
    room, _, kind = name.rpartition(".")
    values = torch.linspace(-8, 8, 99)
    found = getattr(importlib.import_module(room), kind)()(values)
    assert torch.allclose(found, values * torch.sigmoid(1.702 * values))


@needs_onednn
def test_an_activation_that_several_share_is_left_as_it_is() -> None:
    act = QuickGELU()
    network = nn.Sequential(mlp(act), mlp(act))
    packing.pack(network)
    assert "LinearWithSiLU" not in names_of(network)


@needs_onednn
def test_a_scaled_weight_is_not_given_out() -> None:
    network = mlp(QuickGELU())
    packing.pack(network)
    for layer in (network[0], network[2]):
        with pytest.raises(RuntimeError) as refusal:
            layer.weight  # noqa: B018
        assert str(refusal.value) == ("this layer's weight holds a part of the QuickGELU beside it")


@needs_onednn
@pytest.mark.parametrize("kind", [LayerNorm, LayerNormFp32])
def test_norms_that_cast_give_the_same_without_casting(kind: type[nn.LayerNorm]) -> None:
    torch.manual_seed(0)
    norm = kind(64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    network = nn.Sequential(OrderedDict(norm=norm, fc=nn.Linear(64, 8).bfloat16())).eval()
    tokens = torch.randn(3, 50, 64).bfloat16()
    expected = norm(tokens)
    fusing.fuse(network)  # nothing is packed
    assert type(network.norm) is kind
    packing.pack(network)
    assert type(network.norm) is nn.LayerNorm
    found = network.norm(tokens)
    assert found.dtype is torch.bfloat16
    assert (found == expected).float().mean() > 0.99
    assert torch.allclose(found, expected, rtol=0.01, atol=0.01)


@needs_onednn
@pytest.mark.parametrize(("name", "count"), [("clip:tiny", 3), ("hf:tiny", 0)])
def test_every_mlp_with_quick_gelu_is_fused_and_no_other(
    tmp_path: Path, name: str, count: int
) -> None:
    encoder = load(written(name, tmp_path))
    found = [type(module).__name__ for module in modules_of(encoder)]
    assert found.count("LinearWithSiLU") == found.count("ScaledLinear") == count
    assert "QuickGELU" not in found
    exact = load(written(name, tmp_path), "float32")
    assert "LinearWithSiLU" not in [type(module).__name__ for module in modules_of(exact)]
