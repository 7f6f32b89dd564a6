"""`featprep bench`: how fast maps are made here, how fast they could be, and what else there is."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from featprep.commands.flags import Parser
from featprep.config import parse_value
from featprep.encoders import describe, resolve
from featprep.encoders.base import ModelName
from featprep.errors import InputError, UsageError
from featprep.naming import printable
from featprep.settings import count

_DESCRIPTION = """\
Measure how fast a model's maps are made on this machine: the limit its matrix products set, the
model alone, each stage alone, and `featprep encode` end to end with files written. With --peers
also what one would write or pick instead, on the same images, in turns.

  featprep bench --model hf:facebook/dinov2-base --input photos --peers
  featprep bench --model hf:tiny --images 16 --rounds 1   (a first try)

Without --input it generates JPEGs of 0.18 megapixels; where a model's weights are not on this
machine it makes random ones of the full size. Nothing is fetched. docs/bench.md explains it all."""
_MODEL = "hf:facebook/dinov2-base"
_SIDE = 224


def main(argv: Sequence[str]) -> int:
    flags = make_parser().read(argv)
    _check(flags)
    os.environ["HF_HUB_OFFLINE"] = "1"  # closes every download
    from featprep.commands import bench_table as table
    from featprep.commands.bench_rounds import Asked, measure

    name = resolve(flags.model, "any")
    asked = Asked(
        name,
        _size(flags, name),
        images=count(1, example=64).parse("images", flags.images),
        rounds=count(1, example=3).parse("rounds", flags.rounds),
        input=flags.input,
        peers=flags.peers,
        encode=_encode_settings(flags),
    )
    with tempfile.TemporaryDirectory(prefix="featprep-bench-") as folder:
        report = measure(asked, Path(folder))
    table.print_report(report)
    if flags.json:
        table.write_json(flags.json, report)
    return 0


def make_parser() -> Parser:
    parser = Parser("featprep bench", _DESCRIPTION)
    texts = {
        "model": f"as for featprep encode (default: {_MODEL})",
        "input": "a folder of images; without it they are generated",
        "images": "how many; those of the folder in turns if it has fewer (default: 64)",
        "size": f"input side in pixels, or H,W (default: {_SIDE}, of fixed models their own)",
        "precision": "fp32, bf16 or fp16; fp32 stores float32 (default: as --fp16 chooses)",
        "batch_size": "images a forward pass, of everyone (default: each one's own)",
        "device": "as for featprep encode (default: auto)",
        "rounds": "how often each is measured, in turns (default: 3)",
        "json": "FILE: every figure of every round, for programs",
    }
    for name, text in texts.items():
        parser.add_argument(f"--{name}", metavar=name.upper(), help=text)
    parser.add_argument("--peers", action="store_true", help="also the other libraries, in turns")
    parser.set_defaults(model=_MODEL, images="64", rounds="3")
    return parser


def _check(flags: argparse.Namespace) -> None:
    folder = os.path.dirname(os.path.abspath(flags.json or "x"))
    if not os.path.isdir(folder):
        raise InputError(f"--json {printable(flags.json)}: no folder {printable(folder)}; make it")
    if flags.input is not None and not os.path.isdir(flags.input):
        raise InputError(f"--input {printable(flags.input)}: no such folder; give one with images")


def _encode_settings(flags: argparse.Namespace) -> dict[str, object]:
    """Those that featprep encode has too, and --fp16 unless float32 is asked for."""
    given = {
        key: parse_value(key, value)
        for key in ("precision", "batch_size", "device")
        if (value := getattr(flags, key)) is not None
    }
    return {**given, "fp16": given.get("precision") != "fp32"}


def _size(flags: argparse.Namespace, name: ModelName) -> tuple[int, int]:
    spec = describe(name)
    usual = spec.native_size if spec and spec.fixed_size else (_SIDE, _SIDE)
    size = usual if flags.size is None else parse_value("size", flags.size)
    if size == "native" and spec is None:
        raise UsageError(f"--size native: {name.typed} tells it once it is loaded; say the side")
    height, width = spec.native_size if size == "native" and spec else size
    if flags.peers and height != width:
        raise UsageError(
            f"--peers with --size {height},{width}: the processors of other libraries make "
            f"squares; allowed is one side; for example --size {height}"
        )
    return height, width
