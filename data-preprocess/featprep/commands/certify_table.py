"""What `featprep certify` says: a line a model, a line a comparison, JSON, and the exit code."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from featprep.devices import library_versions
from featprep.naming import printable

if TYPE_CHECKING:
    from featprep.certify import Verdict
    from featprep.overhead import Overhead

_WIDEST = 40  # of a longer name, the middle is left out; --json has it whole
_COLUMNS = 100
_SHOWN = 5  # comparisons outside tolerance, without --verbose
_SHORT = {"bfloat16": "bf16", "float16": "fp16"}
_LINE = "{:<4} {:<{width}} {:>8} {:<9} {:>7} {:>8}  {}"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What became of one model. `reason`: why there are no verdicts, or what stands for them."""

    name: str
    status: Literal["ok", "FAIL", "none"]
    verdicts: Sequence[Verdict] = ()
    seconds: float = 0.0
    reason: str = ""


def print_head(names: Iterable[str], reduced: Sequence[str]) -> int:
    """Returns the width of the names. `reduced`: the precisions that are compared; of several the
    worst is shown."""
    width = min(_WIDEST, max(map(len, names)))
    half = "/".join(_SHORT[one] for one in reduced)
    titles = ("", "model", "fp32 max", half, "1st pct", "neighb.", "nearest to its bound")
    print(_LINE.format(*titles, width=width))
    return width


def print_row(done: Certificate, width: int, is_verbose: bool) -> None:
    name = _shortened(done.name, width)
    if not done.verdicts:
        print(f"{done.status:<4} {name:<{width}} {_reason(done, is_verbose)}", flush=True)
        return
    worst = max(done.verdicts, key=lambda verdict: verdict.share)
    against = [item for item in done.verdicts if not item.is_own]
    near = [item.difference.max_abs for item in against if item.rule == "close"]
    far = [item.difference for item in against if item.rule == "aligned"]
    own = [item.difference.max_abs for item in done.verdicts if item.rule == "equal"]
    cells = (
        f"{max(near):.1e}" if near else "",
        _cosine(item.cosine for item in far) + "*" * _is_unstable(done),
        _cosine(item.low_cosine for item in far),
        ("same" if max(own) == 0 else f"{max(own):.1e}") if own else "",
    )
    line = _LINE.format(done.status, name, *cells, worst.case.text(worst.part), width=width)
    print(_cut(line), flush=True)
    broken = [verdict for verdict in done.verdicts if not verdict.is_within]
    for verdict in done.verdicts if is_verbose else broken[:_SHOWN]:
        print(_cut(_comparison(verdict)), flush=True)


def _is_unstable(done: Certificate) -> bool:
    return any(verdict.movement and verdict.is_within for verdict in done.verdicts)


def _shortened(name: str, width: int) -> str:
    head = width // 3
    return name if len(name) <= width else f"{name[:head]}…{name[head + 1 - width :]}"


def _cut(line: str) -> str:
    return line if len(line) <= _COLUMNS else f"{line[: _COLUMNS - 1]}…"


def _reason(done: Certificate, is_verbose: bool) -> str:
    """Of weights that are to be fetched the words are long, and the same for every model."""
    is_absent = done.status == "none" and "featprep fetch " in done.reason
    return "no weights" if is_absent and not is_verbose else printable(done.reason)


def _cosine(found: Iterable[float]) -> str:
    """The least, rounded down: 0.99999 is never told of what is less."""
    least = min(found, default=None)
    return "" if least is None else f"{int(least * 1e5) / 1e5:.5f}"


def _comparison(verdict: Verdict) -> str:
    found, status = verdict.difference, "ok" if verdict.is_within else "FAIL"
    return (
        f"  {status:<4} {verdict.case.text(verdict.part):<36} "
        f"max {found.max_abs:.1e}  relative {found.relative:.1e}  cosine {found.cosine:.6f}"
    )


def print_closing(done: Sequence[Certificate], seconds: float, reduced: Sequence[str]) -> None:
    if any(item.verdicts for item in done):
        print(_bounds(reduced))
    counts = {
        status: sum(item.status == status for item in done) for status in ("ok", "FAIL", "none")
    }
    compared = sum(len(item.verdicts) for item in done)
    without = f", {counts['none']} without weights (see --random)" if counts["none"] else ""
    print(
        f"{counts['ok']} of {len(done)} certified, {counts['FAIL']} failed{without}; {compared:,} "
        f"comparisons in {seconds:.0f} s, at most {_peak_gb():.1f} GB of memory"
    )
    if any(map(_is_unstable, done)):
        print("* unstable: rounding its weights alone moves upstream's own map by a tenth of that")


def _bounds(reduced: Sequence[str]) -> str:
    from featprep.certify import LEAST_COSINE, TOLERANCE

    return (
        f"bounds: float32 within {TOLERANCE:.0e} × max(1, rms of upstream's); "
        f"{' and '.join(reduced)} cosine of a map at least {LEAST_COSINE}"
    )


def _peak_gb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)  # bytes there, kilobytes elsewhere


def exit_code(done: Sequence[Certificate]) -> int:
    if any(item.status == "FAIL" for item in done):
        return 1
    return 0 if any(item.status == "ok" for item in done) else 2


def write_json(
    file: str, done: Sequence[Certificate], seconds: float, settings: Mapping[str, Any]
) -> None:
    from featprep.stores.base import write_whole
    from featprep.version import read_version

    content = {
        "featprep": read_version(),
        "versions": library_versions(),
        **settings,
        "seconds": round(seconds, 1),
        "models": [_as_json(item) for item in done],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_whole(os.path.abspath(file), [text.encode()])


def _as_json(done: Certificate) -> dict[str, Any]:
    comparisons = [
        {
            "what": verdict.case.text(verdict.part),
            "batch": verdict.case.batch,
            "rule": verdict.rule,
            "within": verdict.is_within,
            "movement": verdict.movement,
            # JSON has no inf: what has no likeness at all has no figures
            **{
                key: item if item < 1e300 else None
                for key, item in asdict(verdict.difference).items()
            },
        }
        for verdict in done.verdicts
    ]
    head = {"model": done.name, "status": done.status, "seconds": round(done.seconds, 1)}
    return {**head, "reason": done.reason, "comparisons": comparisons}


def print_overhead(name: str, found: Overhead) -> None:
    ours, bare = (1000 * median(times.wall) for times in (found.ours, found.bare))
    size = "×".join(map(str, (found.batch, *found.size)))
    print(
        f"{name} {found.compute} {size}: upstream {bare:.0f} ms, ours {ours:.0f} ms\n"
        f"  added, median of {len(found.added)} pairs: {_spread(found.added)}, of processor time "
        f"{_spread(found.added_cpu)}",
        flush=True,
    )


def _spread(shares: Sequence[float]) -> str:
    low, high = (100 * side(shares) for side in (min, max))
    return f"{100 * median(shares):+.1f} % ({low:+.1f} to {high:+.1f})"
