"""What a store is, and how a file appears in one piece. Knows no format and no encoder."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import xxhash

from featprep.errors import ImageError, OutputError
from featprep.naming import printable
from featprep.records import AnyArray, Result

# What is wrong with this one name or file; anything else is wrong with the output as a whole.
_IMAGE_ERRNOS = {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ENOTDIR}
_TEMPORARY = ".fp-"
EVERYTHING = "all"  # the tag of a run that is not one of several shards


class Store(Protocol):
    """A context manager; what is visible in it is whole. Keys are "/"-separated."""

    def files(self, key: str) -> tuple[str, ...]:
        """Every file a result of this key writes, below the output; the feature file is the last."""
        ...

    def write(self, key: str, result: Result) -> dict[str, str]:
        """Write one result, the feature file last; returns file → xxh3-128 hex digest."""
        ...

    def write_meta(self, key: str, meta: dict[str, Any]) -> dict[str, str]:
        """Write the metadata alone."""
        ...

    def done(self, key: str) -> bool: ...

    def read(self, key: str) -> tuple[AnyArray, AnyArray | None, dict[str, Any] | None]:
        """(feature, mask, metadata); arrays are memory-mapped. Raises KeyError."""
        ...

    def keys(self) -> Iterator[str]: ...

    def remove(self, key: str) -> None:
        """Remove a result, its feature file first."""
        ...


def write_whole(path: str, parts: Sequence[bytes | memoryview], tag: str = EVERYTHING) -> str:
    """Write under a short random name in the same folder, close, rename; returns the xxh3-128.

    Raises ImageError(stage="store") where the name itself is impossible, else OutputError.
    """
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f"{_TEMPORARY}{tag}-{secrets.token_hex(6)}.tmp")
    digest = xxhash.xxh3_128()
    try:
        os.makedirs(folder, exist_ok=True)
        _write_and_rename(temporary, path, parts, digest)
    except OSError as error:
        _unlink(temporary)
        raise output_error(path, error) from error
    except BaseException:
        _unlink(temporary)
        raise
    return digest.hexdigest()


def _write_and_rename(
    temporary: str, path: str, parts: Sequence[bytes | memoryview], digest: xxhash.xxh3_128
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    with os.fdopen(os.open(temporary, flags, 0o666), "wb", buffering=0) as file:
        for part in parts:
            digest.update(part)
            _write_all(file.fileno(), memoryview(part))
    os.rename(temporary, path)


def _write_all(descriptor: int, data: memoryview) -> None:
    while data.nbytes:  # one write may stop short (2 GiB, a full disk)
        data = data[os.write(descriptor, data) :]


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError:  # the error that brought us here says what is wrong with the output
        return


def output_error(path: str, error: OSError) -> ImageError | OutputError:
    """The one translation of what a system says about writing `path`."""
    reason = error.strerror or str(error)
    if error.errno in _IMAGE_ERRNOS:
        return ImageError(
            f"{printable(os.path.basename(path))} cannot be written: {reason}", "store"
        )
    return OutputError(
        f"cannot write {printable(path)}: {reason}. Free space or mend the folder's permissions; "
        "the same command goes on from here"
    )


def is_temporary(name: str, tag: str) -> bool:
    """Is this a file that a killed run of shard `tag` had not renamed? Shards leave each other's
    alone, since their writers may live; a run over everything has the output to itself."""
    prefix = _TEMPORARY if tag == EVERYTHING else f"{_TEMPORARY}{tag}-"
    return name.startswith(prefix) and name.endswith(".tmp")
