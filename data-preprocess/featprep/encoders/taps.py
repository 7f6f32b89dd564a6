"""What a transformer's blocks give and what their attentions are made of, read by hooks.

Knows the ways in which libraries keep queries, keys and values; no architecture and no checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import Facet, Want

if TYPE_CHECKING:
    from torch import Tensor, nn

_FACETS: tuple[Facet, ...] = ("query", "key", "value")
_SPLIT = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),  # transformers before 5.20, in some models
    ("q", "k", "v"),
)
_OUTPUTS = ("out_proj", "o_proj", "proj", "projection")


@dataclass(frozen=True, slots=True)
class Attention:
    """`module`: called with the normed tokens first. `parts`: those tokens → query, key or value,
    heads concatenated, before rotation and scaling. `out`: value → what the block adds."""

    module: Any
    parts: Callable[[Tensor, Facet], Tensor]
    out: Callable[[Tensor], Tensor]


def find_attention(block: nn.Module) -> Attention:
    """The self-attention of a block. Raises ValueError if it has none that is known."""
    for module in block.modules():
        parts = _parts_of(module)
        if parts is not None:
            return Attention(module, parts, _output_of(block, module))
    raise ValueError(f"{type(block).__name__} has no attention that is known")


def has_attention(block: nn.Module) -> bool:
    return any(_parts_of(module) is not None for module in block.modules())


def run_and_take(
    run: Callable[[], Any], blocks: Sequence[nn.Module], want: Want
) -> tuple[dict[int, Any], Any]:
    """(layer → what it gave, the forward pass's own result).

    `want.layers` count from 0. A layer gives its block's output as it is; or the facet, or the
    value path (out_proj(v_proj(ln_1(x))), no residual), made of what its attention was given.
    """
    taken: dict[int, Any] = {}
    with ExitStack() as hooks:
        for layer in want.layers:
            hooks.enter_context(_listening(blocks[layer], layer, want, taken))
        result = run()
    return taken, result


@contextmanager
def _listening(block: Any, layer: int, want: Want, taken: dict[int, Any]) -> Iterator[None]:
    if want.feature != "value" and want.facet == "token":
        handle = block.register_forward_hook(lambda _m, _i, out: taken.__setitem__(layer, out))
    else:
        attention = find_attention(block)

        def hear(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            tokens = args[0] if args else next(iter(named.values()))
            if want.feature == "value":
                taken[layer] = attention.out(attention.parts(tokens, "value"))
            else:
                taken[layer] = attention.parts(tokens, want.facet)

        handle = attention.module.register_forward_pre_hook(hear, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _parts_of(module: Any) -> Callable[[Tensor, Facet], Tensor] | None:
    from torch import nn

    if hasattr(module, "queries_keys_values"):  # a packed one, whose weight is not to be read
        return lambda tokens, facet: _chunk(module.queries_keys_values(tokens), facet)
    if isinstance(getattr(module, "in_proj_weight", None), nn.Parameter):
        return lambda tokens, facet: _third(
            tokens, facet, module.in_proj_weight, getattr(module, "in_proj_bias", None)
        )
    if isinstance(getattr(module, "qkv", None), nn.Linear):
        if getattr(module, "q_bias", None) is None:
            return lambda tokens, facet: _chunk(module.qkv(tokens), facet)
        return lambda tokens, facet: _third(tokens, facet, module.qkv.weight, _fused_bias(module))
    for names in _SPLIT:
        linears = [getattr(module, name, None) for name in names]
        if all(isinstance(linear, nn.Linear) for linear in linears):
            return partial(_own, linears)
    return None


def _behind_inner_norm(module: Any, out: Any) -> Any:
    """EVA02's attention norms what it gathered before its output projection."""
    norm = getattr(module, "norm", None)
    return out if norm is None else lambda value: out(norm(value))


def _own(linears: Sequence[Any], tokens: Tensor, facet: Facet) -> Tensor:
    part: Tensor = linears[_FACETS.index(facet)](tokens)
    return part


def _chunk(parts: Tensor, facet: Facet) -> Tensor:
    part: Tensor = parts.chunk(3, -1)[_FACETS.index(facet)]
    return part


def _third(tokens: Tensor, facet: Facet, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Queries, keys and values by one matrix, one under the other."""
    from torch.nn.functional import linear

    place = _FACETS.index(facet)
    return linear(
        tokens.to(weight.dtype),
        weight.chunk(3)[place],
        None if bias is None else bias.chunk(3)[place],
    )


def _fused_bias(module: Any) -> Tensor:
    """EVA's and BEiT's, which keep those of queries and values beside qkv."""
    import torch

    key = getattr(module, "k_bias", None)
    return torch.cat(
        (module.q_bias, torch.zeros_like(module.q_bias) if key is None else key, module.v_bias)
    )


def _output_of(block: nn.Module, module: Any) -> Any:
    for name in _OUTPUTS:
        if hasattr(module, name):
            return _behind_inner_norm(module, getattr(module, name))
    for name, part in block.named_modules():  # transformers before 5.20: in a module beside
        if name.endswith("attention.output.dense"):
            return part
    raise ValueError(f"{type(module).__name__} has no output projection that is known")
