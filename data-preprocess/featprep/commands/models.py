"""`featprep models [FILTER]`: the names `--model` knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from featprep import encoders
from featprep.commands.flags import Parser


def main(argv: Sequence[str]) -> int:
    parser = Parser("featprep models", "List the encoders, with hidden dim, patch and native size.")
    parser.add_argument("filter", nargs="?", default="", help="only names that contain this")
    wanted = parser.read(argv).filter.lower()
    names = [name for name in encoders.list_encoders() if wanted in name.lower()]
    rows = [(name, "") for name in names] if wanted else list(_folded(names))
    width = max([44, *(len(name) for name, _ in rows)])
    print(f"{'name':<{width}} {'hidden':>6} {'patch':>5} {'native':>7}  projected")
    for name, more in rows:
        spec = encoders.describe(encoders.resolve(name, "any"))
        if spec is None:
            continue
        size = "×".join(map(str, spec.native_size))
        projected = str(spec.projected_dim or "-")
        line = f"{name:<{width}} {spec.hidden_dim:>6} {spec.patch:>5} {size:>7}  {projected:<9}"
        print(f"{line} {more}".rstrip())
    return 0 if rows else 3


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
