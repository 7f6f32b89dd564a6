"""What the documents promise: every command parses, tables equal their source, files exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import featprep
import fuzz
import hostile_files
import kill_moments
import pytest
import yaml
from featprep import encoders
from featprep.bench.figures import STAGES
from featprep.cli import COMMANDS, main
from featprep.commands import fetch
from featprep.commands.encode import SCRIPTS
from featprep.commands.flags import Parser, encode_parser, read_config
from featprep.config import markdown_table, read_yaml
from featprep.encoders import copies
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
READMES = ["README.md", "README.zh-CN.md"]
DOCUMENTS = [
    *READMES,
    "configs/README.md",
    *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
]


def _commands(document: str) -> list[str]:
    """Lines of the bash blocks, comments cut off."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


def _parser(command: str) -> Parser:
    if command == "encode":
        return encode_parser("x", "x")
    parser: Parser = importlib.import_module(COMMANDS[command][0]).make_parser()
    return parser


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_is_parsed_by_its_parser(document: str) -> None:
    seen = 0
    for line in _commands(document):
        found = re.match(r"\./scripts/encode_(clip|dino)_features\.sh (.*)", line)
        if found:
            config = read_config(
                encode_parser("x", "x"), shlex.split(found[2]), model=SCRIPTS[found[1]][1]
            )
            assert config.input == "photos"
            seen += 1
        elif line.startswith("featprep "):
            _, command, *words = shlex.split(line, comments=True)
            if "…" not in line:
                _parser(command).read(words)
                seen += 1
    assert seen >= 3 or document not in READMES


