"""Argument parsing shared by the commands: `_` and `-` alike, never abbreviated, refused in one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from featprep.config import FIELDS, SWITCHES, EncodeConfig, make_config, parse_value
from featprep.errors import UsageError
from featprep.settings import nearest


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError instead of exiting with a page of usage."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        flags, unknown = self.parse_known_args([with_underscores(word) for word in argv])
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            raise UsageError(
                f"unknown flag {unknown[0]}.{nearest(unknown[0].partition('=')[0], known)} "
                f"See {self.prog} --help"
                if unknown[0].startswith("-")
                else f"{unknown[0]!r} stands alone: every value follows its flag, "
                f"such as --input {unknown[0]}"
            )
        return flags


def with_underscores(word: str) -> str:
    """`--save-meta=x-y` → `--save_meta=x-y`; anything that is not a long flag as it is."""
    if not re.match(r"--[A-Za-z]", word):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def encode_parser(prog: str, description: str) -> Parser:
    """One flag a setting, each switch with its `--no_…`; values stay text until config reads them."""
    parser = Parser(prog, description)
    for name, item in FIELDS.items():
        kind, text = item.metadata["kind"], item.metadata["help"].replace("%", "%%")
        if name in SWITCHES:
            parser.add_argument(f"--{name}", action="store_true", default=None, help=text)
            parser.add_argument(
                f"--no_{name}", action="store_false", default=None, dest=name, help=argparse.SUPPRESS
            )
            continue
        shown = item.metadata["shown"] or ("none" if item.default is None else item.default)
        plain = f"{text}: {kind.allowed} (default: {shown})".replace("`", "")
        parser.add_argument(f"--{name}", metavar=name.upper(), help=plain)
    parser.add_argument("--config", metavar="FILE", help="YAML with any of these keys; flags win")
    return parser


def read_config(parser: Parser, argv: Sequence[str], **defaults: Any) -> EncodeConfig:
    flags = vars(parser.read(argv))
    config_file = flags.pop("config")
    given = {name: value for name, value in flags.items() if value is not None}
    parsed = {
        name: value if name in SWITCHES else parse_value(name, value)
        for name, value in given.items()
    }
    return make_config(parsed, config_file, **defaults)
