"""Says what the interpreter that runs it lacks to run, test or check featprep. Imports none of it.

python scripts/_have.py [run] [test] [check]: exits 0, or prints what is lacking and exits 1. The
lists are pyproject.toml's. Older Pythons run this file too, to be told that they are too old.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# Distributions whose module bears another name. A module that is there without its distribution
# counts: OpenAI's own clip, opencv-python, what conda built.
MODULES = {
    "clip-anytorch": "clip",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "setuptools": "pkg_resources",
}
SHOWN = 5


def lacking(groups: list[str]) -> list[str]:
    """What `groups` ask for and this interpreter lacks."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    text = Path(__file__).resolve().parent.parent.joinpath("pyproject.toml").read_text("utf-8")
    project = tomllib.loads(text)["project"]
    version = ".".join(str(part) for part in sys.version_info[:3])
    if version not in SpecifierSet(project["requires-python"]):
        return [f"Python {project['requires-python']} (it is {version})"]
    lists = {"run": project["dependencies"], **project["optional-dependencies"]}
    wanted = [Requirement(line) for group in groups for line in lists[group]]
    return [gap for gap in map(_gap, wanted) if gap]


def _gap(wanted: Requirement) -> str:
    from importlib.metadata import PackageNotFoundError, version

    if wanted.marker and not wanted.marker.evaluate():
        return ""
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        name = wanted.name.lower()
        return "" if find_spec(MODULES.get(name, name.replace("-", "_"))) else wanted.name
    if wanted.specifier.contains(found, prereleases=True):
        return ""
    return f"{wanted.name}{wanted.specifier} (it has {found})"


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 (see above)
        print("Python 3.11 or newer (it is {}.{})".format(*sys.version_info[:2]))
        return 1
    if not find_spec("packaging"):  # transformers brings it: without it the rest is missing too
        print("what requirements.txt lists")
        return 1
    gaps = lacking(sys.argv[1:] or ["run"])
    if gaps:
        more = [f"{len(gaps) - SHOWN} more"] if len(gaps) > SHOWN else []
        print(", ".join(gaps[:SHOWN] + more))
    return 1 if gaps else 0


if __name__ == "__main__":
    raise SystemExit(main())