def test_what_is_fetched_is_what_the_next_commands_name() -> None:
    lines = _commands("docs/offline.md")
    (line,) = [line for line in lines if line.startswith("featprep fetch ")]
    flags = fetch.make_parser().read(shlex.split(line)[2:])
    names = [encoders.resolve(value, "any") for value in flags.model]
    ends = {"hf": "", "clip": ".pt"}
    for name in names:
        copied = f"{flags.to}/{copies.stem(name)}{ends[name.family]}"
        assert [line for line in lines if f" --model {name}={copied}" in line], name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_script_and_file_a_document_names_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    named = re.findall(r"(?:\./)?((?:scripts|configs|docs|tests)/[\w./]+\.\w+)", text)
    assert named or document not in READMES
    assert [name for name in named if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\(([\w./-]+\.\w+)[)#]", text)
    assert [link for link in links if not (ROOT / document).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_flag_a_document_names_is_one(document: str) -> None:
    flags = {flag for command in COMMANDS for flag in _parser(command)._option_string_actions}
    for harness in (fuzz, hostile_files, kill_moments):
        flags |= set(harness.make_parser()._option_string_actions)
    others = {"--index-url", "--extra-index-url", "--local-dir", "--version", "--switch"}
    others |= {"--strict", "--no-deps", "--disable-pip"}  # of pip-audit
    others.add("--no_switch")  # what stands for any of them
    others |= {"--data-dir", "--host"}  # of milvus-lite
    named = set(re.findall(r"(?<![\w-])--[a-z_]+[\w-]*", (ROOT / document).read_text()))
    assert {flag for flag in named if flag not in flags | others} == set()


def test_the_settings_table_is_the_one_config_makes() -> None:
    text = (ROOT / "configs" / "README.md").read_text()
    assert markdown_table() in text, "run: featprep settings, and paste it into configs/README.md"


def _encoder_rows() -> dict[str, str]:
    """Name → default map, shape and projected, of docs/encoders.md; NAME of torchvision is its
    NAME/WEIGHTS too."""
    found = re.findall(r"^\| `(\w+:[^`]+)`[^|]* \| (.*) \|$", _text("encoders"), re.MULTILINE)
    assert len(dict(found)) == len(found)  # no name has two rows
    return dict(found)


def _text(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text()


def _row_name(name: str) -> str:
    return name.partition("/")[0] if name.startswith("torchvision:") else name


def test_the_table_of_encoders_is_the_catalogue() -> None:
    named = set(_encoder_rows())
    many = {name for name in encoders.list_encoders() if _is_one_of_many(name)}
    assert named <= set(encoders.list_encoders())
    assert {_row_name(name) for name in encoders.list_encoders()} - named <= many
    assert {name.partition(":")[0] for name in named & many} == {"openclip", "timm"}


def test_the_readmes_examples_say_what_their_rows_say_and_are_of_every_family() -> None:
    table = (ROOT / "README.md").read_text().partition("## Encoders")[2].partition("\n## ")[0]
    found = re.findall(r"^\| [^|`]*\| (`\w+:[^|]+`) \| (.*) \|$", table, re.MULTILINE)
    examples = {name: rest for names, rest in found for name in re.findall(r"`([^`]+)`", names)}
    assert examples == {name: _encoder_rows().get(name) for name in examples}
    assert {name.partition(":")[0] for name in examples} == set(encoders.FAMILIES)


def test_the_readmes_aliases_are_those_there_are() -> None:
    text = (ROOT / "README.md").read_text()
    for alias, name in encoders.ALIASES.items():
        short = alias.removeprefix("openai_clip_").removeprefix("open_clip_")
        assert f"`{alias}`" in text or f"`_{short}`" in text, alias
        assert f"`{name}`" in text, name


def _is_one_of_many(name: str) -> bool:
    """Of open_clip's 200 and timm's 1,800, the table has one of each kind."""
    return name.startswith(("openclip:", "timm:")) and not name.endswith(":tiny")


def test_the_shapes_in_the_table_are_the_specs() -> None:
    for name, row in _encoder_rows().items():
        spec = encoders.describe(encoders.resolve(name, "any"))
        assert spec is not None
        side = str(224 // spec.patch)
        _, shape, projected = row.split(" | ")
        assert shape == f"({spec.hidden_dim}, {side}, {side})", name
        wanted = f"({spec.projected_dim}, {side}, {side})" if spec.projected_dim else "–"
        assert projected.removesuffix(", through its value path") == wanted, name


def test_the_table_says_truly_what_is_normed() -> None:
    for name, row in _encoder_rows().items():
        spec = encoders.describe(encoders.resolve(name, "any"))
        assert spec is not None
        assert (", final norm" in row.split(" | ")[0]) == spec.final_norm, name


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
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "".join(page.read_text() for page in pages)
    assert [name for name in COMMANDS if f"featprep {name}" not in text] == []


def test_python_that_calls_the_pipeline_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the README the lines that do, of its own page every block; in one name space each."""
    Image.new("RGB", (40, 30), (90, 60, 30)).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    lines = (ROOT / "README.md").read_text().splitlines()
    page = (ROOT / "docs" / "feature_extraction.md").read_text()
    for code in (
        ["import featprep", *(line for line in lines if "extract" in line and " = " in line)],
        re.findall(r"```python\n(.*?)```", page, re.DOTALL),
    ):
        names: dict[str, Any] = {}
        exec("\n".join(code), names)
        assert names["tokens"].shape == (1, 257, 64)


def test_the_readmes_section_on_what_to_take_reads_what_a_run_of_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = (ROOT / "README.md").read_text().partition("## What to take")[2].partition("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (32, 32), (200, 100, 50)).save("cat.png")
    Image.new("RGB", (32, 32), (200, 100, 50)).save("photos/cat.png")
    command = shlex.split(section.partition("```bash\n")[2].partition("\n")[0])
    assert main(["encode", *command[1:], "--model", "hf:tiny", "--size", "28", "--quiet"]) == 0
    names: dict[str, Any] = {"featprep": featprep}
    exec(section.partition("```python\n")[2].partition("```")[0], names)
    assert list(names["run"].layers) == [2, 1]
    assert list(names["run"].vectors) == ["prefix", "pooled", "masked", "masked@1", "empty"]
    assert {path.name for path in Path("features").glob("cat*")} == {
        "cat.npy", "cat@1.npy", "cat_mask.npy", "cat_vec.npz",
    }  # fmt: skip
    assert names["maps"].maps[0].shape == (1, 64, 16, 16)
    assert names["maps"].prefix.shape == (1, 1, 64)


def test_the_benchs_page_explains_every_row_and_flag() -> None:
    text = (ROOT / "docs" / "bench.md").read_text()
    options = set(_parser("bench")._option_string_actions) - {"-h", "--help"}
    assert [option for option in options if option not in text] == []
    assert [stage for stage in STAGES if f"`{stage}`" not in text] == []
