"""What the documents promise: every command parses, tables equal their source, files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import featprep
import pytest
import yaml
from featprep import encoders
from featprep.cli import COMMANDS
from featprep.commands.encode import SCRIPTS
from featprep.commands.flags import encode_parser, read_config
from featprep.config import markdown_table, read_yaml
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "README.zh-CN.md"]


def _commands(document: str) -> list[str]:
    """Lines of the bash blocks, comments cut off."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_encoding_command_of_a_document_is_parsed_by_its_parser(document: str) -> None:
    seen = 0
    for line in _commands(document):
        found = re.match(r"\./scripts/encode_(clip|dino)_features\.sh (.*)", line)
        if found:
            config = read_config(
                encode_parser("x", "x"), shlex.split(found[2]), model=SCRIPTS[found[1]][1]
            )
            assert config.input == "photos"
            seen += 1
    assert seen >= 3


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_script_and_file_a_document_names_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    named = re.findall(r"(?:\./)?((?:scripts|configs|docs|tests)/[\w./]+\.\w+)", text)
    named += re.findall(r"\]\(([\w./-]+\.\w+)\)", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_flag_a_document_names_is_one(document: str) -> None:
    flags = set(encode_parser("x", "x")._option_string_actions)
    others = {"--out", "--index-url", "--extra-index-url", "--local-dir"}
    named = set(re.findall(r"(?<![\w-])--[a-z_]+[\w-]*", (ROOT / document).read_text()))
    assert {flag for flag in named if flag not in flags | others} == set()


def test_the_settings_table_is_the_one_config_makes() -> None:
    text = (ROOT / "configs" / "README.md").read_text()
    assert markdown_table() in text, "run: featprep settings, and paste it into configs/README.md"


def test_the_readmes_encoder_table_is_the_catalogue() -> None:
    table = (ROOT / "README.md").read_text().partition("## Encoders")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
    many = [name for name in encoders.list_encoders() if _is_one_of_many(name)]
    assert set(named) <= {"--model", *encoders.list_encoders()}
    assert set(encoders.list_encoders()) - set(named) <= set(many)
    assert len(named) == len(set(named))
    assert [name for name in named if name in many]  # of open_clip's 200, one of each kind


def test_the_readmes_aliases_are_those_there_are() -> None:
    text = (ROOT / "README.md").read_text()
    for alias, name in encoders.ALIASES.items():
        short = alias.removeprefix("openai_clip_").removeprefix("open_clip_")
        if not name.startswith("clip:RN"):
            assert f"`{alias}`" in text or f"`_{short}`" in text, alias
            assert f"`{name}`" in text, name


def _is_one_of_many(name: str) -> bool:
    return name.startswith("openclip:") and not name.endswith(":tiny")


def test_the_readmes_shapes_are_the_specs() -> None:
    table = (ROOT / "README.md").read_text().partition("## Encoders")[2].partition("\n## ")[0]
    for name in encoders.list_encoders():
        if _is_one_of_many(name) and f"\n| `{name}`" not in table:
            continue
        spec = encoders.describe(encoders.resolve(name, "any"))
        assert spec is not None
        row = next(line for line in table.splitlines() if f"`{name}`" in line.split(" | ")[0])
        side = 224 // spec.patch
        assert f"({spec.hidden_dim}, {side}, {side})" in row, name
        if spec.projected_dim:
            assert f"({spec.projected_dim}, {side}, {side})" in row, name


def test_every_config_is_read_and_names_an_encoder_that_is_there() -> None:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert [path.stem for path in files] == [
        "clip_vit_b16", "clip_vit_b32", "clip_vit_l14", "dinov2_base", "dinov2_giant",
        "dinov2_large", "dinov2_small", "tiny",
    ]  # fmt: skip
    for path in files:
        settings = read_yaml(str(path))
        family = "clip" if "clip" in path.name else "hf"
        name = encoders.resolve(settings["model"], family)
        spec = encoders.describe(name)
        shapes = re.findall(r"\((\d+), (\d+), (\d+)\) at 224", path.read_text())
        assert spec is not None
        if path.stem != "tiny":
            side = 224 // spec.patch
            assert (str(spec.hidden_dim), str(side), str(side)) in shapes


def test_a_yaml_of_ours_holds_nothing_but_settings() -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        assert set(yaml.safe_load(path.read_text())) <= {
            "model",
            "size",
            "resize",
            "fp16",
            "save_meta",
        }


def test_the_readme_is_for_a_newcomer() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert 160 <= len(lines) <= 260
    assert any(line.startswith("./scripts/") for line in lines[:12])


def test_every_command_there_is_stands_in_a_document() -> None:
    text = "".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    assert [name for name in COMMANDS if f"featprep {name}" not in text] == []


@pytest.mark.parametrize("document", ["README.md", "docs/feature_extraction.md"])
def test_python_that_calls_the_pipeline_runs_as_it_stands(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one name space, as a reader would type it."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    Image.new("RGB", (40, 30), (90, 60, 30)).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"featprep": featprep}
    code = [block for block in blocks if "featprep.pipeline" in block]
    assert code
    for block in code:
        exec(block, names)
    assert names["tokens"].shape == (1, 257, 64)  # type: ignore[attr-defined]
