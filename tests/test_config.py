"""Settings: what each accepts, what it refuses in which words, and how YAML and flags combine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from featprep.config import (
    FIELDS,
    SWITCHES,
    EncodeConfig,
    make_config,
    markdown_table,
    parse_value,
    read_yaml,
)
from featprep.errors import UsageError
from featprep.settings import NAMED_COLOURS, colour_of, nearest, shown
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

REQUIRED = {"input": "photos", "output": "out", "model": "tiny"}


def refusal(name: str, raw: object) -> str:
    with pytest.raises(UsageError) as caught:
        parse_value(name, raw)
    return str(caught.value)


def outcome(work: Callable[[], object]) -> str | None:
    """The text of the UsageError, or None if there was none; anything else is an error."""
    try:
        work()
    except UsageError as error:
        return str(error)
    return None


@pytest.fixture
def write(tmp_path: Path):  # noqa: ANN201
    def yaml_file(text: str | bytes) -> str:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return yaml_file


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("size", "224", (224, 224)),
        ("size", "224,448", (224, 448)),
        ("size", " [224, 448] ", (224, 448)),
        ("size", "(224, 448)", (224, 448)),
        ("size", "native", "native"),
        ("size", 448, (448, 448)),
        ("size", (224, 448), (224, 448)),
        ("size", [224.0, 448], (224, 448)),
        ("fp16", "true", True),
        ("fp16", "Yes", True),
        ("fp16", "OFF", False),
        ("fp16", True, True),
        ("tile", "native", "native"),
        ("tile", "224,448", (224, 448)),
        ("overlap", "0", 0),
        ("grid", "16", (16, 16)),
        ("grid", [16, 24], (16, 24)),
        ("batch_size", "auto", None),
        ("batch_size", "1", 1),
        ("max_pixels", "200_000_000", 200_000_000),
        ("alpha_threshold", ".5", 0.5),
        ("alpha_threshold", "1e-3", 0.001),
        ("alpha_threshold", 0.25, 0.25),
        ("shard", "3/8", (3, 8)),
        ("shard", "1/1", (1, 1)),
        ("background", "#FF8800", "#ff8800"),
        ("background", "mean", "mean"),
        ("input", " a b ", " a b "),
        ("input", "\udcff", "\udcff"),
    ],
)
def test_a_setting_is_read_from_text_and_from_plain_python_values(
    name: str, raw: object, value: object
) -> None:
    assert parse_value(name, raw) == value


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        (
            "resize",
            "cropp",
            "--resize cropp: allowed is one of crop, squash, pad, keep, native. Did you mean crop?",
        ),
        ("mask", "soft", "--mask soft: allowed is one of any, coverage, none."),
        ("fp16", "ture", "--fp16 ture: allowed is true or false; for example --fp16 true"),
        (
            "batch_size",
            "0",
            "--batch_size 0: allowed is a whole number from 1 up, or auto; for example "
            "--batch_size 8",
        ),
        (
            "limit",
            "-3",
            "--limit -3: allowed is a whole number from 1 up; for example --limit 100",
        ),
        (
            "limit",
            "auto",
            "--limit auto: allowed is a whole number from 1 up; for example --limit 100",
        ),
        (
            "alpha_threshold",
            "128",
            "--alpha_threshold 128: allowed is a number from 0 to 1; for example "
            "--alpha_threshold 0.5",
        ),
        (
            "alpha_threshold",
            "nan",
            "--alpha_threshold nan: allowed is a number from 0 to 1; for example "
            "--alpha_threshold 0.5",
        ),
        (
            "decode_timeout",
            "inf",
            "--decode_timeout inf: allowed is a number from 0.1 to 86400; for example "
            "--decode_timeout 60",
        ),
        ("shard", "0/8", "--shard 0/8: allowed is I/N with I from 1 to N; for example --shard 1/8"),
        ("shard", "9/8", "--shard 9/8: allowed is I/N with I from 1 to N; for example --shard 1/8"),
        (
            "background",
            "White",
            "--background White: allowed is black, white, grey, mean or #rrggbb (quote it: "
            "'#ff8800'). Did you mean white?",
        ),
        (
            "background",
            "#fff",
            "--background #fff: allowed is black, white, grey, mean or #rrggbb (quote it: "
            "'#ff8800').",
        ),
        ("input", " ", "--input is empty: give a folder, one image, or a .txt list"),
        ("output", "a\0b", "--output holds a character that no path can hold: give a folder"),
        ("output", "\ud800", "--output holds a character that no path can hold: give a folder"),
        (
            "size",
            None,
            "--size wants a plain value, not NoneType: one side, `H,W`, or `native`",
        ),
        ("size", "123456", "--size 123456: a side has at most 99999 pixels; take a smaller"),
        ("size", "7,100000", "--size 7,100000: a side has at most 99999 pixels; take a smaller"),
        ("limit", {"a": 1}, "--limit wants a plain value, not dict: a whole number from 1 up"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed_and_what_to_type(
    name: str, raw: object, message: str
) -> None:
    assert refusal(name, raw) == message


@pytest.mark.parametrize("raw", ["224x448", "0", "-1", "1,2,3", "a", "3.5", "Native"])
def test_a_bad_size_is_refused(raw: str) -> None:
    assert refusal("size", raw) == (
        f"--size {raw}: allowed is one side, H,W in pixels, or native; for example --size 224 or "
        "--size 224,448"
    )


def test_a_number_that_python_cannot_spell_is_refused() -> None:
    assert refusal("limit", 10**5000) == (
        "--limit: that number is too long; allowed is a whole number from 1 up"
    )


def test_what_was_asked_is_shown_on_one_line_of_bearable_length() -> None:
    assert shown("a\n  b") == "a b"
    assert shown("x" * 80) == "x" * 80
    assert shown("x" * 81) == "x" * 79 + "…"
    assert shown("") == "''"


@given(name=st.sampled_from(list(FIELDS)), raw=st.text(st.characters(codec=None), max_size=30))
@settings(deadline=None, max_examples=300)
def test_any_text_is_a_value_or_a_refusal_of_one_line(name: str, raw: str) -> None:
    said = outcome(lambda: parse_value(name, raw))
    assert said is None or (said.startswith(f"--{name}") and "\n" not in said)


@pytest.mark.parametrize("name", ["input", "output", "model"])
def test_input_output_and_model_are_required(name: str) -> None:
    expected = {
        "input": "--input is required: what to encode, a folder, one image, or a .txt list",
        "output": "--output is required: where results go; may lie inside the input, or be it, "
        "a folder",
        "model": "--model is required: the encoder, a name, FAMILY:NAME, a local folder or file, "
        "or tiny; several as A,B",
    }
    with pytest.raises(UsageError) as caught:
        make_config({**REQUIRED, name: ""})
    assert str(caught.value) == expected[name]


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        (
            {"quiet": True, "verbose": True},
            "--quiet and --verbose exclude each other: drop one, or --no_quiet",
        ),
        (
            {"alpha_threshold": 0.5, "mask": "none"},
            "--alpha_threshold is of --mask any: drop it, or --mask none",
        ),
        (
            {"alpha_threshold": 0.5, "mask": "coverage"},
            "--alpha_threshold is of --mask any: drop it, or --mask coverage",
        ),
        (
            {"max_tokens": 99},
            "--max_tokens is of --resize keep: add --resize keep, or drop it",
        ),
        (
            {"mask_dir": "masks", "mask": "none"},
            "--mask_dir with --mask none: drop one of them",
        ),
        (
            {"mask_dir": "/nowhere/masks"},
            "--mask_dir /nowhere/masks: no such folder; check the path",
        ),
        (
            {"resize": "keep", "size": (224, 224)},
            "--resize keep takes each image's own size: drop --size, or use --resize crop, squash "
            "or pad",
        ),
        (
            {"resize": "native", "size": (224, 224)},
            "--resize native takes the checkpoint's own size: drop --size, or use --resize crop, "
            "squash or pad",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    given_settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        make_config({**REQUIRED, **given_settings})
    assert str(caught.value) == message


def test_keep_and_native_take_the_size_native() -> None:
    assert make_config({**REQUIRED, "resize": "keep", "size": "native"}).resize == "keep"


def test_flags_win_over_yaml_and_yaml_over_defaults(write: Any) -> None:
    path = write("size: 448\nfp16: yes\nmask: coverage\n")
    config = make_config({**REQUIRED, "fp16": False, "mask": "none"}, path, model="dropped")
    assert (config.size, config.fp16, config.mask) == ((448, 448), False, "none")
    assert (config.model, config.background) == ("tiny", "black")


def test_yaml_keys_may_have_hyphens_and_lists_may_be_written_as_lists(write: Any) -> None:
    path = write("save-meta: true\nsize: [224, 448]\nshard: 2/8\nbackground: '#ff8800'\n")
    assert read_yaml(path) == {
        "save_meta": True,
        "size": (224, 448),
        "shard": (2, 8),
        "background": "#ff8800",
    }


@pytest.mark.parametrize("folder", ["0001", "2024_01", "2024-01-01", "1e5", "12:30", "on", "0x1F"])
def test_a_folder_whose_name_yaml_would_take_for_a_number_stays_what_was_written(
    write: Any, folder: str
) -> None:
    assert read_yaml(write(f"input: {folder}\n")) == {"input": folder}


def test_an_empty_yaml_file_says_nothing(write: Any) -> None:
    assert read_yaml(write("# all defaults\n")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sizes: 224", "{path}, line 1: unknown key sizes. Did you mean size?"),
        (
            "\n\nzzz: 1",
            "{path}, line 3: unknown key zzz. configs/README.md lists the keys.",
        ),
        ("config: b.yaml", "{path}, line 1: unknown key config. configs/README.md lists the keys."),
        (
            "mask: any\nsize: 13x",
            "{path}, line 2: --size 13x: allowed is one side, H,W in pixels, or native; for "
            "example --size 224 or --size 224,448",
        ),
        (
            "background: #ff8800",
            "{path}, line 1: background has no value; quote a colour: '#ff8800'; give one or drop "
            "the key",
        ),
        ("limit: ~", "{path}, line 1: limit has no value; give one or drop the key"),
        (
            "save_meta: true\nsave-meta: false",
            "{path}, line 2: save_meta stands there twice; drop one of them",
        ),
        (
            "size: {h: 3, w: 4}",
            "{path}, line 1: size wants a plain value, without tags or nesting",
        ),
        (
            "size: [[1], 2]",
            "{path}, line 1: size wants a plain value, without tags or nesting",
        ),
        (
            "a: &a [b]\nsize: *a",
            "{path}, line 1: unknown key a. configs/README.md lists the keys.",
        ),
        ("- size\n- 224", "{path}: not a table of settings; write lines such as size: 224"),
        ("224", "{path}: not a table of settings; write lines such as size: 224"),
        (
            "size: [224",
            "{path}: not YAML: while parsing a flow sequence"
            ' in "<byte string>", line 1, column 7: size: [224 ^'
            " expected ',' or ']', but got '<stream end>'"
            ' in "<byte string>", line 1, column 11: size: [224 ^',
        ),
    ],
)
def test_a_bad_yaml_file_is_refused_with_the_line_that_is_wrong(
    write: Any, text: str, message: str
) -> None:
    path = write(text)
    with pytest.raises(UsageError) as caught:
        read_yaml(path)
    assert str(caught.value) == "--config " + message.format(path=shown(path))


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "!!python/name:os.system",
        "!include other.yaml",
        "!!binary aGk=",
        "!!set {a, b}",
        "!x [1, 2]",
        "[!x 1, 2]",
    ],
)
def test_yaml_tags_are_refused(
    write: Any, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(f"size: {value}\n")
    with pytest.raises(UsageError) as caught:
        read_yaml(path)
    assert str(caught.value) == (
        f"--config {shown(path)}, line 1: size wants a plain value, without tags or nesting"
    )
    assert not (tmp_path / "pwned").exists()


def test_aliases_do_not_multiply(write: Any) -> None:
    bomb = "input: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for number in range(20):
        here, there = chr(ord("a") + number), chr(ord("b") + number)
        bomb += f"limit: &{there} [" + ", ".join([f"*{here}"] * 10) + "]\n"
    with pytest.raises(UsageError, match="line 2: limit wants a plain value"):
        read_yaml(write(bomb))


def test_deep_nesting_is_refused(write: Any) -> None:
    with pytest.raises(UsageError, match="not YAML"):
        read_yaml(write("size: " + "[" * 3_000))


@pytest.mark.parametrize("config", ["nowhere.yaml", "", "."])
def test_a_config_file_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    monkeypatch.chdir(tmp_path)
    reason = "No such file or directory" if config == "nowhere.yaml" else "Is a directory"
    with pytest.raises(UsageError) as caught:
        make_config(REQUIRED, config)
    asked = config or "''"
    assert str(caught.value) == f"--config {asked}: {reason}; give a YAML file"


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.dates(),
    st.sampled_from(["native", "auto", "mean", "224", "1/8", "crop", "none", "tiny", "hub"]),
)
NESTED = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
ONE_FILE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KEYS = st.sampled_from([*FIELDS, "save-meta", "sizes"]) | st.text(max_size=8) | st.integers()


@given(mapping=st.dictionaries(KEYS, NESTED, max_size=5))
@ONE_FILE
def test_any_yaml_mapping_is_a_config_or_a_usage_error(
    mapping: dict[object, object], write: Any
) -> None:
    path = write(yaml.safe_dump(mapping, allow_unicode=True))
    said = outcome(lambda: make_config(REQUIRED, path))
    assert said is None or "\n" not in said


@given(text=st.binary(max_size=60))
@ONE_FILE
def test_any_bytes_are_a_config_or_a_usage_error(text: bytes, write: Any) -> None:
    path = write(text)
    said = outcome(lambda: make_config(REQUIRED, path))
    assert said is None or said.startswith((f"--config {shown(path)}", "--mask_dir", "--resize"))


def test_every_default_is_a_value_that_its_own_kind_accepts() -> None:
    for name, item in FIELDS.items():
        if item.default not in (None, ""):
            assert parse_value(name, item.default) == item.default


def test_every_setting_says_what_it_means_and_what_it_allows() -> None:
    for item in FIELDS.values():
        assert item.metadata["help"]
        assert item.metadata["kind"].allowed
    assert {item.name for item in dataclasses.fields(EncodeConfig)} == set(FIELDS)
    assert {"fp16", "overwrite", "save_meta", "plan", "moved", "break_lock"} <= SWITCHES


def test_the_table_has_a_row_a_setting_in_the_order_of_the_fields() -> None:
    rows = markdown_table().splitlines()
    assert rows[:2] == ["| key | meaning | allowed | default |", "|---|---|---|---|"]
    assert [row.split("`")[1] for row in rows[2:]] == list(FIELDS)
    assert all(row.count(" | ") == 3 for row in rows[2:])
    assert rows[2 + list(FIELDS).index("save_meta")] == (
        "| `save_meta` | write NAME.json beside each feature file | true or false | false |"
    )


@pytest.mark.parametrize(
    ("name", "rgb"),
    [
        *NAMED_COLOURS.items(),
        ("#ff8800", (255, 136, 0)),
        ("mean", (124, 116, 104)),
    ],
)
def test_a_background_is_a_colour_of_eight_bits(name: str, rgb: tuple[int, int, int]) -> None:
    assert colour_of(name, (0.485, 0.456, 0.406)) == rgb


def test_the_nearest_name_is_told_if_one_is_near() -> None:
    assert nearest("overwrit", FIELDS) == " Did you mean overwrite?"
    assert nearest("qqqq", FIELDS) == ""
