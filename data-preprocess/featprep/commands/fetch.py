"""`featprep fetch MODEL …`: the files an encoder needs, through the code that loads it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from featprep import encoders
from featprep.commands.console import size_text
from featprep.commands.flags import Parser, as_argument
from featprep.encoders import copies
from featprep.encoders.base import ModelName
from featprep.encoders.weights import Found
from featprep.errors import UsageError, WeightsError
from featprep.naming import printable
from featprep.resolve import PLAIN_SIZE

_DESCRIPTION = """Download the weights of encoders, for machines that will have no network.

Without --to they go into each library's own cache, where every command finds them. With --to DIR a
copy goes into DIR, to be carried along: what to type there is printed."""


def make_parser() -> Parser:
    parser = Parser("featprep fetch", _DESCRIPTION)
    parser.add_argument("model", nargs="+", help="FAMILY:NAME, as --model takes it")
    parser.add_argument("--to", metavar="DIR", help="a folder for copies, made if it is not there")
    return parser


def main(argv: Sequence[str]) -> int:
    flags = make_parser().read(argv)
    to = Path(flags.to) if flags.to is not None else None
    names = [_asked(value) for value in flags.model]  # a wrong name costs no download
    if to is not None and to.exists() and not to.is_dir():
        raise UsageError(f"--to {to}: not a folder; give a folder")
    are_there = [_fetch(name, to) for name in names]
    return 0 if all(are_there) else WeightsError.exit_code


def _asked(value: str) -> ModelName | None:
    """None: made where it is used."""
    if value == "tiny":
        return None
    with as_argument():
        name = encoders.resolve(value, "any")
    if name.path is not None:
        raise UsageError(f"{value}: these weights are local already; nothing to fetch")
    return None if name.id == "tiny" else name


def _fetch(name: ModelName | None, to: Path | None) -> bool:
    """Whether it is there now. One that cannot be had does not keep the others from it."""
    if name is None:
        print("tiny needs no weights: they are made where they are used")
        return True
    try:
        with as_argument():
            before = copies.standing(name, to, encoders.find_weights) if to is not None else None
            found = before or encoders.find_weights(name)
        if to is not None and before is None:
            found = copies.copy(name, found, to)
    except WeightsError as error:
        print(f"featprep: {printable(str(error))}", file=sys.stderr)
        return False
    _tell(name, found, to, is_new=before is None)
    return True


def _tell(name: ModelName, found: Found, to: Path | None, *, is_new: bool) -> None:
    size = size_text(sum(file.stat().st_size for file in found.files))
    count = f" in {len(found.files)} files" if len(found.files) > 1 else ""
    if is_new and found.origin.startswith("downloaded"):
        origin = found.origin
    elif is_new and to is not None:
        origin = f"copied from the {found.origin}"
    else:
        origin = "already there" + (f" ({found.origin})" if to is None else "")
    print(f"{name}  {size}{count}, {origin}")
    print(f"  lies in  {printable(str(found.path))}")
    typed = str(name) if to is None else f"{name}={found.path}"
    print(f"  type     --model {shlex.quote(typed)}{_plain_size(name)}", flush=True)


def _plain_size(name: ModelName) -> str:
    """DINO named without its family has 224 as its size; with it, its own (SPEC 1)."""
    is_otherwise = name.is_plain and name.family == "hf"
    return f" --size {PLAIN_SIZE}   (what its plain name stands for)" if is_otherwise else ""
