"""Optional parts: what each one needs beside requirements.txt, and how to get it.

The lists are those of pyproject.toml; a test holds the two together.
"""

from __future__ import annotations

import importlib
from typing import Any

from featprep.errors import UsageError

# extra → what pip is asked for
EXTRAS = {
    "vectors": ("pyarrow>=18.1",),
    "retrieval": ("pymilvus>=3.0", "milvus-lite>=3.2"),
}


def need(module: str, extra: str, asked: str, instead: str = "") -> Any:
    """Import `module` of an optional part. `asked`: what the user typed that needs it; `instead`:
    what does without. Raises UsageError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # it is there, and something that it needs itself is not
        packages = " ".join(f"'{package}'" for package in EXTRAS[extra])
        raise UsageError(
            f"{asked}: needs {module.partition('.')[0]}, which is not installed; type: pip install "
            f"{packages} (or, in the project's folder, pip install '.[{extra}]'){instead}"
        ) from error
