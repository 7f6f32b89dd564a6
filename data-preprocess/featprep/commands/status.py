"""`featprep status OUT`: how far an output is, in which settings, and who works on it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from featprep.commands.console import size_text
from featprep.commands.flags import Parser
from featprep.naming import printable
from featprep.runs import outputs_in
from featprep.status import Status, read_status

SHOWN_REASONS = 10
_SETTINGS = (
    *("layer", "feature", "facet", "norm", "resize", "size", "tile", "grid", "background", "mask"),
    *("compute", "storage", "deterministic"),
)

_DESCRIPTION = """Sum up an output: images done, failed, pending; settings, size, who works there.

  featprep status features/
  featprep status features/ --json     with the whole fingerprint"""


def make_parser() -> Parser:
    parser = Parser("featprep status", _DESCRIPTION)
    parser.add_argument("output", metavar="OUT", help="the folder that runs wrote")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    return parser


def main(argv: Sequence[str]) -> int:
    flags = make_parser().read(argv)
    found = {title: read_status(output) for title, output in outputs_in(flags.output)}
    if flags.json:
        print(
            json.dumps({title or ".": _plain(status) for title, status in found.items()}, indent=1)
        )
        return 0
    for title, status in found.items():
        _tell(title or flags.output, status)
    return 0


def _plain(status: Status) -> dict[str, Any]:
    failures = [
        {"stage": stage, "reason": reason, "count": count}
        for (stage, reason), count in status.failures.items()
    ]
    notes = {note: count for (note,), count in status.notes.items()}
    plain = asdict(replace(status, failures=Counter(), notes=Counter()))
    return {**plain, "failures": failures, "notes": notes}


def _tell(title: str, status: Status) -> None:
    there = status.fingerprint
    rows = [
        ("output", f"{title}  {status.files:,} files, {size_text(status.size)}"),
        ("encoder", f"{there.get('encoder')}  weights {str(there.get('weights'))[:8]}"),
        ("settings", _settings_text(there)),
        ("device", _device_text(status.about)),
        ("input", f"{status.input}  {_input_text(status)}"),
        *_failed_rows(status),
        *(("noted", f"{count:,} × {note}") for (note,), count in status.notes.items()),
        ("results", f"{status.results:,} recorded, {_when(status.last)}"),
        ("at work", "; ".join(status.holders) or "nobody"),
    ]
    for label, text in rows:
        print(f"{label:<8} {printable(text)}")


def _device_text(about: dict[str, Any]) -> str:
    compiled = ", compiled" if about.get("compile") else ""
    return f"{about.get('device')}  batch {about.get('batch_size')}{compiled}"


def _settings_text(fingerprint: dict[str, Any]) -> str:
    texts = [
        f"{name} {_value(fingerprint[name])}"
        for name in _SETTINGS
        if fingerprint.get(name) is not None
    ]
    switches = ("prefix", "pooled", "masked_pool", "fast_decode")
    return "  ".join([*texts, *(name for name in switches if fingerprint.get(name))])


def _value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _input_text(status: Status) -> str:
    images = status.images
    if images is None:
        return f"pending images are not known: {status.trouble}"
    again = f", {images.again:,} to be made again" if images.again else ""
    count = images.done + images.again + images.failed + images.pending
    return (
        f"{count:,} images: {images.done:,} done{again}, {images.failed:,} failed, "
        f"{images.pending:,} pending"
    )


def _failed_rows(status: Status) -> list[tuple[str, str]]:
    rows = [
        ("failed", f"{count:,} × {stage}: {reason}")
        for (stage, reason), count in status.failures.items()
    ]
    more = len(rows) - SHOWN_REASONS
    return rows[:SHOWN_REASONS] + ([("failed", f"… {more:,} more reasons")] if more > 0 else [])


def _when(seconds: float | None) -> str:
    if seconds is None:
        return "none yet"
    return "the last one " + time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
