"""What `featprep bench` says: a head, a table, what else there was, and JSON."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

_COLUMNS, _LABEL, _TITLE = 100, 9, 38
Tree = Mapping[str, Any]


def print_report(report: Tree) -> None:
    for line in report_lines(report):
        print(line)


def report_lines(report: Tree) -> Iterator[str]:
    yield from _head(report)
    yield ""
    yield f"{'':<{_TITLE}} {'im./s':>7}  {'(min to max)':<16} others"
    yield from _ours(report)
    yield from _peers(report)
    yield ""
    yield from _tail(report)


def write_json(file: str, report: Tree) -> None:
    from featprep.stores.base import write_whole

    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_whole(os.path.abspath(file), [text.encode()])


def _line(label: str, text: str) -> str:
    return textwrap.fill(
        text, _COLUMNS, initial_indent=f"{label:<{_LABEL}} ", subsequent_indent=" " * (_LABEL + 1)
    )


def _head(report: Tree) -> Iterator[str]:
    settings, images = report["settings"], report["images"]
    yield _line("model", f"{report['model']}, weights {report['weights']}")
    torch = settings["versions"].get("torch", "unknown")
    yield _line("machine", f"{settings['device']}; torch {torch}")
    size = images["megapixels"]
    few = f", {images['different']} different" if images["different"] < images["count"] else ""
    yield _line(
        "images",
        f"{images['count']}{few}, {images['source']}: median {size['median']:.2f} megapixels "
        f"({size['low']:.2f} to {size['high']:.2f}), {images['mean_file_bytes'] / 1e3:.0f} kB; "
        "in memory (page cache)",
    )
    height, width = settings["size"]
    yield _line(
        "settings",
        f"{height}×{width}, compute {settings['compute']} ({settings['reason']}), stored "
        f"{settings['stored']}; batch {settings['batch_size']}, batches at a "
        f"time {settings['batches_at_a_time']}, threads of each {settings['threads']}",
    )
    rounds = settings["rounds"]
    few = "; fewer than three say little" if rounds < 3 else ""
    yield _line("rounds", f"{rounds}, everyone in turns, after a warm-up; medians{few}")
    yield _line("load", _load_text(report["others"]))


def _load_text(others: Tree) -> str:
    cores = others["cores"]
    text = (
        f"others kept {cores['median']:.2f} of the machine's {others['machine_cores']} cores busy "
        f"({cores['low']:.2f} to {cores['high']:.2f})"
    )
    return f"{text}: NOT a quiet machine" if others["is_disturbed"] else text


def _ours(report: Tree) -> Iterator[str]:
    limit, model, run = report["limit"], report["model_only"], report["end_to_end"]
    compute = report["settings"]["compute"]
    yield _row(
        f"limit: {limit['operation']} {compute}",
        limit,
        f"{limit['tflop_per_s']:.2f} TFLOP/s, {limit['arrangement']}",
    )
    yield _row("model alone", model, _share(model["share_of_limit"], " of limit"))
    yield f"{'stages, each alone':<{_TITLE}} {'core-ms':>7}  of an image"
    for name, stage in report["stages"].items():
        yield _row(f"  {name}", {"images_per_s": stage["core_ms"]}, "", digits=2)
    yield _row("ideal", report["ideal"], report["ideal"]["formula"])
    yield _row("end to end", run, _share(run["share_of_ideal"], " of ideal"))
    if report["others"]["is_disturbed"]:
        left = run["share_of_what_others_left"]
        yield _row("  of the ideal, of cores others left", {}, _share(left))


def _peers(report: Tree) -> Iterator[str]:
    if report["peers"]:
        yield f"{'instead of it':<{_TITLE}} {'':>7}  {'':<16} {'':>6} end to end is"
    for peer in report["peers"]:
        if "reason" in peer:
            yield f"  {peer['title']:<{_TITLE - 2}} failed: {peer['reason'][:55]}"
            continue
        times = peer["ours_over_it"]
        text = f"{times['median']:.2f}× ({times['low']:.2f} to {times['high']:.2f})"
        yield _row(f"  {peer['title']}", peer, text)


def _row(title: str, found: Tree, text: str, digits: int = 1) -> str:
    """`others`: the cores that other programs kept busy while this was measured."""
    middle = spread = others = ""
    if rate := found.get("images_per_s"):
        low, middle, high = (
            f"{rate[key]:,.{digits if rate[key] < 1000 else 0}f}"
            for key in ("low", "median", "high")
        )
        spread = f"({low} to {high})"
    if "cores_of_others" in found:
        others = f"{median(found['cores_of_others']):.2f}"
    return f"{title:<{_TITLE}} {middle:>7}  {spread:<16} {others:>6} {text}".rstrip()


def _share(share: Tree, of: str = "") -> str:
    return f"{share['median']:.2f}{of} ({share['low']:.2f} to {share['high']:.2f})"


def _tail(report: Tree) -> Iterator[str]:
    shapes = report["limit"]["shapes"]
    shown = ", ".join(f"{one['uses']}× {one['shape']}" for one in shapes[:4])
    more = f" and {len(shapes) - 4} more" if len(shapes) > 4 else ""
    yield _line("limit", f"{report['limit']['gflop_per_image']:.2f} GFLOP an image: {shown}{more}")
    memory = report["memory"]
    if memory:
        own, all_ = memory["peak_bytes"] / 1e9, memory["together_bytes"] / 1e9
        yield _line("memory", f"peak {own:.2f} GB; at work {all_:.2f} GB with its workers")
    if report["startup"]:
        yield _line("start-up", _startup_text(report["startup"]))


def _startup_text(found: Tree) -> str:
    first, bare, upstream = (
        found[f"{name}_s"]["median"] for name in ("encode", "bare", "upstream")
    )
    return (
        f"{first:.1f} s from the command to the first batch; torch and the weights bare "
        f"{bare:.1f} s ({found['over_bare']['median']:.2f}×), by their library {upstream:.1f} s "
        f"({found['over_upstream']['median']:.2f}×)"
    )
