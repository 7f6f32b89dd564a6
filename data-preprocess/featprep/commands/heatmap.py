"""`featprep heatmap OUT --text "a red car"`: where texts are in stored maps.

Reads the maps of a run and loads the text tower alone; what is written lies in a folder of its own.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from featprep.commands.console import Progress, say, warnings_as_notes
from featprep.commands.flags import Parser, add_settings, parsed_settings
from featprep.errors import InputError, UsageError
from featprep.naming import printable
from featprep.settings import nearest, shown

if TYPE_CHECKING:
    from featprep.commands.heatmap_folder import HeatmapFolder
    from featprep.records import UInt8
    from featprep.runs import Run
    from featprep.tasks.heatmap import Tally
    from featprep.tasks.scores import Float64

_DESCRIPTION = """Where texts are in stored maps: cosines, and a picture an image and text.

  featprep heatmap features/ --text "a red car" --over
  featprep heatmap features/ a/b --text sky --text road --text "a red car" --to where/

Of maps that a model of images and texts made with --feature projected or value. The text tower is
loaded, the images' is not needed."""
_SETTINGS = ("device", "trust_weights", "quick_gelu")
_SOME_FAILED = 3


def make_parser() -> Parser:
    parser = Parser("featprep heatmap", _DESCRIPTION)
    add = parser.add_argument
    add("output", metavar="OUT", help="the folder a run wrote")
    add("keys", metavar="KEY", nargs="*", help="images by their keys (default: all)")
    add("--text", metavar="TEXT", action="append", help="what to look for; may be given again")
    add(
        "--template",
        metavar="TEXT",
        action="append",
        help="sentence with {} in the text's place; several are averaged (default: {})",
    )
    add("--over", action="store_true", help="draw over the image, made again from its source")
    add("--range", metavar="LOW,HIGH", help="cosines of the colours' ends (default: a picture's)")
    add("--to", metavar="DIR", help="where to write (default: OUT_heatmap, beside OUT)")
    add("--model", help="FAMILY:NAME=PATH, where the run's weights are local")
    add("--quiet", action="store_true", help="no progress")
    add_settings(parser, _SETTINGS)
    return parser


def main(argv: Sequence[str]) -> int:
    flags = make_parser().read(argv)
    limits = _limits(flags.range)
    from featprep import devices
    from featprep.commands.heatmap_folder import HeatmapFolder
    from featprep.runs import Run
    from featprep.tasks import text_maps, zero_shot

    texts = zero_shot.check_labels(flags.text or [], '--text "a red car"', "texts")
    templates = zero_shot.check_templates(flags.template or "{}")
    run = Run(flags.output)
    name = text_maps.model_of(run, flags.model)
    _check_keys(run, flags.keys)
    about = {"run": run.fingerprint, "templates": templates, "over": flags.over}
    to = HeatmapFolder(flags.to or _beside(run.path), texts, about, limits)
    to.check(run.path)  # before anything is loaded
    settings = parsed_settings({name: getattr(flags, name) for name in _SETTINGS})
    devices.let_threads_sleep()
    tower, checked = text_maps.open_tower(run, name, settings)
    if not flags.quiet:
        say("texts", f"{len(texts):,} by the text tower of {tower.name}; {checked}")
    with warnings_as_notes():
        vectors = zero_shot.LabelVectors(tower).of(texts, templates)
    to.claim()
    return _draw(run, flags, vectors, to)


def _draw(run: Run, flags: argparse.Namespace, vectors: Float64, to: HeatmapFolder) -> int:
    from featprep.tasks.heatmap import Tally, cosines

    keys: Iterable[str] = flags.keys or run
    progress = Progress(len(flags.keys) or len(run), 0, quiet=flags.quiet, verbose=False)
    tally = Tally.of_none(len(vectors))
    try:
        for key in keys:
            try:
                feature, mask, _ = run[key]
                found = cosines(feature, vectors)
            except (OSError, ValueError) as error:
                progress.failed += 1
                say("failed", f"{printable(key)}: its result is damaged ({printable(str(error))})")
            else:
                to.write(key, found, mask, _pixels(run, key) if flags.over else None)
                tally.add(found, mask)
            progress.step()
    finally:
        progress.close()
    for number, text in enumerate(to.texts):
        print(f"{printable(text)}  {_found(tally, number)}  "
              f"{printable(to.path)}/{to.folder_of(number)}")  # fmt: skip
    return _SOME_FAILED if progress.failed else 0


def _found(tally: Tally, number: int) -> str:
    """Of a text over all images; of several texts also its share of the segments, and its colour
    there."""
    from featprep.tasks.heatmap_pictures import hex_colour

    if not tally.cells:
        return "no cell that counts"
    text = f"cosines {tally.least[number]:.3f} to {tally.greatest[number]:.3f}"
    if len(tally.highest) == 1:
        return text
    share = tally.highest[number] / tally.cells
    return f"{text}, highest in {share:.0%} of cells ({hex_colour(number)})"


def _beside(output: str) -> str:
    plain = os.path.normpath(output)
    return f"{os.path.abspath(plain) if plain in ('.', '..') else plain}_heatmap"


def _pixels(run: Run, key: str) -> UInt8 | None:
    """None, and said, where the image is gone."""
    from featprep.records import Failure
    from featprep.replay import network_pixels

    pixels = network_pixels(run, key)
    if isinstance(pixels, Failure):
        say("note", f"{printable(key)}: without the image, {printable(pixels.source)}: "
                    f"{pixels.reason}")  # fmt: skip
        return None
    return pixels


def _check_keys(run: Run, keys: Sequence[str]) -> None:
    for key in keys:
        if key not in run:
            hint = nearest(key, itertools.islice(run, 10_000))
            raise InputError(
                f"{printable(run.path)}: no result of key {shown(key)!r}.{hint} "
                f"`ls {printable(run.path)}` shows what is there"
            )


def _limits(asked: str | None) -> tuple[float, float] | None:
    if asked is None:
        return None
    try:
        low, high = (float(part) for part in asked.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not -1 <= low < high <= 1:
        raise UsageError(
            f"--range {shown(asked)}: allowed are two cosines from -1 to 1, the lower first; for "
            "example --range 0.1,0.3"
        )
    return low, high
