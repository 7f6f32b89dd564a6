"""Modules as their classes make them, without the time it takes to fill their tensors: a checkpoint
is put in right afterwards.

As `torch.device("meta")`, under which a first random number imports torch's compiler (1.7 s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any


def unfilled() -> AbstractContextManager[Any]:
    """Inside, new parameters keep what lay in their memory, and the dtype they were made with.

    Nothing is drawn, copied into them or cast; what `fill_` or a computation makes is as ever.
    """
    import torch
    from torch import Tensor
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    # The casts would touch every page, and their results are thrown away as well.
    left_out: set[Any] = {
        *(Tensor.normal_, Tensor.uniform_, Tensor.copy_, Tensor.half, Tensor.float),
        *(init.kaiming_uniform_, init.normal_, init.uniform_),  # a mode does not see inside these
    }
    drawn: set[Any] = {torch.rand, torch.randn}

    class Unfilled(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Iterable[Any],
            args: tuple[Any, ...] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            named = kwargs or {}
            if func in left_out:
                return args[0] if args else named["tensor"]
            return (torch.empty if func in drawn else func)(*args, **named)

    return Unfilled()
