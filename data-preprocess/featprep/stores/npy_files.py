"""The files of the npy store, each writer beside its reader: .npy, .npz and JSON.

Readers take nothing for granted: they raise ValueError for what is damaged, and OSError where the
system cannot read. Only headers as NumPy writes them for plain numbers are parsed at all; NumPy's
own parser warns, allocates by what a header claims, and lets nearly any exception through.
"""

from __future__ import annotations

import functools
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from featprep.records import AnyArray
from featprep.stores.base import Parts

FEATURE = ".npy"
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say: bytes must not hold the hour
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '[<>|=][biuf]\d{1,2}', 'fortran_order': (False|True), "
    rb"'shape': \([\d, ]{0,200}\), \} *\n"
)

Header = tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]


def npy(array: AnyArray) -> Parts:
    """The bytes of an .npy file, the data as they lie in memory."""
    array = np.asarray(array, order="C")
    return _header(array.dtype, array.shape), array.data.cast("B")


@functools.lru_cache(maxsize=64)
def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header, array = io.BytesIO(), np.broadcast_to(np.zeros((), dtype), shape)
    described = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(header, {**described, "fortran_order": False})
    return header.getvalue()


def read_array(path: str) -> AnyArray:
    """An .npy file, memory-mapped. Raises ValueError if it is none or not whole."""
    try:
        with Path(path).open("rb") as file:
            shape, order, dtype = _read_header(file)
            return np.memmap(file, dtype, "r", file.tell(), shape, order)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{path} is no whole .npy file: {_why(error)}") from error


def npz(arrays: Mapping[str, AnyArray]) -> Parts:
    """The bytes of an .npz file, the same for the same arrays: stored, without dates."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}{FEATURE}", _ZIP_EPOCH)
            member.create_system, member.external_attr = 3, 0o644 << 16  # Unix, on any system
            file.writestr(member, b"".join(npy(array)))
    return (archive.getvalue(),)


def read_npz(path: str) -> dict[str, AnyArray]:
    """An .npz file's arrays. Raises ValueError if it is none or not whole."""
    data = Path(path).read_bytes()
    try:
        return dict(_members(data))
    except MemoryError:
        raise
    except Exception as error:  # a zip whose offsets are wrong raises OSError too
        raise ValueError(f"{path} is no whole .npz file: {_why(error)}") from error


def read_json(path: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError if it is none."""
    try:
        loaded = json.loads(Path(path).read_bytes())
    except RecursionError:
        loaded = None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds no JSON object")
    return loaded


def _why(error: Exception) -> str:
    """Its first words: zipfile and mmap quote what they choke on, which may be the whole file."""
    text = str(error) or type(error).__name__
    return text if len(text) <= 120 else text[:119] + "…"


def _members(data: bytes) -> Iterator[tuple[str, AnyArray]]:
    """Name and array of each; together no more than the archive, which no bomb is."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it is compressed, and featprep stores")
        if sum(member.file_size for member in members) > len(data):
            raise ValueError("it claims more than it holds")
        for member in members:
            yield member.filename.removesuffix(FEATURE), _array_in(archive.read(member))


def _array_in(data: bytes) -> AnyArray:
    file = io.BytesIO(data)
    shape, order, dtype = _read_header(file)
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError("an array in it is not as long as its header says")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order=order).copy()


def _read_header(file: IO[bytes]) -> Header:
    lead = file.read(len(_MAGIC) + 2)
    if not lead.startswith(_MAGIC):
        raise ValueError("it does not begin as one")
    text = file.read(int.from_bytes(lead[-2:], "little"))
    if not _HEADER.fullmatch(text):
        raise ValueError("its header is damaged or of another kind than featprep writes")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(lead[-2:] + text))
    return shape, "F" if is_fortran else "C", dtype
