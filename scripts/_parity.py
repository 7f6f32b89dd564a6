"""What scripts/parity.sh runs: certify on full-size random weights, one line a case."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featprep.certify import Parity


def check(name: str, layers: int | None) -> bool:
    """Write, compare, print and remove one encoder; whether all of it is within tolerance."""
    from featprep import certify
    from featprep.encoders import describe, resolve
    from featprep.encoders.base import ModelName
    from featprep.encoders.tiny import write_random

    (family, _, id), spec = name.partition(":"), describe(resolve(name, "any"))
    assert spec is not None
    start, within = time.monotonic(), True
    with tempfile.TemporaryDirectory(prefix="featprep-parity-") as folder:
        path = write_random(name, Path(folder), layers)
        # A state dict of torchvision's says its architecture by its name alone.
        label = ModelName(family, id if family == "torchvision" else "random", str(path))
        for parity in certify.certify(label, certify.default_cases(spec)):
            print(row(name, parity), flush=True)
            within &= parity.is_within
    print(f"# {name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    return within


def first_of_each(names: list[str]) -> list[str]:
    """One tag of each open_clip architecture: on random weights all of its tags are one network."""
    firsts: dict[str, str] = {}
    for name in names:
        firsts.setdefault(name.rpartition("/")[0] if name.startswith("openclip:") else name, name)
    return list(firsts.values())


def row(name: str, parity: Parity) -> str:
    case = parity.case
    size = f"{case.batch}×{case.height}×{case.width}"
    return (
        f"{'ok  ' if parity.is_within else 'FAIL'} {name:<42} {case.feature:<9} {size:>11}  "
        f"max {parity.max_abs:.1e}  rms {parity.rms:5.2f}  relative {parity.relative:.1e}  "
        f"cosine {parity.cosine:.8f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="parity.sh", allow_abbrev=False)
    parser.add_argument(
        "filters", nargs="*", metavar="FILTER", help="names that contain one of these"
    )
    parser.add_argument("--layers", type=int, help="only the first blocks (default: all)")
    asked = parser.parse_args()
    from featprep.encoders import list_encoders

    names = first_of_each([name for name in list_encoders() if not name.endswith(":tiny")])
    chosen = [name for name in names if not asked.filters or any(f in name for f in asked.filters)]
    if not chosen:
        print(f"parity.sh {' '.join(asked.filters)}: there is {', '.join(names)}", file=sys.stderr)
        return 2
    within = [check(name, asked.layers) for name in chosen]  # one failure hides no later encoder
    return 0 if all(within) else 1


if __name__ == "__main__":
    sys.exit(main())
