"""`--compile`: the blocks of transformers through torch.compile, by a pass over any modules.

The blocks of a network are alike, so one of them is compiled, in seconds, and serves all; what
joins them (positions that are swapped in, hooks that listen to layers) stays as it is. Knows no
architecture.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import Want
from featprep.encoders.taps import has_attention

if TYPE_CHECKING:
    from torch import nn


def compile_blocks(network: nn.Module, want: Want) -> int:
    """Compile the blocks of every stack in `network`, in place; returns how many there are.

    A block whose attention is listened to (facets, the value path) is left as it is: hooks inside
    compiled code may not be heard.
    """
    import torch

    # It warns of a machine without CUDA, at every compilation for a CPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    compiled = 0
    for blocks in _stacks(network):
        heard: set[int] = set()
        if want.feature == "value" or want.facet != "token":
            heard = {layer % len(blocks) for layer in want.layers}
        for place, block in enumerate(blocks):
            if place not in heard:
                # Its forward and not its call: a hook on the block itself goes on hearing it.
                block.forward = torch.compile(block.forward, dynamic=False)
                compiled += 1
    return compiled


def is_failure(error: BaseException) -> bool:
    """Whether torch.compile could not do its work: no compiler, no Triton, a network it refuses."""
    import torch._dynamo.exc
    import torch._inductor.exc

    kinds = (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError)
    return isinstance(error, kinds)


def _stacks(network: nn.Module) -> Iterator[Sequence[Any]]:
    """Lists of blocks of one kind and shape, as a ViT has them; Swin's stages are of several."""
    from torch import nn

    for module in network.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            blocks = list(module)
            if len({_shape_of(block) for block in blocks}) == 1 and has_attention(blocks[0]):
                yield blocks


def _shape_of(block: nn.Module) -> tuple[Any, ...]:
    tensors = block.named_parameters()
    return (type(block), *((name, tuple(item.shape)) for name, item in tensors))
