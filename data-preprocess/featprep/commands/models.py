"""`featprep models [FILTER]`: the names `--model` knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from featprep import encoders
from featprep.commands.console import say
from featprep.commands.flags import Parser
from featprep.encoders.aliases import ALIASES
from featprep.encoders.base import EncoderSpec, Terms
from featprep.encoders.name_hints import nearest_name
from featprep.errors import UsageError, WeightsError
from featprep.settings import shown

Row = tuple[str, str]  # a name, and what is told beside it


def make_parser() -> Parser:
    parser = Parser("featprep models", "List the encoders, their sizes, gating and licence.")
    parser.add_argument(
        "filter", nargs="?", default="", help="only names and aliases that contain this"
    )
    parser.add_argument("--more", action="store_true", help="timm's others too, with a FILTER")
    return parser


def main(argv: Sequence[str]) -> int:
    flags = make_parser().read(argv)
    wanted, rows = flags.filter.lower(), list(_rows(flags.filter.lower()))
    if flags.more and not wanted:
        raise UsageError("--more: of which names? type, for example, featprep models vit_b --more")
    more = encoders.list_more(wanted) if flags.more else []
    if not rows and not more:
        raise UsageError(_no_name(wanted, has_more=flags.more))
    width = max([44, *(len(name) for name, _ in rows), *map(len, more)])
    print(f"{'name':<{width}} hidden patch  native projected text gated   licence")
    for name, beside in rows:
        resolved = encoders.resolve(name, "any")
        spec = encoders.describe(resolved)
        if spec is not None:
            print(f"{name:<{width}} {_line(spec, encoders.terms_of(resolved))} {beside}".rstrip())
    _print_more(more, width)
    return 0


def _print_more(names: Sequence[str], width: int) -> None:
    """Each is asked of its library, which takes about half a second."""
    without = 0
    for name in names:
        try:
            spec, terms = encoders.ask(encoders.resolve(name, "any"))
        except (WeightsError, UsageError):  # what gives no map, or is not built by shapes alone
            without += 1
        else:
            print(f"{name:<{width}} {_line(spec, terms)}", flush=True)
    if without:
        say("left out", f"{without} of {len(names)} more names: they give no map")


def _rows(wanted: str) -> Iterator[Row]:
    """The names that hold the filter, or whose alias does; all where there is none, of open_clip's
    tags the first."""
    names = encoders.list_encoders()
    if not wanted:
        for name, tags in _folded(names):
            yield name, _beside(name, tags)
        return
    for name in names:
        if wanted in name.lower() or any(wanted in alias for alias in _aliases(name)):
            yield name, _beside(name)


def _aliases(name: str) -> list[str]:
    return [alias for alias, long in ALIASES.items() if long == name]


def _beside(name: str, tags: str = "") -> str:
    aliases = [f"alias {alias}" for alias in _aliases(name)]
    return "; ".join([*aliases, *[tags] * bool(tags)])


def _no_name(wanted: str, *, has_more: bool) -> str:
    known = {name.partition(":")[2]: name for name in encoders.list_encoders()}
    near = nearest_name(wanted.rpartition(":")[2], known)
    hint = f" Did you mean {known[near]}?" if near else ""
    more = "" if has_more else "; --more looks among timm's others too"
    return (
        f"featprep models {shown(wanted)}: no name holds this; without it, all are listed{more}."
        f"{hint}"
    )


def _line(spec: EncoderSpec, terms: Terms) -> str:
    size = "×".join(map(str, spec.native_size))
    gated = {True: "yes", False: "no", None: "unknown"}[terms.is_gated]
    return (
        f"{spec.hidden_dim:>6} {spec.patch:>5} {size:>7} {spec.projected_dim or '-':>9} "
        f"{'yes' if spec.text else 'no':<4} {gated:<7} {terms.licence}"
    )


def _folded(names: Sequence[str]) -> Iterator[Row]:
    """(the first tag of each of open_clip's architectures, how to see the others)."""
    for arch, group in groupby(names, _architecture):
        tags = list(group)
        if len(tags) == 1:
            yield tags[0], ""
        else:
            yield tags[0], f"1 of {len(tags)} tags: featprep models {arch}/"


def _architecture(name: str) -> str:
    return name.rpartition("/")[0] if name.startswith("openclip:") and "/" in name else name
