"""clip's rule of reduced precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def cast(visual: nn.Module, dtype: Any) -> None:
    """To compute precision as clip's convert_weights: norms and embeddings stay float32."""
    from torch import nn

    for module in visual.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            module.to(dtype)
    proj: Any = getattr(visual, "proj", None)
    if proj is not None:
        proj.data = proj.data.to(dtype)
