"""The command line of encode: `_` and `-` alike, never abbreviated, refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from featprep.commands.flags import encode_parser, read_config, with_underscores
from featprep.config import FIELDS, SWITCHES, EncodeConfig
from featprep.errors import UsageError

REQUIRED = {"--input": "photos", "--output": "out", "--model": "tiny"}


def read(*words: str) -> EncodeConfig:
    """The required flags stand first, where they are not given."""
    given = {word.partition("=")[0] for word in words}
    first = [part for name, text in REQUIRED.items() if name not in given for part in (name, text)]
    return read_config(encode_parser("featprep encode", "Encode."), [*first, *words])


def refusal(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(*words)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(SWITCHES))
def test_every_switch_has_its_no(name: str) -> None:
    assert getattr(read(f"--{name}"), name) is True
    assert getattr(read(f"--{name}", f"--no_{name}"), name) is False
    assert getattr(read(f"--no-{name.replace('_', '-')}"), name) is False


@pytest.mark.parametrize("name", sorted(set(FIELDS) - SWITCHES))
def test_every_setting_is_a_flag_with_underscores_and_with_hyphens(name: str) -> None:
    value = {"shard": "2/8", "mask_dir": "/", "size": "native", "limit": "3", "layer": "5"}.get(
        name
    )
    default = FIELDS[name].default
    text = value or str(default or "1")
    text = {"device": "cpu", "precision": "fp32"}.get(name, text)
    needed = ["--tile", "224"] if name == "overlap" else []
    one = read(f"--{name}", text, *needed)
    other = read(f"--{name.replace('_', '-')}={text}", *needed)
    assert getattr(one, name) == getattr(other, name)
    assert getattr(one, name) not in (None, "")


@pytest.mark.parametrize(
    "words", [("--layer", "-1,5,0"), ("--layer=-1,5,0",), ("--layer", "-1, 5, 0")]
)
def test_layers_that_begin_with_a_minus_follow_their_flag(words: tuple[str, ...]) -> None:
    assert read(*words).layer == (-1, 5, 0)
    assert read("--layer", "-2").layer == (-2,)


def test_hyphens_in_values_stay() -> None:
    config = read("--output", "my-out", "--input=--my-in", "--save-meta")
    assert (config.output, config.input, config.save_meta) == ("my-out", "--my-in", True)


@pytest.mark.parametrize(
    ("word", "read_as"),
    [
        ("--save-meta=x-y", "--save_meta=x-y"),
        ("--no-fp16", "--no_fp16"),
        ("-x-y", "-x-y"),
        ("--", "--"),
        ("---a-b", "---a-b"),
        ("a-b", "a-b"),
    ],
)
def test_only_the_name_of_a_long_flag_is_respelled(word: str, read_as: str) -> None:
    assert with_underscores(word) == read_as


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model", "A", "--model=B"],
            "--model is given 2 times: several are one list, --model A,B",
        ),
        (
            ["--layer", "-1", "--layer", "0,3"],
            "--layer is given 2 times: several are one list, --layer -1,0,3",
        ),
        (["--save_meta", "--size", "4", "--size", "8"], "--size is given 2 times: give it once"),
        (["--mask-dir", "a", "--mask_dir", "b"], "--mask_dir is given 2 times: give it once"),
        (["--config", "a", "--config", "a"], "--config is given 2 times: give it once"),
    ],
)
def test_a_flag_that_is_given_twice_is_refused(words: list[str], message: str) -> None:
    assert refusal(*words) == message


def test_a_flag_undoes_what_the_yaml_says(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("fp16: true\nsize: 448\nlimit: 5\n")
    config = read("--config", str(path), "--no_fp16", "--size", "224")
    assert (config.fp16, config.size, config.limit) == (False, (224, 224), 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--inptu", "x"],
            "unknown flag --inptu. Did you mean --input? See featprep encode --help",
        ),
        (
            ["--save-mta=1"],
            "unknown flag --save_mta=1. Did you mean --save_meta? See featprep encode --help",
        ),
        (["--siz", "4"], "unknown flag --siz. Did you mean --size? See featprep encode --help"),
        (["-x"], "unknown flag -x. See featprep encode --help"),
        (
            ["b.png", "c.png"],
            "b.png stands alone: a flag takes one value, a switch none. See featprep encode --help",
        ),
        (
            ["--fp16", "false"],
            "false stands alone: a flag takes one value, a switch none. See featprep encode --help",
        ),
        (
            ["--fp16=false"],
            "argument --fp16: ignored explicit argument 'false'; see featprep encode --help",
        ),
        (
            ["--input", "-x"],
            "argument --input: expected one argument (a value that begins with - is written "
            "--input=-VALUE); see featprep encode --help",
        ),
        (
            ["--size", "13x"],
            "--size 13x: allowed is one side, H,W in pixels, or native; for example --size 224 or "
            "--size 224,448",
        ),
    ],
)
def test_a_bad_command_line_is_refused_in_one_line(words: list[str], message: str) -> None:
    assert refusal(*words) == message


def test_help_names_every_setting_with_what_is_allowed_and_the_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # a word broken at its hyphen would not be found
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--config FILE YAML with any of these keys; flags win" in text
    for name, item in FIELDS.items():
        shown = f"--{name}" if name in SWITCHES else f"--{name} {name.upper()}"
        allowed = "" if name in SWITCHES else f": {item.metadata['kind'].allowed}".replace("`", "")
        assert f"{shown} {item.metadata['help']}{allowed}" in text
    assert "the first N images, on one device: a whole number from 1 up (default: all)" in text
