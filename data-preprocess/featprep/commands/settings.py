"""`featprep settings`: the table of configs/README.md, printed."""

from __future__ import annotations

from collections.abc import Sequence

from featprep.commands.flags import Parser
from featprep.config import markdown_table


def make_parser() -> Parser:
    return Parser("featprep settings", "Print every setting of featprep encode as a table.")


def main(argv: Sequence[str]) -> int:
    make_parser().read(argv)
    print(markdown_table(), end="")
    return 0
