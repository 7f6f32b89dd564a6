"""What a store is, and how a file appears in one piece. Knows no format and no encoder."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import xxhash

from featprep.errors import ImageError, OutputError
from featprep.naming import printable
from featprep.records import AnyArray, Result

# What is wrong with this one name or file; anything else is wrong with the output as a whole.
_IMAGE_ERRNOS = {
    errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
}  # fmt: skip
_TEMPORARY = ".fp-"
EVERYTHING = "all"  # the tag of a run that is not one of several shards

Parts = Iterable[bytes | memoryview]


class Written(NamedTuple):
    """What is recorded of a file: the xxh3-128 of its bytes, taken on their way out, and their
    number, which a later run compares without reading them."""

    digest: str  # 32 hex digits
    size: int


class Store(Protocol):
    """A context manager; what is visible in it is whole. Keys are "/"-separated."""

    def files(self, key: str) -> tuple[str, ...]:
        """Every file name, below the output, that is taken once a result of this key stands; the
        feature file is the last."""
        ...

    def write(self, key: str, result: Result) -> dict[str, Written]:
        """Write one result, the feature file last; returns what is recorded of each file.

        Raises ImageError(stage="store") where this key cannot be written, else OutputError.
        """
        ...

    def write_meta(self, key: str, meta: dict[str, Any]) -> dict[str, Written]:
        """Write the metadata alone."""
        ...

    def done(self, key: str) -> bool: ...

    def read(self, key: str) -> tuple[AnyArray, AnyArray | None, dict[str, Any] | None]:
        """(feature, mask, metadata); arrays are memory-mapped. Raises KeyError, and ValueError for
        a file that is damaged."""
        ...

    def keys(self) -> Iterator[str]: ...

    def remove(self, key: str) -> None:
        """Remove a result, its feature file first."""
        ...


def write_whole(path: str, parts: Parts, tag: str = EVERYTHING) -> Written:
    """Write under a short random name in the same folder, close, rename.

    Raises OutputError.
    """
    try:
        return put_whole(path, parts, tag)
    except OSError as error:
        raise output_error(path, error) from error


def put_whole(path: str, parts: Parts, tag: str) -> Written:
    """`write_whole`, with what the system says left as it is: OSError."""
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f"{_TEMPORARY}{tag}-{secrets.token_hex(6)}.tmp")
    try:
        return _write_and_rename(temporary, path, parts)
    except BaseException:
        _try_unlink(temporary)
        raise


def _write_and_rename(temporary: str, path: str, parts: Parts) -> Written:
    digest, size = xxhash.xxh3_128(), 0
    with os.fdopen(_create(temporary), "wb", buffering=0) as file:
        for part in parts:
            digest.update(part)
            size += write_all(file.fileno(), part)
    os.rename(temporary, path)
    return Written(digest.hexdigest(), size)


def _create(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:  # the first file of its folder
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    return os.open(path, flags, 0o666)


def write_all(descriptor: int, data: bytes | memoryview) -> int:
    """How many bytes they were."""
    left = memoryview(data)
    size = left.nbytes
    while left.nbytes:  # one write may stop short (2 GiB, a full disk)
        left = left[os.write(descriptor, left) :]
    return size


def _try_unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:  # the error that brought us here says what is wrong with the output
        return


def output_error(path: str, error: OSError, verb: str = "write") -> OutputError:
    """The one translation of what a system says about the output."""
    return OutputError(
        f"cannot {verb} {printable(path)}: {error.strerror or error}. Free space or mend the "
        "folder's permissions; the same command goes on from here"
    )


def check_writable(folder: str) -> None:
    """Raise OutputError if nothing can be written there, by writing: permissions alone do not tell
    (read-only disks, /proc). Leaves nothing behind."""
    there = os.path.abspath(folder)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    try:
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=there):
            pass
    except OSError as error:
        raise output_error(folder, error) from error


def result_error(path: str, error: OSError) -> ImageError | OutputError:
    """The same for a file of one result: some names and places are that image's trouble alone."""
    if error.errno in _IMAGE_ERRNOS:
        name, reason = printable(os.path.basename(path)), error.strerror or str(error)
        return ImageError(f"{name} cannot be written: {reason}", "store")
    return output_error(path, error)


def is_temporary(name: str, tag: str) -> bool:
    """Is this a file that a killed run of shard `tag` had not renamed? Shards leave each other's
    alone, since their writers may live; a run over everything has the output to itself."""
    prefix = _TEMPORARY if tag == EVERYTHING else f"{_TEMPORARY}{tag}-"
    return name.startswith(prefix) and name.endswith(".tmp")


def sweep(folder: str, tag: str) -> None:
    """Remove the temporary files of killed runs of `tag`. Only for who holds its lock."""
    try:
        left = [name for name in os.listdir(folder) if is_temporary(name, tag)]
        for name in left:
            os.unlink(os.path.join(folder, name))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise output_error(folder, error, "clean") from error
