"""What an encoding run says on stderr while it goes: lines, one progress bar, shapes, failures."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from featprep.naming import printable
from featprep.python_words import CallerWarning
from featprep.records import AnyArray, Failure, Features, Prepared
from featprep.runner import Events, Totals

PLAIN_EVERY_S = 10.0
SHOWN_FAILURES = 10


_title = ""  # of this process, where several tell at once


def title_lines(title: str) -> None:
    """From now on every line begins with this, and no bar is drawn."""
    global _title
    _title = f"{title:<7} "


def say(label: str, text: str) -> None:
    """One labelled line, above the bar if one is drawn.

    Its end goes out with it: written apart, a flush of another thread could let the line of another
    process in between.
    """
    tqdm.write(f"{_title}{label:<8} {text}\n", file=sys.stderr, end="")
    sys.stderr.flush()


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """What Python's callers are warned of is one line of a command, without a place in our code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CallerWarning)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, CallerWarning):
                say("note", printable(str(message)))
            else:
                others(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def counted(count: int, noun: str) -> str:
    """`1 image`, `1,200 images`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def shape_text(shape: Sequence[int]) -> str:
    return "(" + ",".join(map(str, shape)) + ")"


def mask_text(mask: AnyArray | None) -> str:
    return "" if mask is None else f", mask {shape_text(mask.shape)} {mask.dtype}"


def features_text(features: Features, mask: AnyArray | None) -> str:
    """`map (C,h,w) float32, @5 (C,h,w), mask (h,w) uint8, prefix (P,C)`: what a result holds."""
    more = sorted(list(features.maps)[1:])
    maps = [f"map {shape_text(features.map.shape)} {features.map.dtype}"]
    maps += [f"@{layer} {shape_text(features.maps[layer].shape)}" for layer in more]
    vectors = [
        f"{name} {shape_text(array.shape)}"
        for name, array in features.vectors.items()
        if name != "empty"
    ]
    return "".join([", ".join(maps), mask_text(mask), *(f", {text}" for text in vectors)])


class Progress:
    """A bar on a terminal, a plain line every ten seconds elsewhere, nothing with --quiet."""

    def __init__(
        self, total: int, done: int, *, quiet: bool, verbose: bool, unit: str = "images"
    ) -> None:
        """`unit`: what is counted: images, or where each gives several, results."""
        self.quiet, self.verbose, self.unit = quiet, verbose, unit
        self.count, self.total, self.failed, self.told = done, total, 0, 0
        self._began = self._last = time.monotonic()
        self._start = done
        self._bar = None
        if not quiet and not _title and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit=f" {unit}", file=sys.stderr)

    def on_replaced(self) -> None:
        """An image counted as done before is encoded again."""
        self.count -= 1
        if self._bar is not None:
            self._bar.update(-1)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self) -> None:
        self.count += 1
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.failed} failed" if self.failed else "", refresh=False)
            self._bar.update(1)
        elif not self.quiet and time.monotonic() - self._last >= PLAIN_EVERY_S:
            self._last = time.monotonic()
            rate = (self.count - self._start) / (self._last - self._began)
            unit = self.unit
            say("progress", f"{self.count:,}/{self.total:,} {unit}, {rate:,.1f} {unit}/s, "
                            f"{self.failed:,} failed")  # fmt: skip


class Teller(Events):
    """What one encoder of a run tells: shapes, every image with --verbose, failures.

    `tokens`: what the network makes of an input's height and width, as the encoder says. `title`:
    stands before every line; empty where there is one encoder.
    """

    def __init__(
        self, progress: Progress, tokens: Callable[[int, int], tuple[int, int]], title: str
    ) -> None:
        self._progress, self._tokens = progress, tokens
        self._title = f"{title}: " if title else ""
        self._seen: set[tuple[int, ...]] = set()
        # told when the first map of the size is there
        self._pending: dict[tuple[int, ...], str] = {}

    def on_batch(self, batch: int, images: Sequence[Prepared]) -> None:
        """Once for every new size: pixels → tokens; the map and mask follow with the first row."""
        shape = images[0].pixels.shape
        if self._progress.quiet or shape in self._seen:
            return
        self._seen.add(shape)
        tokens = shape_text((batch, *self._tokens(*shape[1:])))
        few = f", {counted(len(images), 'image')} and padding" if len(images) < batch else ""
        self._pending[shape] = f"pixels {shape_text((batch, *shape))}{few} → tokens {tokens}"

    def on_row(self, image: Prepared, features: Features) -> None:
        pending = self._pending.pop(image.pixels.shape, None)
        if pending:
            say("shapes", f"{self._title}{pending} → {features_text(features, image.mask)}")
        if self._progress.verbose:
            result = features_text(features, image.mask)
            size = "×".join(map(str, image.meta["geometry"]["source_size"]))
            source = printable(image.ref.source)
            say("image", f"{self._title}{source} {size} → {result}")
        self._progress.step()

    def on_failure(self, failure: Failure) -> None:
        progress = self._progress
        progress.failed += 1
        if progress.told < SHOWN_FAILURES or progress.verbose:
            reason = f"{failure.stage}: {printable(failure.reason)}"
            say("failed", f"{self._title}{printable(failure.source)}: {reason}")
            progress.told += 1
        elif progress.told == SHOWN_FAILURES and not progress.quiet:
            say("failed", "… more: see failures.jsonl when the run ends")
            progress.told += 1
        progress.step()


def size_text(count: float) -> str:
    """Bytes as people read them, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def time_text(totals: Totals, unit: str = "images") -> str:
    done = totals.encoded + totals.failed
    if not done:
        return f"{totals.wall_s:.1f} s"
    rate = done / totals.wall_s if totals.wall_s else 0.0
    busy = "  ".join(f"{name} {share * 100:.0f} %" for name, share in totals.busy().items())
    return f"{totals.wall_s:.1f} s, {rate:,.1f} {unit}/s; busy: {busy}"
