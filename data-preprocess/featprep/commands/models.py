"""`featprep models [FILTER]`: the names `--model` knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from featprep import encoders
from featprep.commands.flags import Parser
from featprep.encoders.base import EncoderSpec, Terms
from featprep.encoders.name_hints import nearest_name
from featprep.errors import UsageError
from featprep.settings import shown


def make_parser() -> Parser:
    parser = Parser("featprep models", "List the encoders, their sizes, gating and licence.")
    parser.add_argument("filter", nargs="?", default="", help="only names that contain this")
    return parser


def main(argv: Sequence[str]) -> int:
    wanted = make_parser().read(argv).filter.lower()
    names = [name for name in encoders.list_encoders() if wanted in name.lower()]
    if not names:
        raise UsageError(_no_name(wanted))
    rows = [(name, "") for name in names] if wanted else list(_folded(names))
    width = max([44, *(len(name) for name, _ in rows)])
    print(f"{'name':<{width}} hidden patch  native projected text gated   licence")
    for name, more in rows:
        resolved = encoders.resolve(name, "any")
        spec = encoders.describe(resolved)
        if spec is not None:
            print(f"{name:<{width}} {_line(spec, encoders.terms_of(resolved))} {more}".rstrip())
    return 0


def _no_name(wanted: str) -> str:
    known = {name.partition(":")[2]: name for name in encoders.list_encoders()}
    near = nearest_name(wanted.rpartition(":")[2], known)
    hint = f" Did you mean {known[near]}?" if near else ""
    return f"featprep models {shown(wanted)}: no name holds this; without it, all are listed.{hint}"


def _line(spec: EncoderSpec, terms: Terms) -> str:
    size = "×".join(map(str, spec.native_size))
    gated = {True: "yes", False: "no", None: "unknown"}[terms.is_gated]
    return (
        f"{spec.hidden_dim:>6} {spec.patch:>5} {size:>7} {spec.projected_dim or '-':>9} "
        f"{'yes' if spec.text else 'no':<4} {gated:<7} {terms.licence}"
    )


def _folded(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(the first tag of each of open_clip's architectures, how to see the others)."""
    for arch, group in groupby(names, _architecture):
        tags = list(group)
        if len(tags) == 1:
            yield tags[0], ""
        else:
            yield tags[0], f"1 of {len(tags)} tags: featprep models {arch}/"


def _architecture(name: str) -> str:
    return name.rpartition("/")[0] if name.startswith("openclip:") and "/" in name else name
