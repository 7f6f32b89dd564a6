"""Argument parsing for every command: `_` and `-` alike, never abbreviated, refused in one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from featprep.config import FIELDS, SWITCHES, EncodeConfig, make_config, parse_value
from featprep.errors import UsageError, WeightsError
from featprep.settings import nearest, shown


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
        flag = re.match(r"argument (--\w+).*expected one argument", message)
        dash = f" (a value that begins with - is written {flag[1]}=-VALUE)" if flag else ""
        raise UsageError(f"{message}{dash}; see {self.prog} --help")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        words = [with_underscores(word) for word in _joined(argv)]
        self._refuse_repeated(words)
        flags, unknown = self.parse_known_args(words)
        if unknown:
            raise UsageError(f"{self._about(unknown[0])} See {self.prog} --help")
        return flags

    def _refuse_repeated(self, words: Sequence[str]) -> None:
        """argparse takes the last and says nothing. A switch may come again: --no_… undoes it."""
        for action in self._actions:
            flag = action.option_strings[-1] if action.option_strings else ""
            is_repeatable = action.nargs == 0 or isinstance(action, argparse._AppendAction)
            values = [] if is_repeatable else _values_of(flag, words)
            if len(values) < 2:
                continue
            item = FIELDS.get(flag.removeprefix("--"))
            is_list = item is not None and item.metadata["kind"].is_list
            joined = shown(",".join(values))
            way_out = f"several are one list, {flag} {joined}" if is_list else "give it once"
            raise UsageError(f"{flag} is given {len(values)} times: {way_out}")

    def _about(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{shown(word)} stands alone: a flag takes one value, a switch none."
        known = [option for action in self._actions for option in action.option_strings]
        return f"unknown flag {shown(word)}.{nearest(word.partition('=')[0], known)}"


def _joined(argv: Sequence[str]) -> list[str]:
    """`--layer -1,5` → `--layer=-1,5`: argparse takes such a value for a flag."""
    words: list[str] = []
    for word in argv:
        if re.fullmatch(r"-\d+(,-?\d+)+", word) and words and re.fullmatch(r"--[\w-]+", words[-1]):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _values_of(flag: str, words: Sequence[str]) -> list[str]:
    """Of each `FLAG VALUE` and `FLAG=VALUE`."""
    after = [*words[1:], ""]
    return [
        word.partition("=")[2] if "=" in word else after[i]
        for i, word in enumerate(words)
        if word.partition("=")[0] == flag
    ]


def with_underscores(word: str) -> str:
    """`--save-meta=x-y` → `--save_meta=x-y`; anything that is not a long flag as it is."""
    if not re.match(r"--[A-Za-z]", word):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


@contextmanager
def as_argument() -> Iterator[None]:
    """For commands that take MODEL and no --model: their refusals name none."""
    try:
        yield
    except (UsageError, WeightsError) as error:
        text = str(error).removeprefix("--model ").replace(" --model ", " ")
        raise type(error)(text) from error


@contextmanager
def as_models() -> Iterator[None]:
    """For commands whose flag is --models: their refusals say how it is given there."""
    try:
        yield
    except (UsageError, WeightsError) as error:
        raise type(error)(re.sub(r"(?<!encode )--model\b", "--models", str(error))) from error


def add_settings(parser: Parser, names: Iterable[str], **shown: str) -> None:
    """Flags of these settings; their values are text till config reads them. `shown`: defaults
    that differ from those of encode."""
    for name in names:
        item = FIELDS[name]
        kind, text = item.metadata["kind"], item.metadata["help"].replace("%", "%%")
        if name in SWITCHES:
            parser.add_argument(f"--{name}", action="store_true", default=None, help=text)
            parser.add_argument(
                f"--no_{name}",
                action="store_false",
                default=None,
                dest=name,
                help=argparse.SUPPRESS,
            )
            continue
        default = "none" if item.default is None else item.default
        told = shown.get(name) or item.metadata["shown"] or default
        plain = f"{text}: {kind.allowed} (default: {told})".replace("`", "")
        parser.add_argument(f"--{name}", metavar=name.upper(), help=plain)


def encode_parser(prog: str, description: str) -> Parser:
    """One flag a setting, each switch with its `--no_…`; values are text till config reads them."""
    parser = Parser(prog, description)
    add_settings(parser, FIELDS)
    parser.add_argument("--config", metavar="FILE", help="YAML with any of these keys; flags win")
    return parser


def read_config(parser: Parser, argv: Sequence[str], **defaults: Any) -> EncodeConfig:
    flags = vars(parser.read(argv))
    config_file = flags.pop("config")
    return make_config(parsed_settings(flags), config_file, **defaults)


def parsed_settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given, as values. Raises UsageError."""
    given = {name: value for name, value in flags.items() if value is not None}
    return {
        name: value if name in SWITCHES else parse_value(name, value)
        for name, value in given.items()
    }
