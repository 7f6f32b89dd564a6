"""What differs between two runs' settings, said as flags that can be typed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes import DEEP
from featprep.commands.flags import encode_parser, read_config
from featprep.devices import Precision
from featprep.differences import differences
from featprep.resolve import by_patch, fingerprint, resolve

SPEC = replace(DEEP, native_size=(32, 64), depth=12)
OTHER = replace(DEEP, name="hf:other", native_size=(32, 64), depth=24)


def _made(words: str, spec: Any = SPEC, digest: str = "a" * 64) -> dict[str, Any]:
    """The fingerprint of a command with these flags."""
    given = ["--input", "i", "--output", "o", "--model", "m", *words.split()]
    config = read_config(encode_parser("x", "x"), given)
    storage = "float16" if config.fp16 else "float32"
    default = "bfloat16" if config.fp16 else "float32"
    compute = {"bf16": "bfloat16", "fp32": "float32"}.get(config.precision or "", default)
    resolved = resolve(config, spec, storage, by_patch(spec), is_plain=False)
    return fingerprint(config, spec, digest, resolved, Precision(compute, storage, ""))


@pytest.mark.parametrize(
    ("there", "asked", "told", "back"),
    [
        ("", "--size 64", "--size 32,64 there, --size 64 asked", "--size 32,64"),
        (
            "--fp16",
            "",
            "--fp16 there, --no_fp16 asked",
            "--fp16",
        ),
        (
            "",
            "--precision bf16",
            "--precision fp32 there, --precision bf16 asked",
            "--precision fp32",
        ),
        (
            "--layer -1,3,5 --pooled",
            "--size 64",
            "--layer 11,3,5 there, --layer 11 asked; --pooled there, --no_pooled asked; "
            "--size 32,64 there, --size 64 asked",
            "--layer 11,3,5 --pooled --size 32,64",
        ),
        (
            "--norm auto --layer -1,0",
            "--norm none --layer -1,0",
            "--norm auto there, --norm none asked",
            "--norm auto",
        ),
        (
            "--background #ff8800 --mask coverage --names full",
            "--mask_dir .",
            "--background '#ff8800' there, --background black asked; --mask coverage there, --mask "
            "any asked; no --mask_dir there, --mask_dir {here} asked; --names full there, --names "
            "stem asked",
            "--background '#ff8800' --mask coverage --names full and no --mask_dir",
        ),
        (
            "--resize keep --max_tokens 50",
            "--size 64",
            "--resize keep there, --resize crop asked; no --size there, --size 64 asked; "
            "--max_tokens 50 there, --max_tokens 16384 asked",
            "--resize keep --max_tokens 50 and no --size",
        ),
        (
            "--grid 5,6 --tile 16 --overlap 0",
            "--size 64 --tile 16 --overlap 8",
            "--size 32,64 there, --size 64 asked; --overlap 0 there, --overlap 8 asked; --grid 5,6 "
            "there, no --grid asked",
            "--size 32,64 --overlap 0 --grid 5,6",
        ),
        ("", "--grid 4 --tile 16", "no --tile there, --tile 16 asked; no --grid there, --grid 4 "
         "asked", "no --tile and no --grid"),
    ],
)  # fmt: skip
def test_what_differs_is_told_as_flags_and_those_go_on(
    there: str, asked: str, told: str, back: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert differences(_made(there), _made(asked)) == (
        f"{told.format(here=tmp_path)}. Nothing was touched: to go on with what is there give "
        f"{back}, else "
    )
    wanted = _flags(asked) | _flags(back.replace("'", "").partition("no --")[0])
    again = [f"{flag}={value}" if value else flag for flag, value in wanted.items()]
    dropped = [f"--{word.partition(' ')[0]}" for word in back.split("no --")[1:]]
    kept = [word for word in again if word.partition("=")[0] not in dropped]
    assert differences(_made(there), _made(" ".join(kept))) is None


def _flags(words: str) -> dict[str, str]:
    """`--size 64 --fp16 and` → {"--size": "64", "--fp16": ""}."""
    parts = [part.split() for part in words.removesuffix(" and ").split("--") if part.strip()]
    return {f"--{name}": "".join(value) for name, *value in parts}


def test_another_encoder_is_told_alone_and_other_weights_have_no_way_back() -> None:
    assert differences(_made(""), _made("", OTHER, "b" * 64)) == (
        "--model fake:deep there, --model hf:other asked. Nothing was touched: to go on with what "
        "is there give --model fake:deep, else "
    )
    assert differences(_made("--size 64"), _made("", SPEC, "b" * 64)) == (
        "weights aaaaaaaaaaaa there, weights bbbbbbbbbbbb asked; --size 64 there, --size 32,64 "
        "asked. Nothing was touched: "
    )


def test_threads_and_batch_size_of_a_deterministic_run_follow_from_its_flag() -> None:
    run = _made("")
    fixed = {**run, "deterministic": True, "threads": 2, "batch_size": 8}
    assert differences(fixed, run) == (
        "--deterministic there, --no_deterministic asked. Nothing was touched: to go on with what "
        "is there give --deterministic, else "
    )
    assert differences(fixed, {**fixed, "threads": 4}) == (
        "threads 2 there, threads 4 asked. Nothing was touched: "
    )


def test_what_no_flag_says_is_told_by_its_name_where_no_flag_differs() -> None:
    run = _made("")
    assert differences(run, {**run, "kernel": "lanczos", "scale_to": 3}) == (
        "kernel bicubic there, kernel lanczos asked; scale_to none there, scale_to 3 asked. "
        "Nothing was touched: "
    )
    assert differences({**run, "background": 7}, run) == (
        "background 7 there, --background black asked. Nothing was touched: "
    )
    assert differences(run, dict(run)) is None
