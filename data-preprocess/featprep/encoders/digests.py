"""What identifies weights: sha256 over the tensors used, kept, so that gigabytes are hashed once.

Knows no architecture and no network. What is kept lies in the user's cache folder, one small file
an entry; lacking, damaged or not writable, it costs the hashing and never a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Less is hashed in 50 ms, and stand-ins in temporary folders would fill the cache.
KEPT_FROM = 50_000_000  # bytes
_SAMPLE = 16  # values of a tensor
_RULE = "tensors 1"  # of `_digest`: what was kept by another rule is not found
_COUNTER = "num_batches_tracked"
_SHA256 = re.compile("[0-9a-f]{64}")


def digest(
    tensors: Mapping[str, Tensor], settings: Mapping[str, object], files: Iterable[Path] = ()
) -> str:
    """sha256 over names, shapes and float32 values of the tensors used, and over `settings`.

    Neither the container nor its precision counts, nor where it lies: the same numbers have the
    same digest from the hub's cache, a copy, shards or one file. The counter of a BatchNorm does
    not count either: training alone reads it, and not every file has it. `files`: what the tensors
    were read from; while those stand unchanged (real path, size, time), the values are not hashed
    again.
    """
    tensors = {key: item for key, item in tensors.items() if not key.endswith(_COUNTER)}
    outline = json.dumps(dict(settings), sort_keys=True)
    size = sum(4 * tensor.numel() for tensor in tensors.values())
    stamps = _stamps(files) if size >= KEPT_FROM else []
    if not stamps:
        return _digest(tensors, outline)
    entry = _entry(_RULE, outline, *stamps, _sketch(tensors))
    found = _read(entry)
    if found is None:
        found = _digest(tensors, outline)
        _keep(entry, found)
    return found


def _digest(tensors: Mapping[str, Tensor], outline: str) -> str:
    def fingerprint(name: str) -> str:
        tensor = tensors[name].detach().cpu().float()
        content = hashlib.sha256(tensor.flatten().numpy().data).hexdigest()
        return f"{name} {tuple(tensor.shape)} {content}\n"

    total = hashlib.sha256(outline.encode())
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        for line in pool.map(fingerprint, sorted(tensors)):
            total.update(line.encode())
    return total.hexdigest()


def _sketch(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and a few values of every tensor.

    Fine-tuned weights have the size of the original, and unpackers and images of containers set one
    time for all: without a look at the values the digest of other weights could be taken for ours.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        values = tensor.reshape(-1)[:: max(1, tensor.numel() // _SAMPLE)].cpu().float()
        total.update(f"{name} {tuple(tensor.shape)}\n".encode())
        total.update(values.numpy().tobytes())
    return total.hexdigest()


# --- of files


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept_sha256(path: Path) -> str:
    """`file_sha256`, kept by real path, size and time. Not for what decides whether code may run:
    who can replace a file can set its time."""
    stamps = _stamps([path])
    if not stamps or path.stat().st_size < KEPT_FROM:
        return file_sha256(path)
    entry = _entry("file", *stamps)
    found = _read(entry)
    if found is None:
        found = file_sha256(path)
        _keep(entry, found)
    return found


def hub_sha256(files: Iterable[Path]) -> dict[str, str]:
    """File → the hub's own sha256, of those that have one in its cache: no byte is read.

    There a large file is a link into blobs/, to what bears its sha256 as its name. The link's first
    step alone tells: blobs may themselves be links, into a store that names files otherwise.
    """
    known = {}
    for file in files:
        with contextlib.suppress(OSError):  # no link
            target = Path(os.readlink(file))
            if target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
                known[file.name] = target.name
    return known


# --- what is kept


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/featprep/digests, by default in ~/.cache; None where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # to be passed over, says its specification
        base = os.path.expanduser("~/.cache")
    return Path(base, "featprep", "digests") if os.path.isabs(base) else None


def _stamps(files: Iterable[Path]) -> list[str]:
    """What a file shows of itself without being read; [] if one cannot be asked."""
    stamps = []
    try:
        for file in files:
            real = os.path.realpath(file)
            seen = os.stat(real)
            stamps.append(f"{real} {seen.st_size} {seen.st_mtime_ns}")
    except OSError:
        return []
    return stamps


def _entry(*parts: str) -> Path | None:
    folder = cache_folder()
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return folder / f"{key}.json" if folder else None


def _read(entry: Path | None) -> str | None:
    try:
        found: str = json.loads(entry.read_bytes())["sha256"] if entry else ""
        return found if _SHA256.fullmatch(found) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _keep(entry: Path | None, sha256: str) -> None:
    if entry is None:
        return
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        # Under a name of its own first: other processes see whole entries or none.
        handle, temporary = tempfile.mkstemp(dir=entry.parent, prefix=".", suffix=".tmp")
        try:
            with open(handle, "w") as file:
                json.dump({"sha256": sha256}, file)
            os.replace(temporary, entry)
        except OSError:
            os.unlink(temporary)
            raise
