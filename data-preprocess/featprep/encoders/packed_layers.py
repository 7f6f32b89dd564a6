"""Linear layers and nn.MultiheadAttention with weights in the order that oneDNN computes in.

Knows no architecture.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def is_ours(weight: Any) -> bool:
    import torch

    return (
        isinstance(weight, torch.Tensor)
        and weight.dtype is torch.bfloat16
        and weight.device.type == "cpu"
    )


def reorder(weight: Tensor) -> Tensor:
    """(outputs, inputs) in oneDNN's order, which to_dense() turns back."""
    import torch

    with torch.inference_mode(False), torch.no_grad():
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    return packed


def product(input: Tensor, packed: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """F.linear, and `then` a function that oneDNN applies before the result is rounded."""
    import torch

    result: Tensor = torch.ops.mkldnn._linear_pointwise(input, packed, bias, then, [], "")
    return result


def _unpack(module: Any, name: str, plain_class: type[nn.Module]) -> nn.Parameter:
    """Who reads a weight computes with it by himself: from now on it is a plain module."""
    import torch
    from torch import nn

    with torch.inference_mode(False), torch.no_grad():
        plain = nn.Parameter(module.packed.to_dense(), requires_grad=False)
    del module.packed
    module.__class__ = plain_class
    module._parameters[name] = plain
    return plain


# --- linear layers


def pack_linears(network: nn.Module) -> None:
    """Modules with parameters of their own, beside their linear layers, are passed over: EVA's and
    Swin's attentions read the weights of these, and do not call them."""
    from torch import nn

    for parent in network.modules():
        if next(parent.parameters(recurse=False), None) is None:
            for child in parent.children():
                if type(child) is nn.Linear and is_ours(child.weight):
                    _pack_linear(child)


def _pack_linear(linear: Any) -> None:
    packed = reorder(linear.weight)
    del linear._parameters["weight"]  # memory: it is there once
    linear.packed, linear.__class__ = packed, packed_linear()


@cache
def packed_linear() -> Any:
    from torch import nn

    class PackedLinear(nn.Linear):
        packed: Tensor

        def forward(self, input: Tensor) -> Tensor:
            if input.is_meta:  # whoever asks for shapes alone
                return input.new_empty(*input.shape[:-1], self.out_features)
            return product(input, self.packed, self.bias)

        @property
        def weight(self) -> nn.Parameter:  # type: ignore[override]
            return _unpack(self, "weight", nn.Linear)

    return PackedLinear


# --- nn.MultiheadAttention, of clip, open_clip and torchvision


def pack_attentions(network: nn.Module) -> None:
    from torch import nn

    for module in network.modules():
        if type(module) is nn.MultiheadAttention and _is_plain(module):
            _pack_attention(module)


def _is_plain(attention: Any) -> bool:
    """Queries, keys and values of one width, by one matrix, and none that is added."""
    added = attention.bias_k is not None or attention.add_zero_attn
    return attention._qkv_same_embed_dim and not added and is_ours(attention.in_proj_weight)


def _pack_attention(attention: Any) -> None:
    packed = reorder(attention.in_proj_weight)
    del attention._parameters["in_proj_weight"]
    attention.packed, attention.__class__ = packed, _packed_attention()
    _pack_linear(attention.out_proj)


@cache
def _packed_attention() -> Any:
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention

    class PackedAttention(nn.MultiheadAttention):
        packed: Tensor

        def forward(
            self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **named: Any
        ) -> Any:
            """Self-attention without masks, as towers of images have it; else upstream's own."""
            if not (query is key is value and query.ndim == 3 and _asks_for_tokens(args, named)):
                return super().forward(query, key, value, *args, **named)
            parts = self.queries_keys_values(query)
            heads = parts.view(*query.shape[:2], 3, self.num_heads, -1)
            first = not self.batch_first  # tokens lie before images
            order = (2, 1, 3, 0, 4) if first else (2, 0, 3, 1, 4)  # 3, B, heads, tokens, width
            mixed = scaled_dot_product_attention(*heads.permute(order))
            tokens = mixed.permute((2, 0, 1, 3) if first else (0, 2, 1, 3))
            return self.out_proj(tokens.reshape(query.shape)), None

        def queries_keys_values(self, tokens: Tensor) -> Tensor:
            """(…, C) → (…, 3 C), one beside the other."""
            if tokens.is_meta:
                return tokens.new_empty(*tokens.shape[:-1], 3 * self.embed_dim)
            return product(tokens, self.packed, self.in_proj_bias)

        @property
        def in_proj_weight(self) -> nn.Parameter:  # type: ignore[override]
            return _unpack(self, "in_proj_weight", nn.MultiheadAttention)

    return PackedAttention


def _asks_for_tokens(args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Of nn.MultiheadAttention's arguments after the value: no mask, no weights wanted."""
    names = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")
    given = {"need_weights": True} | dict(zip(names, args, strict=False)) | named
    masks = (given.get("key_padding_mask"), given.get("attn_mask"))
    return masks == (None, None) and not given["need_weights"] and not given.get("is_causal")
