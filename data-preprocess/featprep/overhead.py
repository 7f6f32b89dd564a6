"""What an encoder adds to its bare upstream module: our encode against it, on the same batch.

Ours takes uint8 and gives numpy maps; upstream's gets the same batch on the device, normalised, and
its result is thrown away. Measures; asserts nothing and prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from featprep.certify_cases import generate_images
from featprep.encoders import load_encoder
from featprep.encoders.base import ComputeDtype, Encoder, LoadOptions, ModelName, Want
from featprep.records import UInt8
from featprep.references import open_reference
from featprep.references.base import normalised

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds of each round, a pair of runs right after each other. `added`: what ours takes more,
    as a share of upstream's, one a round."""

    compute: str
    batch: int
    size: tuple[int, int]
    ours: tuple[float, ...]
    bare: tuple[float, ...]

    @property
    def added(self) -> list[float]:
        return [ours / bare - 1 for ours, bare in zip(self.ours, self.bare, strict=True)]

    @property
    def median(self) -> float:
        return median(self.added)


def measure_overhead(
    name: ModelName,
    compute: ComputeDtype,
    *,
    batch: int = 8,
    rounds: int = 9,
    size: tuple[int, int] | None = None,
) -> Overhead:
    """A/B in turns, the first of each pair changing, on generated images of `size`, by default the
    native one. Holds two models: ours and upstream's."""
    import torch

    encoder = load_encoder(name, LoadOptions(compute=compute))
    height, width = size or encoder.spec.native_size
    pixels = generate_images(batch, height, width)
    reference = open_reference(name)
    tensor = normalised(pixels, reference.mean, reference.std).to(getattr(torch, compute))
    runs = {"ours": _ours(encoder, pixels), "bare": _bare(reference.bare(compute), tensor)}
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for run in runs.values():  # caches, thread pools, packed weights
        run()
    for number in range(rounds):
        for side in ("ours", "bare") if number % 2 else ("bare", "ours"):
            start = time.perf_counter()
            runs[side]()
            seconds[side].append(time.perf_counter() - start)
    return Overhead(compute, batch, (height, width), *(tuple(seconds[side]) for side in runs))


def _ours(encoder: Encoder, pixels: UInt8) -> Callable[[], Any]:
    return lambda: encoder.encode(pixels, Want())


def _bare(module: Callable[[Tensor], Any], pixels: Tensor) -> Callable[[], Any]:
    def run() -> None:
        import torch

        with torch.inference_mode():
            module(pixels)

    return run
