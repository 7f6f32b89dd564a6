"""What an encoder adds to its bare upstream module: our encode against it, on the same batch.

Ours takes uint8 and gives numpy maps; upstream's gets the same batch on the device, normalised, and
its result is thrown away. Measures; asserts nothing and prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featprep.certify_cases import generate_images
from featprep.encoders import load_encoder
from featprep.encoders.base import Encoder, EncoderSpec, LoadOptions, ModelName, Want
from featprep.records import UInt8
from featprep.references import open_reference
from featprep.references.base import normalised

if TYPE_CHECKING:
    from torch import Tensor


_SIDE = 224


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each round. `cpu`: of all threads, which other programs on the machine disturb
    less than `wall`; of a GPU's work it tells nothing."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Overhead:
    """A round is a pair of runs right after each other."""

    compute: str
    batch: int
    size: tuple[int, int]
    ours: Times
    bare: Times

    @property
    def added(self) -> list[float]:
        """What ours takes more, as a share of upstream's, one a round."""
        return _shares(self.ours.wall, self.bare.wall)

    @property
    def added_cpu(self) -> list[float]:
        return _shares(self.ours.cpu, self.bare.cpu)


def _shares(ours: tuple[float, ...], bare: tuple[float, ...]) -> list[float]:
    return [left / right - 1 for left, right in zip(ours, bare, strict=True)]


def measure_overhead(
    name: ModelName,
    options: LoadOptions,
    *,
    batch: int = 8,
    rounds: int = 9,
    size: tuple[int, int] | None = None,
) -> Overhead:
    """A/B in turns, the first of each pair changing, on generated images of `size`, by default
    224×224. Holds two models: ours and upstream's."""
    import torch

    encoder, device, compute = load_encoder(name, options), options.device, options.compute
    height, width = size or _usual_size(encoder.spec)
    pixels = generate_images(batch, height, width)
    reference = open_reference(name, quick_gelu=options.quick_gelu)
    module = reference.bare(compute)
    for part in vars(reference).values():
        if isinstance(part, torch.nn.Module):
            part.to(device)
    tensor = normalised(pixels, reference.mean, reference.std).to(device, getattr(torch, compute))
    runs = {"ours": _ours(encoder, pixels), "bare": _bare(module, tensor)}
    for run in runs.values():  # caches, thread pools, packed weights
        run()
    taken: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}
    for number in range(rounds):
        for side in ("ours", "bare") if number % 2 else ("bare", "ours"):
            wall, cpu = time.perf_counter(), time.process_time()
            runs[side]()
            taken[side].append((time.perf_counter() - wall, time.process_time() - cpu))
    ours, bare = (Times(*zip(*taken[side], strict=True)) for side in ("ours", "bare"))
    return Overhead(compute, batch, (height, width), ours, bare)


def _usual_size(spec: EncoderSpec) -> tuple[int, int]:
    return spec.native_size if spec.fixed_size else (_SIDE // spec.patch * spec.patch,) * 2


def _ours(encoder: Encoder, pixels: UInt8) -> Callable[[], Any]:
    return lambda: encoder.encode(pixels, Want())


def _bare(module: Callable[[Tensor], Any], pixels: Tensor) -> Callable[[], Any]:
    def run() -> None:
        import torch

        with torch.inference_mode():
            module(pixels)
        if pixels.is_cuda:  # ours has its maps on the host when it returns
            torch.cuda.synchronize(pixels.device)

    return run
