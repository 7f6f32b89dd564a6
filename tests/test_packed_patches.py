"""The embedding of patches as a packed product: the convolution's numbers, at every size."""

from __future__ import annotations

import pytest
import torch
from featprep.encoders import packing
from test_packing import needs_onednn
from torch import nn


def embedding(bias: bool = True, **named: object) -> nn.Conv2d:
    torch.manual_seed(0)
    settings: dict[str, object] = {"kernel_size": 14, "stride": 14} | named
    conv = nn.Conv2d(3, 32, bias=bias, **settings)  # type: ignore[arg-type]
    return conv.bfloat16().eval().requires_grad_(False)


@needs_onednn
@pytest.mark.parametrize("size", [(28, 42), (42, 28), (30, 55), (14, 14)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_gives_what_the_convolution_gives(size: tuple[int, int], bias: bool) -> None:
    conv = embedding(bias)
    pixels = torch.randn(2, 3, *size).bfloat16()
    expected = conv(pixels)
    packing.pack(conv)
    assert hasattr(conv, "packed")
    found = conv(pixels)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=0.02, atol=0.02)
    assert conv(pixels.to(memory_format=torch.channels_last)).equal(found)
    assert conv.weight.dtype is torch.bfloat16  # which models read


@needs_onednn
def test_patches_that_are_not_square_keep_their_sides_apart() -> None:
    conv = embedding(kernel_size=(8, 16), stride=(8, 16))
    pixels = torch.randn(1, 3, 24, 32).bfloat16()
    expected = conv(pixels)
    packing.pack(conv)
    assert hasattr(conv, "packed")
    assert torch.allclose(conv(pixels), expected, rtol=0.02, atol=0.02)


@needs_onednn
@pytest.mark.parametrize(
    "named",
    [
        {"stride": 7},
        {"padding": 3},
        {"padding": "same", "stride": 1},
        {"dilation": 2},
        {"kernel_size": 2, "stride": 2},
    ],
    ids=str,
)
def test_other_convolutions_stay_convolutions(named: dict[str, object]) -> None:
    conv = embedding(**named)
    packing.pack(conv)
    assert type(conv) is nn.Conv2d
