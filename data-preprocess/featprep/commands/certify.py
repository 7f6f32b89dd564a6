"""`featprep certify MODEL…`: our maps against upstream's own modules."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from featprep import devices
from featprep.commands import certify_table as table
from featprep.commands.certify_table import Certificate
from featprep.commands.flags import Parser, add_settings, as_argument
from featprep.encoders import FAMILIES, list_encoders, resolve
from featprep.encoders.base import LoadOptions, ModelName
from featprep.errors import FeatprepError, InputError, UsageError
from featprep.naming import printable
from featprep.published import PUBLISHED, difference
from featprep.references import EXAMPLES

if TYPE_CHECKING:
    from featprep.certify import Verdict

_DESCRIPTION = """\
Hold an encoder's maps against its upstream's own modules: every kind of feature, native, other and
non-square sizes, float32 and bfloat16 (on a GPU float16 too), and that no map depends on the other
images of its batch. Upstream runs on the CPU, in float32.
Exits 1 if one lies outside tolerance, 2 if there was nothing to certify.

  featprep certify clip:ViT-B/32 hf:mine=./folder
  featprep certify --all --random --layers 3"""


def main(argv: Sequence[str]) -> int:
    flags = _read(argv)
    if flags.all and not flags.random:  # what is there counts: nothing is fetched
        os.environ["HF_HUB_OFFLINE"] = "1"
    names = _names(flags)
    if flags.random:
        print("random weights: the architectures are certified, and no published checkpoint")
    if flags.overhead:
        return _measure(names, flags)
    half = devices.reduced_precisions(flags.device)
    width = table.print_head((title for name in names for title in _titles(name, flags)), half)
    start, done = time.monotonic(), []
    for name in names:
        for certificate in _certify(name, flags):
            done.append(certificate)
            table.print_row(certificate, width, flags.verbose)
            _save(flags, done, time.monotonic() - start, is_complete=False)
    seconds = time.monotonic() - start
    table.print_closing(done, seconds, half)
    _save(flags, done, seconds, is_complete=True)
    return table.exit_code(done)


def _save(
    flags: argparse.Namespace, done: Sequence[Certificate], seconds: float, *, is_complete: bool
) -> None:
    """After every model: what is done stands, should it be interrupted."""
    if flags.json:
        settings = {"random": flags.random, "layers": flags.layers, "device": flags.device}
        settings["complete"] = is_complete
        table.write_json(flags.json, done, seconds, settings)


def make_parser() -> Parser:
    parser = Parser("featprep certify", _DESCRIPTION)
    switches = {
        "all": "one model of every architecture",
        "every": "with --all: the whole catalogue",
        "random": "full-size random weights in place of published ones",
        "across": "weights of clip: also through the other libraries, converted",
        "overhead": "measure instead what encode adds to upstream's module",
        "verbose": "a line a comparison",
    }
    parser.add_argument("models", nargs="*", metavar="MODEL", help="as for featprep encode")
    for name, text in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--layers", type=int, metavar="N", help="with --random: the first N blocks")
    parser.add_argument("--json", metavar="FILE", help="every comparison, for programs")
    parser.add_argument(
        "--device", default="cpu", help="where ours runs: auto, cpu, cuda, cuda:N, mps (cpu)"
    )
    parser.add_argument(
        "--image", metavar="FILE", help="COCO val2017 000000039769, of which figures are published"
    )
    add_settings(parser, ("quick_gelu", "trust_weights"))
    return parser


def _read(argv: Sequence[str]) -> argparse.Namespace:
    flags = make_parser().read(argv)
    _check(flags)
    if flags.device != "cpu":
        flags.device, _ = devices.choose_device(flags.device)
    return flags


def _check(flags: argparse.Namespace) -> None:
    if bool(flags.models) == flags.all:
        raise UsageError(
            "featprep certify: name models, or say --all; `featprep models` lists the names"
        )
    if flags.every and not flags.all:
        raise UsageError("--every: it is for --all; add --all, or drop it")
    if flags.layers is not None and (not flags.random or flags.layers < 1):
        raise UsageError(f"--layers {flags.layers}: allowed is 1 or more, with --random")
    if flags.image and flags.random:
        raise UsageError("--image: its figures are of published weights; drop it, or --random")
    folder = os.path.dirname(os.path.abspath(flags.json or "x"))
    if not os.path.isdir(folder):
        raise InputError(f"--json {printable(flags.json)}: no folder {printable(folder)}; make it")


def _names(flags: argparse.Namespace) -> list[ModelName]:
    values: list[str] = flags.models
    if flags.every:
        values = [name for name in list_encoders() if not name.endswith(":tiny")]
        if flags.random:  # of random weights, all tags of an architecture are one network
            values = list({_architecture(name): name for name in reversed(values)}.values())[::-1]
    elif flags.all:
        values = [f"{family}:{id}" for family, ids in EXAMPLES.items() for id in ids]
    with as_argument():
        names = [resolve(value, "any") for value in values]
    for name in names if flags.random else ():
        if name.path is not None or name.id not in (*FAMILIES[name.family].known, "tiny"):
            raise UsageError(
                f"--random: {name.typed} is no published architecture; allowed are the names that "
                "`featprep models` lists"
            )
    return names


def _titles(name: ModelName, flags: argparse.Namespace) -> Iterator[str]:
    yield name.typed
    if flags.across and name.family == "clip":
        yield f"{name.typed} as openclip:"
    if flags.image and str(name) in PUBLISHED:
        yield f"{name.typed} published"


def _architecture(name: str) -> str:
    return name.rpartition("/")[0] if name.startswith("openclip:") else name


def _certify(name: ModelName, flags: argparse.Namespace) -> Iterator[Certificate]:
    """One comparison after the other; what was written for it is gone when it is done."""
    from featprep import certify
    from featprep.references.conversions import conversions_of

    options = _options(flags)
    with _weights(name, flags.random, flags.layers) as local:
        yield _tried(name.typed, lambda: certify.certify(local, options=options))
        if flags.across:
            for family in conversions_of(local):
                across = partial(certify.certify_conversion, local, family, options)
                yield _tried(f"{name.typed} as {family}:", across)
    if flags.image:
        yield from _published(name, flags.image)


def _options(flags: argparse.Namespace) -> LoadOptions:
    return LoadOptions(
        device=flags.device, quick_gelu=flags.quick_gelu, trust_weights=bool(flags.trust_weights)
    )


def _tried(title: str, compare: Callable[[], Sequence[Verdict]]) -> Certificate:
    start = time.monotonic()
    try:
        with as_argument():
            verdicts = compare()
    except FeatprepError as error:
        return Certificate(title, "none", reason=str(error))
    except Exception as error:  # one broken encoder hides no later one
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Certificate(title, "FAIL", reason=reason)
    is_ok = all(verdict.is_within for verdict in verdicts)
    return Certificate(title, "ok" if is_ok else "FAIL", verdicts, time.monotonic() - start)


def _published(name: ModelName, image: str) -> Iterator[Certificate]:
    if str(name) not in PUBLISHED:
        return
    wanted, title = PUBLISHED[str(name)], f"{name.typed} published"
    try:
        found = difference(name, image)
    except InputError:
        raise
    except FeatprepError as error:
        yield Certificate(title, "none", reason=str(error))
        return
    reason = f"max {found:.1e}, allowed {wanted.tolerance:.0e}: {wanted.source}"
    yield Certificate(title, "ok" if found <= wanted.tolerance else "FAIL", reason=reason)


@contextmanager
def _weights(name: ModelName, is_random: bool, layers: int | None) -> Iterator[ModelName]:
    """The model with its own weights, or with random ones in a folder that is removed."""
    is_tiny = name.id == "tiny" and name.path is None
    if not is_random and not is_tiny:
        yield name
        return
    from featprep.encoders.tiny import write_random, write_tiny

    with tempfile.TemporaryDirectory(prefix="featprep-certify-") as folder:
        target = Path(folder)
        if is_tiny:
            path = write_tiny(name.family, target)
        else:
            path = write_random(str(name), target, layers)
        # a state dict of torchvision's does not say what it is
        id = name.id if name.family == "torchvision" else "random"
        yield ModelName(name.family, id, str(path))


def _measure(names: Sequence[ModelName], flags: argparse.Namespace) -> int:
    from featprep.overhead import measure_overhead

    options, computes = _options(flags), devices.reduced_precisions(flags.device)
    for name in names:
        with _weights(name, flags.random, flags.layers) as local:
            for load in (options, *(replace(options, compute=compute) for compute in computes)):
                table.print_overhead(name.typed, measure_overhead(local, load))
    return 0
