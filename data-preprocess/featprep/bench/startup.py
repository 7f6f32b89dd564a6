"""From the command to the first encoded batch, against what nobody can do without: a new process
that imports torch and reads the same weights, and one that has their library load its own model.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from featprep import encoders
from featprep.bench.processes import HandError, Job

_HOUSE = Path(__file__).resolve().parent.parent.parent
_WAIT_S = 0.005
_BARE = """\
import sys
import torch
for path in sys.argv[1:]:
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file
        held = {key: item.clone() for key, item in load_file(path).items()}
    else:
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
        except RuntimeError:  # OpenAI's archives
            held = torch.jit.load(path, map_location="cpu").state_dict()
"""
_UPSTREAM = """\
import sys
from featprep.encoders.base import ModelName
from featprep.references import open_reference
open_reference(ModelName(sys.argv[1], sys.argv[2], sys.argv[3] or None))
"""


def seconds_to_first_batch(job: Job, words: Sequence[str]) -> float:
    """`words`: of a featprep command that writes into `job.folder`, where the first feature file
    must appear."""
    shutil.rmtree(job.folder, ignore_errors=True)
    began = time.perf_counter()
    process = _start(["-m", "featprep", *words])
    try:
        while not _has_result(job.folder):
            if process.poll() is not None and not _has_result(job.folder):
                raise HandError(f"featprep encode ended with code {process.returncode}")
            time.sleep(_WAIT_S)
        seconds = time.perf_counter() - began
        process.wait()
    finally:
        process.kill()
        process.wait()
    return seconds


def bare_seconds(job: Job) -> float:
    """import torch, and every tensor of the weights in memory of its own."""
    files = [str(path) for path in encoders.find_weights(job.name).weights]
    return _seconds(["-c", _BARE, *files])


def upstream_seconds(job: Job) -> float:
    """The library that the model is from: its import, its class, its loader."""
    name = job.name
    return _seconds(["-c", _UPSTREAM, name.family, name.id, name.path or ""])


def _seconds(words: Sequence[str]) -> float:
    began = time.perf_counter()
    process = _start(words)
    if process.wait():
        raise HandError(f"python {words[0]} … ended with code {process.returncode}")
    return time.perf_counter() - began


def _start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    paths = [str(_HOUSE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _has_result(folder: str) -> bool:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return False
    return any(name.endswith(".npy") and not name.endswith("_mask.npy") for name in names)
