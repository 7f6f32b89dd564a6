"""Position embeddings that are not the module's own, in their place for one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from featprep.encoders.positions import call_with
from torch import Tensor, nn


class Adds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ParameterDict({"positions": torch.tensor([1.0, 2.0])})

    def forward(self, pixels: Tensor) -> Tensor:
        added: Tensor = pixels + self.inner["positions"]
        return added


def test_positions_stand_in_for_one_call_and_leave_the_modules_own() -> None:
    module, pixels = Adds(), torch.tensor([10.0, 20.0])
    found = call_with(module, "inner.positions", torch.tensor([3.0, 4.0]), pixels)
    assert found.tolist() == [13, 24]
    assert module(pixels).tolist() == [11, 22]


def test_at_the_native_size_nothing_is_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise AssertionError("swapped")

    monkeypatch.setattr(torch.func, "functional_call", refuse)
    module, pixels = Adds(), torch.tensor([10.0, 20.0])
    own = module.get_parameter("inner.positions")
    assert call_with(module, "inner.positions", own, pixels).tolist() == [11, 22]
