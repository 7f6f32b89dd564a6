"""Linear layers on a CPU with their weights in the order that oneDNN computes in.

One pass over the modules of any model, in place: bfloat16 weights are reordered once, and not at
every call, and the bias is added with the product, and not copied under it first. A module stays
the module it was, so that hooks hear it and whoever reads its weight finds it. Knows no
architecture.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def pack(network: nn.Module) -> None:
    """Every bfloat16 nn.Linear that is seen to be called; where oneDNN has no bfloat16, none is.

    Modules with parameters of their own, beside their linear layers, are passed over: EVA's and
    Swin's attentions read the weights of these, and do not call them.
    """
    from torch import nn

    if not is_possible():
        return
    for parent in network.modules():
        if next(parent.parameters(recurse=False), None) is None:
            for child in parent.children():
                if type(child) is nn.Linear and _is_ours(child):
                    _pack(child)


@cache
def is_possible() -> bool:
    import torch

    backend: Any = torch.backends.mkldnn
    mkldnn = torch.ops.mkldnn
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    if not backend.is_available() or not all(hasattr(mkldnn, name) for name in names):
        return False
    return bool(mkldnn._is_mkldnn_bf16_supported())


def _is_ours(linear: nn.Linear) -> bool:
    import torch

    return linear.weight.dtype is torch.bfloat16 and linear.weight.device.type == "cpu"


def _pack(linear: Any) -> None:
    import torch

    with torch.inference_mode(False), torch.no_grad():
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())
    del linear._parameters["weight"]  # memory: it is there once
    linear.packed, linear.__class__ = packed, _packed_class()


@cache
def _packed_class() -> Any:
    import torch
    from torch import Tensor, nn

    mkldnn = torch.ops.mkldnn

    class PackedLinear(nn.Linear):
        packed: Tensor

        def forward(self, input: Tensor) -> Tensor:
            if input.is_meta:  # whoever asks for shapes alone
                return input.new_empty(*input.shape[:-1], self.out_features)
            result: Tensor = mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")
            return result

        @property
        def weight(self) -> nn.Parameter:  # type: ignore[override]
            """Who reads it computes with it by himself: from now on it is a plain layer."""
            with torch.inference_mode(False), torch.no_grad():
                plain = nn.Parameter(self.packed.to_dense(), requires_grad=False)
            del self.packed
            self.__class__ = nn.Linear  # type: ignore[assignment]
            self._parameters["weight"] = plain
            return plain

    return PackedLinear
