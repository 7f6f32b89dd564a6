"""What stands between the packed layers of a model, in fewer passes over its tokens.

Knows two things that are slow on a CPU in bfloat16: norms that turn tokens to float32 and back,
which torch's norm computes in anyway; and QuickGELU, x · sigmoid(1.702 x), three passes, where
oneDNN has x · sigmoid(x) in the same pass as the product before it. Knows no architecture.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

from featprep.encoders import packed_layers

if TYPE_CHECKING:
    from torch import Tensor, nn

_SLOPE = 1.702
_CASTING_NORMS = {"clip.model.LayerNorm", "open_clip.transformer.LayerNormFp32"}
_QUICK_GELUS = {
    "clip.model.QuickGELU",
    "open_clip.transformer.QuickGELU",
    "transformers.activations.QuickGELUActivation",
    "timm.layers.activations.QuickGELU",
}


def fuse(network: nn.Module) -> None:
    """After packing; leaves a network alone in which nothing was packed."""
    from torch import nn

    if not any(hasattr(module, "packed") for module in network.modules()):
        return
    parents = Counter(child for parent in network.modules() for child in parent.children())
    for module in list(network.modules()):
        if _name(module) in _CASTING_NORMS:
            module.__class__ = nn.LayerNorm
        for child in module.children():
            if _name(child) in _QUICK_GELUS and parents[child] == 1:
                _fuse_quick_gelu(module, child)


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _fuse_quick_gelu(mlp: nn.Module, act: nn.Module) -> None:
    """first(x) is made 1.702 times as large, and what second takes that much smaller."""
    from torch import nn

    layers: Any = _layers_around(mlp, act)
    if layers is None:
        return
    first, second = layers
    first.packed = packed_layers.reorder(first.packed.to_dense().float().mul_(_SLOPE).bfloat16())
    second.packed = packed_layers.reorder(second.packed.to_dense().float().div_(_SLOPE).bfloat16())
    if first.bias is not None:
        first.bias.data = first.bias.data.float().mul_(_SLOPE).to(first.bias.dtype)
    first.__class__, second.__class__ = _with_silu(), _scaled()
    act.__class__ = nn.Identity


def _layers_around(mlp: nn.Module, act: nn.Module) -> tuple[Any, Any] | None:
    """The packed layers before and after `act`, if `mlp` is seen to call these three in turn, each
    on what the one before it gave, and to read none of their weights."""
    import torch

    linears: list[Any] = [child for child in mlp.children() if hasattr(child, "packed")]
    if len(linears) != 2 or any(
        type(item) is not packed_layers.packed_linear() for item in linears
    ):
        return None
    calls: list[tuple[Any, Any, Any]] = []
    hooks = [
        module.register_forward_hook(lambda m, given, out: calls.append((m, given, out)))
        for module in (*linears, act)
    ]
    wide = min(linears, key=lambda item: item.in_features)
    try:
        with torch.no_grad():
            result = mlp(torch.ones(1, 2, wide.in_features, dtype=torch.bfloat16))
    except (TypeError, RuntimeError):  # it takes other arguments, or other shapes
        return None
    finally:
        for hook in hooks:
            hook.remove()
    first, second = wide, next(item for item in linears if item is not wide)
    in_turn = [call[0] for call in calls] == [first, act, second]
    if not in_turn or not all(hasattr(item, "packed") for item in linears):
        return None
    given = [item for call in calls for item in call[1]] + [result]
    handed_on = len(given) == 4 and all(
        out is item for (_, _, out), item in zip(calls, given[1:], strict=True)
    )
    return (first, second) if handed_on else None


@cache
def _with_silu() -> Any:
    base: Any = _scaled()

    class LinearWithSiLU(base):  # type: ignore[misc]
        def forward(self, input: Tensor) -> Tensor:
            if input.is_meta:
                return input.new_empty(*input.shape[:-1], self.out_features)
            return packed_layers.product(input, self.packed, self.bias, "swish")

    return LinearWithSiLU


@cache
def _scaled() -> Any:
    base: Any = packed_layers.packed_linear()

    class ScaledLinear(base):  # type: ignore[misc]
        @property
        def weight(self) -> Tensor:
            raise RuntimeError("this layer's weight holds a part of the QuickGELU beside it")

    return ScaledLinear
