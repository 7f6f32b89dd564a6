"""Layers on a CPU as oneDNN computes them fastest: one pass over any model's modules, in place.

bfloat16 weights are reordered once, and not at every call; a bias is added with the product, and
not copied under it first. A module stays the module it was, so that hooks hear it and whoever reads
its weight finds it. Knows no architecture.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from featprep.encoders import fusing, packed_layers, packed_patches

if TYPE_CHECKING:
    from torch import nn


def pack(network: nn.Module) -> None:
    """Every bfloat16 layer that is seen to be called; where oneDNN has no bfloat16, none is."""
    if is_possible():
        packed_layers.pack_linears(network)
        packed_layers.pack_attentions(network)
        packed_patches.pack(network)
        fusing.fuse(network)


@cache
def is_possible() -> bool:
    import torch

    backend: Any = torch.backends.mkldnn
    mkldnn = torch.ops.mkldnn
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not backend.is_available() or not all(hasattr(mkldnn, name) for name in names):
        return False
    return bool(mkldnn._is_mkldnn_bf16_supported())
