"""Dispatch, exit codes and the words of refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from featprep import cli
from featprep.errors import OutputError

ROOT = Path(__file__).resolve().parent.parent


def _refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_an_unknown_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert _refusal(capsys, "encoed") == (
        "featprep: no command 'encoed'. Did you mean encode? There are: "
        f"{', '.join(cli.COMMANDS)}\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--modle", "x"],
            "unknown flag --modle. Did you mean --model? See featprep encode --help",
        ),
        (
            ["--save-mta"],
            "unknown flag --save_mta. Did you mean --save_meta? See featprep encode --help",
        ),
        (
            ["--input", "nowhere", "--output", "o", "--model", "hf:tiny"],
            "--input nowhere: no such file or folder; check the path",
        ),
        (
            [
                "--input",
                "a",
                "--output",
                "o",
                "--model",
                "hf:tiny",
                "--resize",
                "keep",
                "--size",
                "9",
            ],
            "--resize keep takes each image's own size: drop --size, or use --resize crop, squash "
            "or pad",
        ),
    ],
)
def test_bad_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert _refusal(capsys, "encode", *words) == f"featprep: {message}\n"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    said = capsys.readouterr().out
    assert [name for name in cli.COMMANDS if f"  {name} " not in said] == []


def test_models_lists_and_filters(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "dinov2-base"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == (
        ["name", "hidden", "patch", "native", "projected", "text", "gated", "licence"]
    )
    assert rows[1].split() == [
        "hf:facebook/dinov2-base",
        "768",
        "14",
        "518×518",
        "-",
        "no",
        "no",
        "apache-2.0",
    ]
    assert len(rows) == 2
    assert cli.main(["models", "clip:ViT-B/32"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split() == [
        "clip:ViT-B/32",
        "768",
        "32",
        "224×224",
        "512",
        "yes",
        "no",
        "unknown",
        "alias",
        "openai_clip_vit_b32",
    ]
    assert cli.main(["models", "vitb16-pretrain"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == ["yes", "dinov3-license"]


def test_models_finds_a_name_by_its_alias(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "open_clip_convnext_base"]) == 0
    _, row = capsys.readouterr().out.splitlines()
    name, *cells = row.split()
    assert name == "openclip:convnext_base/laion400m_s13b_b51k"
    assert cells[:4] == ["1024", "32", "224×224", "512"]
    assert cells[4:] == ["yes", "unknown", "unknown", "alias", "open_clip_convnext_base"]


def test_more_lists_what_timm_alone_knows_and_says_what_gives_no_map(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["models", "timm:test_vit.", "--more"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["name", "hidden"]
    assert row.split() == (
        ["timm:test_vit.r160_in1k", "64", "16", "160×160", "-", "no", "unknown", "apache-2.0"]
    )
    assert cli.main(["models", "timm:inception_v3.tv_in1k", "--more"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert said.err == "left out 1 of 1 more names: they give no map\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--more"], "--more: of which names? type, for example, featprep models vit_b --more"),
        (
            ["timm:zebra", "--more"],
            "featprep models timm:zebra: no name holds this; without it, all are listed.",
        ),
    ],
)
def test_more_is_refused_where_it_has_nothing_to_list(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _refusal(capsys, "models", *words) == f"featprep: {message}\n"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("tinny", " Did you mean timm:tiny?"),
        ("clip:RN55", " Did you mean clip:RN50?"),
        ("zebra", ""),
    ],
)
def test_a_filter_that_no_name_holds_is_refused_with_the_nearest(
    typed: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", typed]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        f"featprep: featprep models {typed.lower()}: no name holds this; without it, all are "
        f"listed; --more looks among timm's others too.{hint}\n",
    )


def test_what_ends_a_command_decides_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(error: BaseException):  # noqa: ANN202
        def command() -> int:
            raise error

        return command

    assert cli._guarded(stop(OutputError("full"))) == 4
    assert capsys.readouterr().err == "featprep: full\n"
    assert cli._guarded(stop(KeyboardInterrupt())) == 130
    assert cli._guarded(stop(RuntimeError("oops"))) == 1
    said = capsys.readouterr().err
    assert "RuntimeError: oops" in said
    assert said.endswith("this is a defect of ours; please report it with the lines above\n")


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly() -> None:
    words = f"{sys.executable} -m featprep settings | head -1"
    done = subprocess.run(
        ["bash", "-c", words], cwd=ROOT / "data-preprocess", capture_output=True, text=True
    )
    assert done.stdout.startswith("| key |")
    assert done.stderr == ""
