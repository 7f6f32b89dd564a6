"""The directions of the house: who imports whom, read from the source; what a start-up loads."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "data-preprocess"

# From the ground up: a module imports from its own layer and from those that stand before it here.
# "encoders.*" are all modules of that folder; the first layer that names a module has it.
# encoders.base is plain data and a protocol: what an encoder is, for those who never see one.
LAYERS = {
    "plain data": [
        "records", "config", "settings", "errors", "naming", "version", "extras", "encoders.base",
        "differences", "python_words", "tallies",
    ],
    "images": [
        "images", "image_files", "image_kinds", "pixels", "deep_samples", "codec_state",
        "fast_decoding", "geometry", "masks", "pooling", "devices",
    ],
    "parts": ["encoders.*", "references.*", "stores.*", "sources", "ledger", "journal", "lock"],
    "pipeline": [
        "decoding", "decode_pool", "batching", "runner", "recording", "standing", "resolve",
        "session", "tasks.*",
        "certify", "certify_cases", "overhead", "published", "bench.*", "show", "runs",
        "verify", "verify_result", "aside", "status", "replay", "api",
    ],
    "commands": ["commands.*"],
    "faces": ["cli", "__main__", ""],
}  # fmt: skip
HEAVY = {"torch", "torchvision", "transformers", "clip", "open_clip", "timm", "ray", "cv2"}


@dataclass(frozen=True)
class Import:
    """`target`: the dotted name, which may end in an attribute. `when`: load, call or types."""

    module: str
    target: str
    line: int
    when: str

    def __str__(self) -> str:
        return f"featprep.{self.module}, line {self.line}: {self.target}"


def modules() -> dict[str, ast.Module]:
    """Name below the package ("" is the package itself) → its syntax tree."""
    found = {}
    for path in sorted((HOUSE / "featprep").rglob("*.py")):
        parts = path.relative_to(HOUSE / "featprep").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"))
    return found


MODULES = modules()


def imports_of(module: str) -> Iterator[Import]:
    yield from _imports_in(module, MODULES[module], "load")


def _imports_in(module: str, node: ast.AST, when: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(module, name.name, child.lineno, when) for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"featprep.{module}, line {child.lineno}: relative import"
            for name in child.names:
                yield Import(module, f"{child.module}.{name.name}", child.lineno, when)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports_in(module, child, "types")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports_in(module, child, "call" if when == "load" else when)
        else:
            yield from _imports_in(module, child, when)


def own_module(target: str) -> str | None:
    """The module of ours that `target` leads to ("" is the package itself), or None."""
    first, *rest = target.split(".")
    if first != "featprep":
        return None
    while rest and ".".join(rest) not in MODULES:
        rest.pop()
    return ".".join(rest)


def layer_of(module: str) -> int:
    parent, _, _ = module.partition(".")
    for number, members in enumerate(LAYERS.values()):
        if module in members or f"{parent}.*" in members:
            return number
    raise AssertionError(
        f"featprep.{module} has no layer: name it in LAYERS of test_layers.py, as low as it fits"
    )


def own_imports() -> list[tuple[Import, str]]:
    found = [(item, own_module(item.target)) for name in MODULES for item in imports_of(name)]
    return [(item, target) for item, target in found if target is not None]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_layer(module: str) -> None:
    assert layer_of(module) >= 0


def test_nothing_imports_upward() -> None:
    upward = [
        f"{item} (layer {list(LAYERS)[layer_of(target)]})"
        for item, target in own_imports()
        if layer_of(target) > layer_of(item.module) and item.module != ""
    ]
    assert upward == []


def test_no_two_modules_import_each_other() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for item, target in own_imports():
        if item.when != "types" and target != item.module:
            graph[item.module].add(target)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_nothing_but_the_entry_points_imports_cli() -> None:
    users = {item.module for item, target in own_imports() if target == "cli"}
    assert users == {"__main__"}


def test_encoders_and_stores_never_see_each_other() -> None:
    rooms = {"encoders": "stores", "stores": "encoders"}
    sights = [
        str(item)
        for item, target in own_imports()
        if rooms.get(item.module.partition(".")[0]) == target.partition(".")[0]
    ]
    assert sights == []


def test_references_know_nothing_of_our_encoders_but_what_an_encoder_is() -> None:
    """A certificate that runs our own code on both sides proves nothing."""
    seen = {
        target
        for item, target in own_imports()
        if item.module.partition(".")[0] == "references"
        if target.partition(".")[0] != "references"
    }
    assert seen == {"encoders.base", "records"}


def test_no_module_imports_a_name_of_the_package_itself() -> None:
    """`from featprep import images` leads to a module; `from featprep import open` does not."""
    assert [str(item) for item, target in own_imports() if target == ""] == []


def test_no_module_bears_the_name_of_a_function_of_the_package() -> None:
    assert {"encode", "open", "pipeline"}.isdisjoint(MODULES)


def test_heavy_libraries_are_imported_inside_the_functions_that_use_them() -> None:
    early = [
        str(item)
        for name in MODULES
        for item in imports_of(name)
        if item.when == "load" and item.target.partition(".")[0] in HEAVY
    ]
    assert early == []


def test_only_the_command_line_prints_or_exits() -> None:
    loud = []
    for name, tree in MODULES.items():
        if layer_of(name) >= list(LAYERS).index("commands"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.exit",
                "exit",
            ):
                loud.append(f"featprep.{name}, line {node.lineno}: {ast.unparse(node)}")
            if isinstance(node, ast.Raise) and "SystemExit" in ast.unparse(node):
                loud.append(f"featprep.{name}, line {node.lineno}: {ast.unparse(node)}")
    assert loud == []


def test_nothing_beside_the_entry_scripts_could_shadow_a_library() -> None:
    allowed = {"encode_with_clip", "encode_with_dino", "image_vectorizer", "featprep"}
    assert {path.stem for path in HOUSE.iterdir() if path.suffix in (".py", "")} - {
        "__pycache__", ".mypy_cache", ".ruff_cache",
    } <= allowed  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """The heavy libraries in memory after `code` ran in an interpreter of its own."""
    ending = f"import json, sys; print(json.dumps(sorted({HEAVY} & set(sys.modules))))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{ending}"],
        env={**os.environ, "PYTHONPATH": str(HOUSE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import featprep") == set()


def test_a_decoding_process_loads_nothing_heavy() -> None:
    assert loaded_by("import featprep.decoding") == set()


def test_a_plan_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    words = [
        "--input",
        f"{tmp_path}/in",
        "--output",
        f"{tmp_path}/out",
        "--plan",
        "--model",
        "tiny",
    ]
    assert loaded_by(f"from featprep.cli import main_encode\nmain_encode('dino', {words})") == set()


@pytest.mark.parametrize(
    "words",
    [
        ["encode", "--model=hf:tiny", "--input=IN", "--output=OUT"],
        ["vectorize", "--models=hf:tiny", "--image_path=IN", "--output=OUT/v.npy"],
        ["classify", "IN", "--model=clip:tiny", "--labels=a,b"],
    ],
    ids=lambda words: str(words[0]),
)
def test_a_command_has_torchs_threads_sleep_before_it_imports_torch(
    words: list[str], tmp_path: Path
) -> None:
    """Or they spin: on two busy cores classify went at 2.6 images/s, and asleep at 24."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    places = {"IN": f"{tmp_path}/in", "OUT": f"{tmp_path}/out"}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    code = (
        "from featprep import cli, devices\n"
        "class Slept(BaseException): pass\n"
        "def sleep(): raise Slept\n"
        "devices.let_threads_sleep = sleep\n"
        f"try: cli.main({words})\n"
        "except Slept: pass\n"
        "else: raise SystemExit('never called')"
    )
    assert "torch" not in loaded_by(code)


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "featprep"],
        ["-m", "featprep", "encode"],
        [str(HOUSE / "encode_with_clip.py")],
        [str(HOUSE / "encode_with_dino.py")],
        [str(HOUSE / "image_vectorizer.py")],
    ],
    ids=["featprep", "featprep-encode", "encode_with_clip", "encode_with_dino", "vectorizer"],
)
def test_help_needs_the_standard_library_alone(command: list[str]) -> None:
    """-S: an interpreter that sees no installed package at all."""
    done = subprocess.run(
        [sys.executable, "-S", *command, "--help"],
        env={**os.environ, "PYTHONPATH": str(HOUSE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage:" in done.stdout
