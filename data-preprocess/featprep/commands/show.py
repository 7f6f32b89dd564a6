"""`featprep show OUT KEY`: one result as a picture."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from featprep.commands.flags import Parser
from featprep.errors import InputError
from featprep.naming import printable


def make_parser() -> Parser:
    parser = Parser(
        "featprep show",
        "Draw one result: image | mask | first three principal components.\n\n"
        "  featprep show features/ a/b --out a_b.png",
    )
    parser.add_argument("output", metavar="OUT", help="the folder a run wrote")
    parser.add_argument("key", metavar="KEY", help="the image's path below the input, no suffix")
    parser.add_argument(
        "--out", metavar="FILE", help="where the picture goes (default: KEY.png here)"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    flags = make_parser().read(argv)
    _check_out(flags.out)
    out = flags.out or os.path.basename(flags.key) + ".png"
    size = draw(flags.output, flags.key, out)
    print(f"{out}  {size[0]}×{size[1]}")
    return 0


def _check_out(out: str | None) -> None:
    if out is None:
        return
    folder = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(folder):
        raise InputError(f"--out {printable(out)}: no folder {printable(folder)}; make it first")
    if not out.lower().endswith(".png"):
        name = printable(os.path.splitext(out)[0])
        raise InputError(f"--out {printable(out)}: the picture is a PNG; name it {name}.png")


def draw(output: str, key: str, out: str) -> tuple[int, int]:
    """Write the picture; returns (width, height). Raises InputError for an unknown key."""
    from featprep.records import Failure
    from featprep.replay import network_pixels
    from featprep.runs import Run
    from featprep.show import panels
    from featprep.stores.base import write_whole

    run = Run(output)
    if key not in run:
        raise InputError(
            f"{output}: no result of key {key!r}.{run.nearest(key)} `ls {output}` shows what is "
            "there"
        )
    try:
        feature, mask, _ = run[key]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{printable(output)}: the result of {printable(key)} is damaged: remove "
            f"{printable(key)}.npy there, and the command that made it makes it again"
        ) from error
    seen = network_pixels(run, key)
    if isinstance(seen, Failure):
        gone = f"{printable(seen.source)}: {seen.reason}"
        print(f"show: without the image, {gone}", file=sys.stderr)
    sheet = panels(None if isinstance(seen, Failure) else seen, mask, feature)
    picture = io.BytesIO()
    sheet.save(picture, "PNG")
    write_whole(os.path.abspath(out), [picture.getvalue()])
    return sheet.size
