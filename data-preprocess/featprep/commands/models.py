"""`featprep models [FILTER]`: the names `--model` knows."""

from __future__ import annotations

from collections.abc import Sequence

from featprep import encoders
from featprep.commands.flags import Parser


def main(argv: Sequence[str]) -> int:
    parser = Parser("featprep models", "List the encoders, with hidden dim, patch and native size.")
    parser.add_argument("filter", nargs="?", default="", help="only names that contain this")
    wanted = parser.read(argv).filter.lower()
    rows = [row for row in encoders.list_encoders() if wanted in row.lower()]
    print(f"{'name':<44} {'hidden':>6} {'patch':>5} {'native':>7}  projected")
    for name in rows:
        spec = encoders.describe(encoders.resolve(name, "any"))
        if spec is None:
            continue
        size = "×".join(map(str, spec.native_size))
        projected = spec.projected_dim or "-"
        print(f"{name:<44} {spec.hidden_dim:>6} {spec.patch:>5} {size:>7}  {projected}")
    return 0 if rows else 3
