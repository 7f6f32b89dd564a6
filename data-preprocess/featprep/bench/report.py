"""Rounds of raw figures → what is told: a tree of plain values, which is the JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, mode
from typing import Any

from featprep.bench.figures import STAGES, Cost, ideal_rate, ratios, spread
from featprep.bench.processes import Figures

DISTURBED = 0.05  # share of the machine's cores that others kept busy, from which it is said


@dataclass(slots=True)
class Rounds:
    """What was measured: for each contestant's task its figures, one a round, and the cores that
    other programs kept busy meanwhile. `failed`: contestant → reason."""

    figures: dict[str, list[Figures]] = field(default_factory=dict)
    others: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, figures: Figures, others: float) -> None:
        self.figures.setdefault(name, []).append(figures)
        self.others.setdefault(name, []).append(others)

    def rates(self, name: str) -> list[float]:
        return [figures["images_per_s"] for figures in self.figures[name]]


def summarise(rounds: Rounds, about: Mapping[str, Any], peers: Mapping[str, str]) -> Figures:
    """`about`: what the process of our parts said of itself. `peers`: key → title."""
    device = "cpu" if str(about["device"]).startswith("cpu") else "accelerator"
    stages = _stages(rounds.figures["stages"])
    ideals = _ideals(rounds.figures["stages"], about["cores"], device)
    run = rounds.rates("run")
    return {
        "limit": _limit(rounds, about["limit"]),
        "model_only": _rates(rounds, "model")
        | {"share_of_limit": asdict(spread(ratios(rounds.rates("model"), rounds.rates("limit"))))},
        "stages": stages,
        "ideal": {
            "formula": _FORMULAS[device],
            "images_per_s": asdict(spread(ideals)),
        },
        "end_to_end": _rates(rounds, "run")
        | {
            "share_of_ideal": asdict(spread(ratios(run, ideals))),
            "share_of_model_only": asdict(spread(ratios(run, rounds.rates("model")))),
            "share_of_what_others_left": asdict(
                spread(ratios(run, _left(ideals, rounds.others["run"], about["cores"])))
            ),
            "busy": [figures["busy"] for figures in rounds.figures["run"]],
        },
        "peers": [_peer(rounds, key, title, run) for key, title in peers.items()],
        "others": _others(rounds, about["machine_cores"]),
    }


_FORMULAS = {
    "cpu": "cores / sum of core-s",
    "accelerator": "1 / max(device s, core-s / cores)",
}


def _rates(rounds: Rounds, name: str) -> Figures:
    rates = rounds.rates(name)
    others = rounds.others[name]
    return {"images_per_s": asdict(spread(rates)), "rounds": rates, "cores_of_others": others}


def _limit(rounds: Rounds, about: Mapping[str, Any]) -> Figures:
    rates = _rates(rounds, "limit")
    each = [figures["arrangements"] for figures in rounds.figures["limit"]]
    return {
        **about,
        **rates,
        "arrangement": mode(figures["arrangement"] for figures in rounds.figures["limit"]),
        "arrangements": {name: asdict(spread([one[name] for one in each])) for name in each[0]},
        "tflop_per_s": rates["images_per_s"]["median"] * about["gflop_per_image"] / 1e3,
    }


def _stages(each: Sequence[Figures]) -> Figures:
    return {
        name: {
            f"{kind}_ms": asdict(spread([1e3 * one["stages"][name][f"{kind}_s"] for one in each]))
            for kind in ("core", "wall")
        }
        for name in STAGES
    }


def _ideals(each: Sequence[Figures], cores: int, device: str) -> list[float]:
    costs = [{name: Cost(**cost) for name, cost in one["stages"].items()} for one in each]
    return [ideal_rate(one, cores, device) for one in costs]


def _left(ideals: Sequence[float], others: Sequence[float], cores: int) -> list[float]:
    """The ideal of the cores that others left, a tenth of a core at least."""
    pairs = zip(ideals, others, strict=True)
    return [ideal * max(0.1, cores - taken) / cores for ideal, taken in pairs]


def _peer(rounds: Rounds, key: str, title: str, run: Sequence[float]) -> Figures:
    head = {"key": key, "title": title}
    if key in rounds.failed:
        return {**head, "reason": rounds.failed[key]}
    times = asdict(spread(ratios(run, rounds.rates(key))))
    loader = rounds.figures[key][-1].get("loader", {})
    return {**head, **_rates(rounds, key), "ours_over_it": times, "loader": loader}


def _others(rounds: Rounds, machine_cores: int) -> Figures:
    everything = [taken for each in rounds.others.values() for taken in each]
    return {
        "machine_cores": machine_cores,
        "cores": asdict(spread(everything)),
        "is_disturbed": median(everything) > DISTURBED * machine_cores,
    }


def startup(each: Mapping[str, Sequence[float]]) -> Figures:
    """`each`: encode, bare and upstream → seconds, one a round."""
    told = {f"{name}_s": asdict(spread(seconds)) for name, seconds in each.items()}
    for name in ("bare", "upstream"):
        told[f"over_{name}"] = asdict(spread(ratios(each["encode"], each[name])))
    return told
