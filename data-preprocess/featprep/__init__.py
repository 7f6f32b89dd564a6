"""featprep: folders of images → dense feature maps of frozen vision encoders.

    import featprep
    maps = featprep.encode(images, model="facebook/dinov2-base", size=448)
    with featprep.open("features/") as run:
        feature, mask, meta = run["a/b"]
    extract = featprep.pipeline("image-feature-extraction", "facebook/dinov2-base")
    vector = extract("cat.png", pool="mean")

Importing this loads nothing heavy: each name below is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featprep.api import encode
    from featprep.runs import open_run as open
    from featprep.tasks import pipeline

# name for users → (module, name there). No module bears one of these names: importing it would
# rebind the attribute.
_EXPORTS = {
    "encode": ("featprep.api", "encode"),
    "open": ("featprep.runs", "open_run"),
    "pipeline": ("featprep.tasks", "pipeline"),
}

__all__ = ["encode", "open", "pipeline"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("featprep.version").read_version()
    if name not in _EXPORTS:
        raise AttributeError(f"module 'featprep' has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    own = {"Any", "TYPE_CHECKING", "annotations", "import_module"}
    return sorted({*globals(), *__all__, "__version__"} - own)
