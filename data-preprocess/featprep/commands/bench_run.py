"""`featprep encode` itself, end to end, as one of the contestants of `featprep bench`."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featprep import encoders
from featprep.bench.processes import Figures, Job, Ready
from featprep.bench.stages import config_of
from featprep.commands import encode_run


def make_run(job: Job) -> Ready:
    """Task run: the whole command but for its start-up, by its own clock, from the first image to
    the last line of its records."""
    load = functools.cache(encoders.load_encoder)

    def task(count: int) -> Figures:
        output = tempfile.mkdtemp(prefix="run-", dir=job.folder)
        try:
            with _loading(load):
                return _run(job, output, count)
        finally:
            shutil.rmtree(output, ignore_errors=True)

    return Ready({"run": task}, {})


def _run(job: Job, output: str, count: int) -> Figures:
    summary = f"{output}.json"
    code = encode_run.run(config_of(job, output, limit=count, summary=summary), "any")
    told = json.loads(Path(summary).read_text())
    os.unlink(summary)
    if code or told["encoded"] != count:
        raise RuntimeError(f"featprep encode: code {code}, {told['encoded']} of {count} encoded")
    return {
        "seconds": told["seconds"],
        "images": count,
        "images_per_s": count / told["seconds"],
        "busy": told["busy"],
    }


@contextmanager
def _loading(load: Callable[..., Any]) -> Iterator[None]:
    """Weights stay loaded from round to round, as every other contestant's do."""
    before = encoders.load_encoder
    encoders.load_encoder = load
    try:
        yield
    finally:
        encoders.load_encoder = before
