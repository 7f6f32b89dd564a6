"""`featprep verify OUT`: is every result there what was recorded of it, and nothing else?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from featprep.aside import move_aside
from featprep.commands.console import size_text
from featprep.commands.flags import Parser
from featprep.ledger import folder_of
from featprep.lock import RunLock
from featprep.naming import printable
from featprep.runs import outputs_in
from featprep.verify import Verification
from featprep.verify_result import Finding, expected_of

FOUND = 3  # as an encoding run ends that some images failed in

_DESCRIPTION = """Hold an output against its records, and name every file that differs, one a line.

  featprep verify features/            each file is there, as long as recorded, opens, has its shape
  featprep verify features/ --deep     reads every byte too: digests, values that are not finite
  featprep verify features/ --repair   moves damaged results aside: the next run makes them again

Exit codes: 0 all is as recorded, and nothing else is there; 3 something was named."""


def make_parser() -> Parser:
    parser = Parser("featprep verify", _DESCRIPTION)
    parser.add_argument("output", metavar="OUT", help="the folder that runs wrote")
    parser.add_argument("--deep", action="store_true", help="read every byte")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="move damaged results, with their records, into OUT/.featprep/aside",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    return parser


@dataclass(slots=True)
class Report:
    """Of one output. `title`: its encoder's folder, where there are several."""

    title: str
    at_work: list[str] = field(default_factory=list)
    results: int = 0
    files: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    aside: str | None = None

    @property
    def damaged(self) -> dict[str, None]:
        """Keys, each once, in order."""
        return dict.fromkeys(one.key for one in self.findings if one.kind == "damaged")


def main(argv: Sequence[str]) -> int:
    flags = make_parser().read(argv)
    reports = []
    with ExitStack() as locks:
        outputs = outputs_in(flags.output)
        for _, output in outputs if flags.repair else ():
            locks.enter_context(RunLock(folder_of(output)))  # every one before any is touched
        for title, output in outputs:
            reports.append(_verify(title, output, flags))
    if flags.json:
        print(
            json.dumps({"ok": _is_ok(reports), "outputs": [asdict(r) for r in reports]}, indent=1)
        )
    return 0 if _is_ok(reports) else FOUND


def _is_ok(reports: Sequence[Report]) -> bool:
    return not any(report.findings for report in reports)


def _verify(title: str, output: str, flags: Any) -> Report:
    report = Report(title)
    with Verification(output, deep=flags.deep, is_ours=flags.repair) as verification:
        report.at_work = verification.at_work
        for finding in _with_bar(verification):
            report.findings.append(finding)
            if not flags.json:
                tqdm.write(f"{printable(_below(title, finding.file))}: {printable(finding.text)}")
        report.results, report.files = verification.results, verification.files
        report.bytes = verification.size
        if flags.repair and report.damaged:
            expected = expected_of(verification.run.fingerprint)
            report.aside = move_aside(output, report.damaged, expected)
    if not flags.json:
        _tell(report, output, flags.deep)
    return report


def _with_bar(verification: Verification) -> Iterator[Finding]:
    """A bar on a terminal, nothing elsewhere."""
    total, is_shown = verification.records, sys.stderr.isatty()
    with tqdm(total=total, unit=" results", file=sys.stderr, disable=not is_shown) as bar:
        yield from verification.findings(bar.update)


def _tell(report: Report, output: str, deep: bool) -> None:
    for holder in report.at_work:
        print(f"at work: {holder}; what it has not recorded yet is passed over")
    how = "every byte read" if deep else "not read whole; --deep reads every byte"
    size = size_text(report.bytes)
    print(f"{printable(output)}: {report.results:,} results, {report.files:,} files, {size}, {how}")
    print(f"  {_counts(report)}")
    if report.aside:
        print(f"  {len(report.damaged):,} results moved to {printable(report.aside)}")
        print("  the command that made them makes them again")
    elif report.damaged:
        print("  featprep verify --repair moves the damaged ones aside, to be made again")


def _counts(report: Report) -> str:
    kinds = [finding.kind for finding in report.findings]
    words = {
        "temporary": "temporary files",
        "unrecorded": "files that no record names, left alone",
    }
    told = [f"{len(report.damaged):,} damaged results"] * bool(report.damaged)
    told += [f"{kinds.count(kind):,} {text}" for kind, text in words.items() if kind in kinds]
    told += ["an --overwrite that was stopped"] * ("run" in kinds)
    return "; ".join(told) or "all as recorded, and nothing else there"


def _below(title: str, file: str) -> str:
    return f"{title}/{file}" if title else file
