"""open_clip's own files: architectures and the table of tags.

Read from the installed package without importing it, which would load torch.
"""

from __future__ import annotations
import __future__

import ast
import functools
import json
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def _package() -> Path | None:
    found = find_spec("open_clip")
    return Path(found.origin).parent if found and found.origin else None


@functools.cache
def architectures() -> dict[str, dict[str, Any]]:
    """ARCH → its configuration, as open_clip.list_models has them; empty without open_clip."""
    package, found = _package(), {}
    for file in sorted(package.glob("model_configs/*.json")) if package else ():
        config = json.loads(file.read_bytes())
        if {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
            found[file.stem] = config
    return found


@functools.cache
def tags() -> dict[str, dict[str, dict[str, Any]]]:
    """ARCH → tag → what it says: hub, url, mean, std, interpolation, resize_mode, quick_gelu.

    pretrained.py is a table with a few functions that fill it in: those are run, its imports of
    torch and the hub's client are not. Should that fail on another release, it is imported.
    """
    package = _package()
    if package is None:
        return {}
    path = package / "pretrained.py"
    kinds = (ast.Assign, ast.FunctionDef, ast.For, ast.Expr, ast.Import)
    try:
        tree = ast.parse(path.read_text("utf-8"))
        tree.body = [node for node in tree.body if isinstance(node, kinds)]
        room: dict[str, Any] = runpy.run_path(str(package / "constants.py"))
        postponed = __future__.annotations.compiler_flag
        exec(compile(tree, str(path), "exec", flags=postponed), room)
    except Exception:  # of a release that is written otherwise
        import importlib

        room = vars(importlib.import_module("open_clip.pretrained"))
    table: dict[str, dict[str, dict[str, Any]]] = room["_PRETRAINED"]
    return table
