"""Which featprep this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def read_version() -> str:
    try:
        return version("featprep")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0.1.0"
