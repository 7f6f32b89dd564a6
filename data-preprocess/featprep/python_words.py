"""What a caller from Python is told, in Python's words: `size=224` where a flag is `--size 224`."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from featprep.config import FIELDS
from featprep.errors import UsageError, WeightsError

# A word after a flag that is its value, and not the sentence going on.
_CHOICES = {
    word
    for item in FIELDS.values()
    for word in item.metadata["kind"].allowed.split(", ")
    if re.fullmatch(r"\w+", word)
}
_FLAG = rf"--({'|'.join(FIELDS)})\b"  # of encode: a shell command in a message keeps its own
_VALUE = re.compile(
    _FLAG + r" (-?\d[\d.,-]*(?<=\d)|[a-z]+:[^\s;,]*[^\s;,.]|'?#\w{6}'?|\w+)(?=[\s.;:,)]|$)"
)
_ASKED = re.compile(
    r"^--(\w+) (.+?): (?=allowed|no such|no text tower|of which|a path|an ONNX|this command)"
)


class CallerWarning(UserWarning):
    """What whoever calls should know; of a command, a line `note`."""


def warn_caller(message: str) -> None:
    """A warning that points at the caller's line, however deep in the package it arises."""
    here, level = os.path.dirname(os.path.abspath(__file__)), 2
    frame = sys._getframe(1)
    while frame.f_back and os.path.abspath(frame.f_code.co_filename).startswith(here):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, CallerWarning, stacklevel=level)


@contextmanager
def python_words() -> Iterator[None]:
    """For what is called with keywords: what is refused in it names no flag."""
    try:
        yield
    except (UsageError, WeightsError) as error:
        text = in_python(str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error


def in_python(message: str) -> str:
    """`--size 22 … use --resize crop` → `size=22 … use resize='crop'`."""
    asked = _ASKED.match(message)
    if asked:
        head = f"{asked[1]}={_literal(asked[2])}: "
        return head + in_python(message[asked.end() :])
    message = re.sub(_FLAG.replace("--", "--no_"), r"\1=False", message)
    message = _VALUE.sub(_setting, message)
    return re.sub(_FLAG, r"\1", message)


def _setting(found: re.Match[str]) -> str:
    name, value = found.groups()
    if value.isalpha() and value not in (*_CHOICES, "native"):
        return f"{name} {value}"
    return f"{name}={_literal(value)}"


def _literal(text: str) -> str:
    number = r"-?\d+(\.\d+)?"
    if re.fullmatch(number, text):
        return text
    if re.fullmatch(rf"{number}(,{number})+", text):
        return f"({text.replace(',', ', ')})"
    return repr(text.strip("'"))
