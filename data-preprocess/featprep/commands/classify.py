"""`featprep classify IMAGES --labels "cat,dog"`: which of some labels each image shows."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featprep.commands.console import Progress, counted, say, warnings_as_notes
from featprep.commands.flags import Parser, add_settings, parsed_settings
from featprep.config import parse_value
from featprep.errors import InputError, UsageError
from featprep.naming import printable
from featprep.records import Failure, ImageRef
from featprep.settings import shown
from featprep.sources import Entry, Selection, Source

if TYPE_CHECKING:
    from featprep.tasks.zero_shot import Ranking

_DESCRIPTION = """Score images by any labels with a model of images and texts.

  featprep classify photos/ --model clip:ViT-B/32 --labels "cat,dog,red car"
  featprep classify cat.jpg --model hf:google/siglip-base-patch16-224 --labels_file words.txt --json

Of each image the labels with the highest scores. CLIP's are shares of one whole; SigLIP's are each
a yes or no of its own, and do not add up to one."""
_SOME_FAILED = 3


def make_parser() -> Parser:
    from featprep.tasks.models import SETTINGS

    parser = Parser("featprep classify", _DESCRIPTION)
    add = parser.add_argument
    add("input", metavar="IMAGES", help="a folder, an image, or a .txt list of images")
    add("--model", help="FAMILY:NAME of a model of images and texts (required)")
    add("--labels", metavar="A,B,…", help="labels, between commas")
    add("--labels_file", metavar="FILE", help="labels, one a line, before those of --labels")
    add(
        "--template",
        metavar="TEXT",
        action="append",
        help="sentence with {} in the label's place; several are averaged (default: This is a "
        "photo of {}.)",
    )
    add("--top", metavar="N", help="so many labels of each image (default: 5)")
    add("--json", action="store_true", help="one JSON object a line, for programs")
    add("--quiet", action="store_true", help="no progress")
    add_settings(parser, SETTINGS, resize="native", size="native")
    return parser


def main(argv: Sequence[str]) -> int:
    flags = make_parser().read(argv)
    labels, top = _labels(flags), _top(flags.top)
    _model(flags.model)
    from featprep import devices, images

    # Every file has a result of its own here: a.png and a.jpg write nothing.
    selection = Selection(images.SUFFIXES, outputs=lambda key: (key,), names="full", flag="IMAGES")
    source = Source(flags.input, selection)
    total = source.census().total
    devices.let_threads_sleep()
    with warnings_as_notes():
        return _classify(flags, labels, top, source, total)


def _classify(
    flags: argparse.Namespace, labels: Sequence[str], top: int, source: Source, total: int
) -> int:
    from featprep.tasks import models, zero_shot

    templates = zero_shot.check_templates(flags.template or zero_shot.DEFAULT_TEMPLATE)
    settings = parsed_settings({name: getattr(flags, name) for name in models.SETTINGS})
    config = models.task_config(_model(flags.model), settings)
    classifier = zero_shot.ZeroShotClassification(*models.open_towers(config))
    if not flags.quiet:
        say("scores", f"{classifier.kind_of_scores(len(labels))}, {classifier.spec.name}")
        if classifier.spec.meaningless:
            say("note", f"{classifier.spec.name} has random weights: its scores carry no meaning")
    began = time.perf_counter()
    progress = Progress(total, 0, quiet=flags.quiet, verbose=False)
    entries: list[Entry] = []  # those handed out and not yet answered: a batch at most
    paths = _paths(source, entries)
    try:
        for outcome in classifier.outcomes(paths, labels, templates):
            for failed in _passed_over(entries):
                _print_failure(failed, flags.json, progress)
            _print(entries.pop(0), outcome, top, flags.json, progress)
        for failed in _passed_over(entries):
            _print_failure(failed, flags.json, progress)
    finally:
        progress.close()
    if not flags.quiet:
        seconds, count = time.perf_counter() - began, total - progress.failed
        text = f"{counted(count, 'image')} scored, {progress.failed:,} failed"
        say("done", f"{text}; {seconds:.1f} s, {total / seconds:.1f} images/s")
    return _SOME_FAILED if progress.failed else 0


def _paths(source: Source, entries: list[Entry]) -> Iterator[str]:
    """What to open, in order; `entries` keeps what each is, with those that cannot be listed."""
    for folder in source.folders():
        for entry in folder:
            entries.append(entry)
            if isinstance(entry, ImageRef):
                yield entry.path


def _passed_over(entries: list[Entry]) -> Iterator[Failure]:
    while entries and isinstance(entries[0], Failure):
        failed = entries.pop(0)
        assert isinstance(failed, Failure)
        yield failed


def _print(
    entry: Entry, outcome: Ranking | Failure, top: int, is_json: bool, progress: Progress
) -> None:
    if isinstance(outcome, Failure):
        failed = Failure(entry.key, entry.source, outcome.stage, outcome.reason)
        _print_failure(failed, is_json, progress)
        return
    if is_json:
        print(_json({"image": entry.source, "labels": outcome[:top]}), flush=True)
    else:
        print(printable(entry.source))
        for row in outcome[:top]:
            print(f"  {row['score']:.4f}  {printable(row['label'])}", flush=True)
    progress.step()


def _print_failure(failed: Failure, is_json: bool, progress: Progress) -> None:
    progress.failed += 1
    say("failed", f"{printable(failed.source)}: {failed.stage}: {printable(failed.reason)}")
    if is_json:
        print(_json({"image": failed.source, "error": failed.reason}), flush=True)
    progress.step()


def _json(row: dict[str, object]) -> str:
    """Names that are no UTF-8 stay as Python has them, \\udcff, which JSON can say."""
    return json.dumps(row, ensure_ascii=any("\udc80" <= c <= "\udcff" for c in str(row["image"])))


# --- flags


def _model(asked: str | None) -> str:
    if not asked:
        raise UsageError(
            "--model is required: a model of images and texts, for example --model clip:ViT-B/32"
        )
    if not isinstance(parse_value("model", asked), str):
        raise UsageError(f"--model {shown(asked)}: classify takes one; run it for each in turn")
    return asked


def _labels(flags: argparse.Namespace) -> tuple[str, ...]:
    from featprep.tasks.zero_shot import check_labels

    labels = [] if flags.labels_file is None else _file_labels(flags.labels_file)
    labels += [label.strip() for label in (flags.labels or "").split(",") if label.strip()]
    return check_labels(labels, '--labels "cat,dog", or --labels_file FILE')


def _file_labels(path: str) -> list[str]:
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(
            f"--labels_file {shown(path)}: {reason}; give a text file, one label a line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _top(asked: str | None) -> int:
    try:
        top = 5 if asked is None else int(asked)
    except ValueError:
        top = 0
    if top < 1:
        raise UsageError(
            f"--top {shown(asked or '')}: allowed is a whole number from 1 up; for example --top 5"
        )
    return top
