"""Copies of an encoder's files in a folder to carry: whole under their final names, or not there.

FAMILY:NAME=PATH loads them. Knows no network: the files lie in their library's cache by then.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from featprep.encoders import downloads, weights
from featprep.encoders.base import ModelName
from featprep.encoders.weights import Found
from featprep.errors import OutputError, WeightsError

Find = Callable[[ModelName], Found]


def standing(name: ModelName, to: Path, find: Find) -> Found | None:
    """What an earlier copy left in `to`, if it is whole."""
    for path in (path for path in sorted(to.glob("*")) if _is_ours(path, name)):
        try:
            found = find(replace(name, path=str(path)))
            if found.weights and not any(map(weights.is_cut_off, found.weights)):
                return found
        except (WeightsError, OSError):  # no weights in it
            continue
    return None


def copy(name: ModelName, found: Found, to: Path) -> Found:
    """Copy the files into `to`, configurations first: where the weights are, all is.

    Raises OutputError; what it interrupts leaves no half file, and the same copy goes on.
    """
    is_folder = found.path.is_dir()
    target = to / (stem(name) if is_folder else stem(name) + found.path.suffix)
    try:
        folder = target if is_folder else to
        folder.mkdir(parents=True, exist_ok=True)
        downloads.sweep(folder)
        copied = [_copy(file, target / file.name if is_folder else target) for file in found.files]
    except OSError as error:
        raise OutputError(
            f"--to {to}: cannot write {target} ({error.strerror}); what is whole stays, and the "
            "same command goes on"
        ) from error
    count = len(found.others)
    return Found(target, tuple(copied[count:]), found.origin, tuple(copied[:count]), found.sha256)


def _copy(file: Path, target: Path) -> Path:
    if target.is_file() and filecmp.cmp(file, target, shallow=False):  # of an interrupted copy
        return target
    handle, temporary = tempfile.mkstemp(prefix=downloads.UNFINISHED, dir=target.parent)
    os.close(handle)
    try:
        shutil.copyfile(file, temporary)
        shutil.copymode(file, temporary)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return target


def stem(name: ModelName) -> str:
    """FAMILY--ID, as the hub's cache names its folders: `/` and `:` become `--`."""
    return re.sub("[/:]", "--", str(name))


def _is_ours(path: Path, name: ModelName) -> bool:
    own = stem(name)
    suffixes = (".safetensors", ".bin", ".pt", ".pth")
    return path.name == own if path.is_dir() else path.name in {own + end for end in suffixes}
