"""What the network saw of an image of a run, made again from the source by the run's geometry."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import replace

from featprep.decoding import DecodeRules, prepare
from featprep.geometry import Geometry
from featprep.images import CUT_SHORT
from featprep.records import Failure, ImageRef, UInt8
from featprep.runs import Run


def network_pixels(run: Run, key: str) -> UInt8 | Failure:
    """(3, H, W), or why not, with the path that was opened as its source."""
    line = run.record(key)
    there = run.fingerprint  # runs of older versions have fewer fields
    names = [item.name for item in dataclasses.fields(Geometry) if item.name in there]
    geometry = Geometry.from_dict({name: there[name] for name in names})
    source = line["source"] if line else key
    path = _source_path(run.input, source)
    is_lenient = CUT_SHORT in (line or {}).get("notes", ())
    is_fast = bool(there.get("fast_decode"))
    rules = DecodeRules(geometry, allow_truncated=is_lenient, fast=is_fast)
    outcome = prepare(ImageRef(key, source, path, 0, 0), rules)
    return replace(outcome, source=path) if isinstance(outcome, Failure) else outcome.pixels


def _source_path(root: str, source: str) -> str:
    """Where a source stands: below an input folder, beside a list or by its absolute path, or it
    is the one image of the input."""
    if os.path.isdir(root):
        return os.path.join(root, source)
    if not root.lower().endswith(".txt"):
        return root
    beside = os.path.join(os.path.dirname(root), source)
    return beside if os.path.exists(beside) else "/" + source
