"""Dispatch: which command, and what its outcome means to the shell. Catches everything."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from featprep.errors import FeatprepError
from featprep.naming import printable
from featprep.settings import nearest

# name → (module, what it does)
COMMANDS = {
    "encode": ("featprep.commands.encode", "images → feature maps and masks"),
    "show": ("featprep.commands.show", "one result as a picture: image | mask | components"),
    "verify": ("featprep.commands.verify", "are the results what was recorded of them?"),
    "status": ("featprep.commands.status", "how far an output is, and in which settings"),
    "classify": ("featprep.commands.classify", "which of some labels each image shows"),
    "heatmap": ("featprep.commands.heatmap", "where texts are in stored maps"),
    "vectorize": ("featprep.commands.vectorize", "images → one vector each, of several models too"),
    "index": ("featprep.commands.index", "vectors → a collection of Milvus"),
    "search": ("featprep.commands.search", "the images nearest to a text or an image"),
    "models": ("featprep.commands.models", "the encoders there are"),
    "fetch": ("featprep.commands.fetch", "weights, for machines that will have no network"),
    "certify": ("featprep.commands.certify", "our maps against upstream's own modules"),
    "bench": ("featprep.commands.bench", "how fast, how fast it could be, and against what else"),
    "settings": ("featprep.commands.settings", "every setting of encode, as a table"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """`featprep COMMAND …`; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help_text())
        return 0
    if words[0] == "--version":
        from featprep.version import read_version

        print(f"featprep {read_version()}")
        return 0
    if words[0] not in COMMANDS:
        hint = nearest(words[0], COMMANDS)
        print(f"featprep: no command {words[0]!r}.{hint} There are: {', '.join(COMMANDS)}",
              file=sys.stderr)  # fmt: skip
        return 2
    command = importlib.import_module(COMMANDS[words[0]][0])
    return _guarded(lambda: int(command.main(words[1:])))


def main_encode(family: str, argv: Sequence[str] | None = None) -> int:
    """The entry scripts: `featprep encode` with the family fixed (clip or dino)."""
    from featprep.commands import encode

    words = list(sys.argv[1:] if argv is None else argv)
    prog = os.path.basename(sys.argv[0])
    return _guarded(lambda: encode.main(words, prog=prog, script=family))


def main_vectorize(argv: Sequence[str] | None = None) -> int:
    """The entry script image_vectorizer.py: `featprep vectorize`."""
    from featprep.commands import vectorize

    words = list(sys.argv[1:] if argv is None else argv)
    prog = os.path.basename(sys.argv[0])
    return _guarded(lambda: vectorize.main(words, prog=prog))


def _guarded(command: Callable[[], int]) -> int:
    try:
        return command()
    except FeatprepError as error:
        print(f"featprep: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("featprep: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the flush at exit would fail again
        return 1
    except Exception:
        traceback.print_exc()
        print("featprep: this is a defect of ours; please report it with the lines above",
              file=sys.stderr)  # fmt: skip
        return 1


def _help_text() -> str:
    rows = "\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items())
    return (
        "featprep: folders of images → dense feature maps of frozen vision encoders\n\n"
        f"usage: featprep COMMAND …\n\n{rows}\n\nfeatprep COMMAND --help tells the rest."
    )
