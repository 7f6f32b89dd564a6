"""The embedding of patches on a CPU, which is one matrix product over them, packed as such.

oneDNN's convolution takes two to four times as long for it. Knows no architecture.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from featprep.encoders import packed_layers

if TYPE_CHECKING:
    from torch import nn

_SMALLEST = 8  # of a patch; ConvNeXt's steps between stages are smaller, and as fast as they are


def pack(network: nn.Module) -> None:
    """Every bfloat16 nn.Conv2d whose patches neither overlap nor leave a gap. The weight stays
    beside its packed copy: it is small, and models read its type before each call."""
    from torch import nn

    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and packed_layers.is_ours(module.weight)
            and _is_of_patches(module)
        ):
            packed: Any = module
            packed.packed = packed_layers.reorder(module.weight.flatten(1))
            packed.__class__ = _packed_class()


def _is_of_patches(conv: nn.Conv2d) -> bool:
    one_by_one = conv.kernel_size == conv.stride and min(conv.kernel_size) >= _SMALLEST
    has_edge = conv.padding not in ((0, 0), "valid")
    return one_by_one and not has_edge and conv.dilation == (1, 1) and conv.groups == 1


@cache
def _packed_class() -> Any:
    from torch import Tensor, nn

    class PackedPatches(nn.Conv2d):
        packed: Tensor

        def forward(self, input: Tensor) -> Tensor:
            """(B, C, H, W) → (B, C out, rows, columns), what does not fill a patch left out."""
            if input.is_meta or input.ndim != 4:
                return super().forward(input)
            (batch, channels), (height, width) = input.shape[:2], self.kernel_size
            rows, columns = input.shape[2] // height, input.shape[3] // width
            whole = input[:, :, : rows * height, : columns * width]
            patches = whole.reshape(batch, channels, rows, height, columns, width)
            flat = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
            cells = packed_layers.product(flat, self.packed, self.bias)
            return cells.view(batch, rows, columns, -1).permute(0, 3, 1, 2)

    return PackedPatches
