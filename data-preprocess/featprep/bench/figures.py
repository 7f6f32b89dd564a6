"""What the seconds mean: medians, paired ratios, shares, the ideal. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

STAGES = ("read", "decode", "preprocess", "encode", "write")


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one figure over the rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one stage, for one image: seconds of processor time in all threads, and of the clock."""

    core_s: float
    wall_s: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


def ratios(left: Sequence[float], right: Sequence[float]) -> list[float]:
    """Round by round: what drifts with the machine moves both sides of a pair alike."""
    return [ours / theirs for ours, theirs in zip(left, right, strict=True)]


def ideal_rate(costs: Mapping[str, Cost], cores: float, device: str = "cpu") -> float:
    """Images/s if no core ever waited: cores / Σ core-seconds of an image.

    On an accelerator two things work at a time, and the busier one decides: the device, for as long
    as a batch takes there, and the cores, which do all the rest.
    """
    if device == "cpu":
        return cores / sum(cost.core_s for cost in costs.values())
    on_host = sum(cost.core_s for name, cost in costs.items() if name != "encode")
    return 1 / max(costs["encode"].wall_s, on_host / cores)


def total_seconds(each: Sequence[float], uses: Sequence[int]) -> float:
    """Of a model's operations, each weighted by how often one forward pass uses it."""
    return sum(seconds * count for seconds, count in zip(each, uses, strict=True))


def foreign_cores(busy_s: float, own_s: float, wall_s: float) -> float:
    """Cores that other programs, or the host of a virtual machine, kept busy; `busy_s`: of all."""
    return max(0.0, busy_s - own_s) / wall_s
