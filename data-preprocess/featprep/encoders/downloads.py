"""Downloads: whether they are open, that they give up in seconds, what stopped them; and files with
a published address. Knows no hub.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from featprep.encoders.base import ModelName
from featprep.encoders.digests import kept_sha256
from featprep.encoders.weights import Found, one_line
from featprep.errors import WeightsError

TIMEOUT_S = 15  # urllib has none of its own: an address that never answers would hang for minutes
UNFINISHED = ".featprep-"  # what the temporary names begin with
UNFINISHED_FOR_S = 3600
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE closes all weight downloads."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def carry_over(name: ModelName) -> str:
    """What to type where there is a network."""
    return f"featprep fetch {name} --to DIR, where there is a network, writes it"


def published_file(
    name: ModelName, url: str, sha256: str, cache: Path, download: Callable[[str, str], str]
) -> Found:
    """A file whose address holds its sha256, or the beginning of it: from its library's cache, else
    downloaded by its library's own `download(url, folder)`, which checks it."""
    target = cache / url.rsplit("/", 1)[-1]
    if target.is_file() and (there := kept_sha256(target)).startswith(sha256):
        return Found(target, (target,), f"{cache.name} cache", sha256={target.name: there})
    way_out = (
        f"put {target.name} from {url} into {cache}, or give --model {name}=FILE ("
        f"{carry_over(name)})"
    )
    if is_offline():
        state = "is not the published file" if target.is_file() else "is not there"
        raise WeightsError(
            f"{name}: {target} {state} and HF_HUB_OFFLINE closes downloads; unset it, {way_out}"
        )
    try:
        with quiet():
            _into(cache, target, url, download)
    except Exception as error:  # urllib's, tqdm's, the disk's and the library's own checksum error
        reason = why_not_written(error, cache) or f"download failed ({one_line(error)})"
        raise WeightsError(f"{name}: {reason}; {way_out}") from error
    return Found(
        target, (target,), f"downloaded from {url}", sha256={target.name: kept_sha256(target)}
    )


def sweep(folder: Path) -> None:
    """Remove what downloads and copies into `folder` left when they were killed."""
    for path in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            newest = max(part.stat().st_mtime for part in (path, *path.glob("*")))
            if time.time() - newest < UNFINISHED_FOR_S:  # still being written
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _into(cache: Path, target: Path, url: str, download: Callable[[str, str], str]) -> None:
    """The library writes under the final name from the first byte on: elsewhere, then moved."""
    cache.mkdir(parents=True, exist_ok=True)
    sweep(cache)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=cache) as folder:
        os.replace(download(url, folder), target)


def why_not_written(error: BaseException, folder: Path | str) -> str:
    """What keeps a download from its folder, or "" if something else went wrong."""
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "errno", None) in _FULL or "No space left" in str(seen):
            return f"no room left in {folder}: free some"
        if isinstance(seen, OSError) and str(seen.filename).startswith(str(folder)):
            return f"cannot use {folder} ({seen.strerror}: {seen.filename}): make it writable"
        seen = seen.__cause__ or seen.__context__
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Downloads that give up in seconds, and say so in our words alone; progress bars stay."""
    hub_log, timeout = logging.getLogger("huggingface_hub"), socket.getdefaulttimeout()
    level = hub_log.level
    hub_log.setLevel(logging.CRITICAL)
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub_log.setLevel(level)
        socket.setdefaulttimeout(timeout)
