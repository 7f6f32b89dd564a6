"""What an encoding run says before and after its work, of one encoder or of several."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from featprep import devices, encoders
from featprep.commands.console import counted, say, shape_text, size_text, time_text
from featprep.commands.encode_parts import Part
from featprep.config import FIELDS, EncodeConfig
from featprep.naming import printable
from featprep.recording import Recorder
from featprep.resolve import Resolved, by_patch, resolve
from featprep.runner import Lane, Totals
from featprep.session import Session
from featprep.sources import Census
from featprep.standing import count_changed
from featprep.stores.base import write_whole


def print_plan(config: EncodeConfig, parts: Sequence[Part]) -> None:
    """Of several encoders each has its lines, and the bytes of all of them a last one."""
    print(f"input       {_input_text(config, parts[0].census)}")
    total = 0
    for part in parts:
        census, (changed, damaged) = part.census, count_changed(part.store, part.source)
        missing = census.images - census.done
        count = census.images if config.overwrite else missing + changed + damaged
        again = f", {changed:,} of images that changed since" if changed else ""
        again += f", {damaged:,} damaged" if damaged else ""
        text, size = _planned_bytes(part, count)
        total = -1 if size is None or total < 0 else total + size
        if part.title:
            print(f"encoder     {part.title}")
        print(f"there       {census.done:,} results{again}; {missing:,} missing")
        if part.to_remove:
            print(f"to remove   {part.to_remove:,} results of other settings: all that there are")
        print(f"to write    {text}")
    if len(parts) > 1 and total >= 0:
        print(f"in all      {size_text(total)} in {len(parts)} folders of {config.output}")
    print("collisions  none")


def introduce(config: EncodeConfig, parts: Sequence[Part]) -> None:
    """The first lines of a run: encoders, device, input, each choice with its reason."""
    if config.quiet:
        return
    for part in parts:
        _introduce_encoder(part)
    done = sum(part.census.done for part in parts)
    each = [part.session.resolved.bytes_per_image(config.save_meta) for part in parts]
    size = sum((n or 0) * part.left for n, part in zip(each, parts, strict=True))
    to_write = f", {size_text(size)} to write" if all(each) else ""
    several = f" for {len(parts)} encoders" if len(parts) > 1 else ""
    middle = f"{several}, {done:,} done before{to_write}"
    say("input", _input_text(config, parts[0].census, middle))


def unit_of(parts: Sequence[Part]) -> str:
    """What is counted: an image gives a result for each encoder."""
    return "results" if len(parts) > 1 else "images"


def _introduce_encoder(part: Part) -> None:
    session = part.session
    spec, resolved = session.encoder.spec, session.resolved
    shape = resolved.map_shape or (resolved.channels, "h", "w")
    size = "×".join(map(str, resolved.geometry.size or ())) or "each image's own size"
    if resolved.tiling:
        size += f" in windows of {'×'.join(map(str, resolved.tiling.tile))}"
    layers = ",".join(map(str, resolved.layers))
    taken = f"  layer {layers}" if part.config.layer != (-1,) else ""
    for name in ("feature", "facet", "norm"):
        value = getattr(part.config, name)
        taken += f"  {name} {value}" if value != FIELDS[name].default else ""
    weights = f"weights {session.encoder.digest[:8]} ({session.encoder.origin})"
    folder = f"  in {part.title}/" if part.title else ""
    title = f"{spec.name}  ({', '.join(map(str, shape))}) at {size}{taken}  {weights}{folder}"
    say("encoder", title)
    if spec.meaningless:
        say("", "tiny has seeded random weights: its features carry no meaning")
    say("device", _device_text(session))


def _device_text(session: Session) -> str:
    precision, hands = session.precision, session.hands
    at_a_time = f", {hands.count} at a time ({hands.reason})" if hands.count > 1 else ""
    compiled = f", compiled ({session.compile_reason})" if session.compiled else ""
    return (
        f"{devices.device_title(session.device)}  compute {precision.compute} "
        f"({precision.reason}), stored {precision.storage}; "
        f"batch {session.batch_size} ({session.batch_reason}){at_a_time}{compiled}"
    )


def _input_text(config: EncodeConfig, census: Census, middle: str = "") -> str:
    shard = f" in shard {config.shard[0]}/{config.shard[1]}" if config.shard else ""
    ignored = ", ".join(f"{n:,} {printable(s)}" for s, n in census.ignored.most_common(6))
    passed = f"; ignored: {ignored}" if ignored else ""
    return f"{printable(config.input)}  {counted(census.images, 'image')}{shard}{middle}{passed}"


def _planned_bytes(part: Part, missing: int) -> tuple[str, int | None]:
    """The line, and the bytes where they can be known."""
    config, name, spec = part.config, part.name, encoders.describe(part.name)
    if spec is None:
        return f"{missing:,} results; their size is known once the weights are read", None
    storage = "float16" if config.fp16 else "float32"
    resolved = resolve(config, spec, storage, by_patch(spec), is_plain=name.is_plain)
    each = resolved.bytes_per_image(config.save_meta)
    if each is None:
        return f"{missing:,} results; each image's size decides", None
    shape = shape_text((resolved.channels, *(resolved.geometry.grid or ())))
    what = f"{missing:,} × {shape} {storage}{_further_text(resolved)}"
    return f"{size_text(missing * each)}: {what}, {size_text(each)} each", missing * each


def _further_text(resolved: Resolved) -> str:
    """What a result holds beside its first map and its mask."""
    grid = resolved.geometry.grid or ()
    texts = [f"@{n} {shape_text((c, *grid))}" for n, c in resolved.more_channels.items()]
    texts += [name for name in resolved.vector_sizes if name != "empty"]
    return "".join(f", {text}" for text in texts)


def close(
    config: EncodeConfig,
    parts: Sequence[Part],
    lanes: Sequence[Lane],
    recorders: Sequence[Recorder],
    totals: Totals,
) -> None:
    """The closing lines, and --summary."""
    verb = "stopped" if totals.stopped else "done"
    skipped = sum(recorder.skipped for recorder in recorders)
    for part, lane, recorder in zip(parts, lanes, recorders, strict=True):
        failed = f", {lane.failed:,} failed"
        if lane.failed:
            failed += f": {printable(recorder.ledger.failures_path)}"
        title = f"{part.title}: " if part.title else ""
        say(verb, f"{title}{lane.encoded:,} encoded, {recorder.skipped:,} skipped{failed}")
        for (note,), count in recorder.noted.counts().items():
            say("noted", f"{title}{count:,} × {printable(note)}")
    if len(parts) > 1:
        what = f"{totals.encoded:,} encoded, {skipped:,} skipped, {totals.failed:,} failed"
        say("in all", f"{what}, of {len(parts)} encoders")
    say("time", time_text(totals, unit_of(parts)))
    if totals.stopped:
        say("", "the same command goes on from here")
    if config.summary:
        _write_summary(config.summary, parts, lanes, recorders, totals)


def _write_summary(
    path: str,
    parts: Sequence[Part],
    lanes: Sequence[Lane],
    recorders: Sequence[Recorder],
    totals: Totals,
) -> None:
    """One encoder's figures stand at the top; of several, each one's stand below `encoders`."""
    rows = zip(parts, lanes, recorders, strict=True)
    each = {part.title: _figures(part, lane, recorder) for part, lane, recorder in rows}
    figures = each.pop("", {}) | {
        "images": parts[0].census.images,
        "encoded": totals.encoded,
        "skipped": sum(recorder.skipped for recorder in recorders),
        "failed": totals.failed,
        "ignored": dict(parts[0].census.ignored),
        "stopped": totals.stopped,
        "seconds": round(totals.wall_s, 3),
        f"{unit_of(parts)}_per_s": round(
            (totals.encoded + totals.failed) / max(totals.wall_s, 1e-9), 3
        ),
        "busy": {name: round(share, 4) for name, share in totals.busy().items()},
        "peak_memory_bytes": peak_memory(),
        **({"encoders": each} if each else {}),
    }
    text = json.dumps(figures, indent=1) + "\n"
    write_whole(os.path.abspath(path), [text.encode()])


def _figures(part: Part, lane: Lane, recorder: Recorder) -> dict[str, Any]:
    session, size = part.session, part.session.resolved.geometry.size
    return {
        "encoder": session.encoder.spec.name,
        "images": part.census.images,
        "encoded": lane.encoded,
        "skipped": recorder.skipped,
        "failed": lane.failed,
        "notes": {note: count for (note,), count in recorder.noted.counts().items()},
        "batch_size": session.batch_size,
        "size": list(size) if size else None,
    }


def peak_memory() -> dict[str, int]:
    """Peak resident bytes of this process and of the largest that it started: of those that have
    ended, as the system counts them, and of those that live."""
    unit = 1 if sys.platform == "darwin" else 1024
    own, child = (
        resource.getrusage(who).ru_maxrss * unit
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    living = (process.pid for process in psutil.Process().children(recursive=True))
    return {"main": own, "worker": max([child, *map(_peak_of, living)])}


def _peak_of(pid: int) -> int:
    """0 where the system does not tell it of others."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
