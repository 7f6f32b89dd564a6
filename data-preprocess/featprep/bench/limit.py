"""The limit: how fast this machine does a model's own matrix products, and nothing else.

The products are those of one forward pass of our encoder in float32, seen as they are dispatched:
linear layers and convolutions, each shape with the number of its uses. What a network does between
them (attention, norms, activations) is left out, so no implementation of it can be faster.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featprep.bench.figures import total_seconds
from featprep.bench.processes import Figures
from featprep.encoders.torch_encoder import full_float32

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SECONDS = 0.8  # of a round, over all operations


@dataclass(frozen=True, slots=True)
class Linear:
    """(rows, inputs) @ (inputs, outputs), of one image."""

    rows: int
    inputs: int
    outputs: int

    @property
    def operation(self) -> str:
        return "F.linear"

    @property
    def flop(self) -> int:
        return 2 * self.rows * self.inputs * self.outputs

    def text(self, batch: int) -> str:
        return f"{batch * self.rows}×{self.inputs}×{self.outputs}"

    def call(self, batch: int, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
        import torch

        kind: Any = {"dtype": dtype, "device": device}
        pixels = torch.randn(batch * self.rows, self.inputs, **kind)
        weight = torch.randn(self.outputs, self.inputs, **kind)
        bias = torch.randn(self.outputs, **kind)
        return lambda: torch.nn.functional.linear(pixels, weight, bias)


@dataclass(frozen=True, slots=True)
class Conv:
    """`image`: (C, H, W); `weight`: (C out, C in / groups, height, width)."""

    image: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int

    @property
    def operation(self) -> str:
        return "F.conv2d"

    @property
    def flop(self) -> int:
        """As if every pixel of a `same` padding were there."""
        cells = 1
        for i in (0, 1):
            pad = self.padding if isinstance(self.padding, str) else 2 * self.padding[i]
            reach = self.dilation[i] * (self.weight[2 + i] - 1)
            added = {"same": reach, "valid": 0}[pad] if isinstance(pad, str) else pad
            cells *= (self.image[1 + i] + added - reach - 1) // self.stride[i] + 1
        outputs, inputs, height, width = self.weight
        return 2 * cells * outputs * inputs * height * width

    def text(self, batch: int) -> str:
        image = "×".join(map(str, (batch, *self.image)))
        return f"{image} by {'×'.join(map(str, self.weight))}"

    def call(self, batch: int, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
        import torch

        kind: Any = {"dtype": dtype, "device": device}
        pixels = torch.randn(batch, *self.image, **kind)
        weight = torch.randn(*self.weight, **kind)
        bias = torch.randn(self.weight[0], **kind)
        padding: Any = self.padding
        return lambda: torch.nn.functional.conv2d(
            pixels, weight, bias, self.stride, padding, self.dilation, self.groups
        )


Operation = Linear | Conv


def operations_of(run: Callable[[], Any]) -> Counter[Operation]:
    """The products of what `run` does on one image, and how often each is done."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: Counter[Operation] = Counter()
    base: Any = TorchDispatchMode

    class Watch(base):  # type: ignore[misc]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            name = func._schema.name.rpartition("::")[2]
            found.update(_seen(name, args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Watch():
        run()
    return found


def _seen(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Operation]:
    """Under inference_mode linear, matmul and conv2d arrive whole; else as addmm, mm and
    convolution. torch's own fused attention has its two products inside."""
    if name == "linear" or name.startswith("_linear_pointwise"):
        return [_linear(args[0], args[1].shape[0])]
    if name == "addmm":
        return [_linear(args[1], args[2].shape[1])]
    if name == "mm" or (name == "matmul" and args[1].ndim == 2):
        return [_linear(args[0], args[1].shape[1])]
    if name == "_native_multi_head_attention":
        return [_linear(args[0], 3 * args[3]), _linear(args[0], args[3])]
    if name in ("conv2d", "convolution"):
        return [_conv(name, args, kwargs)]
    return []


def _linear(inputs: Tensor, outputs: int) -> Linear:
    return Linear(inputs.numel() // inputs.shape[-1], inputs.shape[-1], outputs)


def _conv(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Conv:
    """conv2d(input, weight, bias, stride, padding, dilation, groups); convolution has two more
    before its groups."""
    said = dict(enumerate(args))
    last = 6 if name == "conv2d" else 8
    stride, padding, dilation = (
        kwargs.get(key, said.get(place, default))
        for key, place, default in (("stride", 3, 1), ("padding", 4, 0), ("dilation", 5, 1))
    )
    return Conv(
        tuple(args[0].shape[1:]),
        tuple(args[1].shape),
        _pair(stride),
        padding if isinstance(padding, str) else _pair(padding),
        _pair(dilation),
        int(kwargs.get("groups", said.get(last, 1))),
    )


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    both = (value,) if isinstance(value, int) else tuple(value)
    return both * 2 if len(both) == 1 else both


class Limit:
    """Measures the products of a model in batches, in one precision, on one device."""

    def __init__(
        self, operations: Counter[Operation], batch: int, compute: str, device: str, cores: int
    ) -> None:
        self.operations, self.batch, self.compute = operations, batch, compute
        self.device, self.cores = device, cores if device == "cpu" else 1

    def about(self) -> Figures:
        """The heaviest shapes first."""
        weights = {one: one.flop * count for one, count in self.operations.items()}
        order = sorted(weights, key=lambda one: -weights[one])
        return {
            "operation": " + ".join(dict.fromkeys(one.operation for one in order)),
            "gflop_per_image": sum(weights.values()) / 1e9,
            "shapes": [
                {
                    "operation": one.operation,
                    "shape": one.text(self.batch),
                    "uses": self.operations[one],
                    "share_of_flop": weights[one] / max(1, sum(weights.values())),
                }
                for one in order
            ],
        }

    def measure(self, count: int = 0) -> Figures:
        """Images/s: with every call on all cores, with a call a core, and the better of the two."""
        rates = {"all cores": self._rate(1)}
        if self.cores > 1:
            rates["one a core"] = self._rate(self.cores)
        best = max(rates, key=lambda name: rates[name])
        return {"images_per_s": rates[best], "arrangement": best, "arrangements": rates}

    def _rate(self, hands: int) -> float:
        """`hands` threads at a time, each with its own batch and its share of the cores."""
        import torch

        threads, together = torch.get_num_threads(), threading.Barrier(hands)

        def work(_: int) -> float:
            if self.device == "cpu":
                torch.set_num_threads(max(1, self.cores // hands))
            together.wait()
            return self.batch / self._seconds()

        with ThreadPoolExecutor(hands) as pool:
            rates = list(pool.map(work, range(hands)))
        torch.set_num_threads(threads)
        return sum(rates)

    def _seconds(self) -> float:
        """Of a batch: every product, as often as a forward pass has it."""
        import torch

        each, dtype = [], getattr(torch, self.compute)
        with torch.inference_mode(), full_float32():
            for one in self.operations:
                call = one.call(self.batch, dtype, self.device)
                call()
                each.append(self._mean(call, _SECONDS / len(self.operations)))
        return total_seconds(each, list(self.operations.values()))

    def _mean(self, call: Callable[[], object], least_s: float) -> float:
        done, began = 0, time.perf_counter()
        while True:
            call()
            done += 1
            self._wait()
            passed = time.perf_counter() - began
            if passed >= least_s and done > 1:
                return passed / done

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)
