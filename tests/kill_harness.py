"""Kill a run at every file-system step it takes, resume it, and compare with an undisturbed run.

    python tests/kill_harness.py FOLDER [--every N] [--flags="--save_meta …"] [--table v.parquet]

One process imports everything once and forks each run, so a kill costs milliseconds. A run is
killed by SIGKILL right before its n-th write, rename or unlink, n = 1, 1 + N, … until a run ends by
itself. Prints one JSON object: kills, and what differed (nothing, if all is well).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT.parent / "data-preprocess")]

from fakes import DEEP, FakeEncoder, fake_session  # noqa: E402
from featprep import encoders  # noqa: E402
from featprep.cli import _guarded  # noqa: E402
from featprep.commands import encode as encode_command  # noqa: E402
from featprep.commands import encode_run, vectorize, vectorize_run  # noqa: E402
from featprep.ledger import read_run  # noqa: E402
from featprep.resolve import has_vectors  # noqa: E402
from featprep.runs import Run  # noqa: E402
from test_encode_run import InlinePool  # noqa: E402

Command = Callable[[Path, Path, list[str]], int]  # input, output, flags → exit code
STEPS = ("write", "rename", "unlink", "replace")


def make_images(folder: Path) -> None:
    for i in range(5):
        path = folder / ("sub" if i > 2 else ".") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (40, 32), (40 * i, 10, 20, 255 - 50 * i)).save(path)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")


def encode(source: Path, output: Path, flags: list[str]) -> int:
    encode_run.open_session = fake_session(FakeEncoder(spec=DEEP))
    encoders.describe = lambda name: DEEP
    encode_run.DecodePool = InlinePool  # type: ignore[misc,assignment]
    words = ["--input", str(source), "--output", str(output), *flags]
    if not any(flag.startswith("--model=") for flag in flags):
        words.append("--model=clip:tiny")
    words += ["--size", "32", "--batch_size", "2", "--quiet"]
    return _guarded(lambda: encode_command.main(words))


def vectorize_into(table: str, source: Path, output: Path, flags: list[str]) -> int:
    """The same of a table of vectors, of two models: the pooled vector of one, CLS of the other."""
    other = replace(DEEP, name="fake:other", pooled=False)
    fakes = {"clip": FakeEncoder(spec=DEEP), "hf": FakeEncoder(spec=other, scale=2.0)}
    vectorize_run.open_session = lambda config, name, **_: fake_session(fakes[name.family])(
        config, name
    )
    vectorize_run.DecodePool = InlinePool  # type: ignore[misc,assignment]
    output.mkdir(exist_ok=True)
    words = ["--image_path", str(source), "--models", "clip:tiny,hf:tiny", *flags]
    words += ["--output", str(output / table), "--batch_size", "2", "--quiet"]
    return _guarded(lambda: vectorize.main(words))


def kill_before(step: int) -> None:
    """Patch the process to die right before its `step`-th file-system step."""
    count = [0]

    def counted(real: Callable) -> Callable:
        def call(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
            count[0] += 1
            if count[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def in_child(work: Callable[[], int]) -> int:
    """Exit code of `work` in a fork; −9 if it was killed."""
    pid = os.fork()
    if pid == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_run(step: int, command: Command, source: Path, output: Path, flags: list[str]) -> int:
    kill_before(step)
    return command(source, output, flags)


def snapshot(output: Path) -> dict[str, object]:
    """Result files byte for byte, records as sets; temporary files show up as files of their
    own."""
    found: dict[str, object] = {}
    for path in sorted(output.rglob("*")):
        name = str(path.relative_to(output))
        if path.is_dir() or name.endswith((".featprep/guard", ".featprep/run.json")):
            continue
        if ".run/" in name and not name.endswith("failures.jsonl"):
            continue  # rows lie in the order they came; the table made of them is compared
        data = path.read_bytes()
        if name.endswith(".jsonl"):
            lines = {line["key"]: line for line in map(json.loads, data.splitlines())}
            found[name] = json.dumps(lines, sort_keys=True)
        else:
            found[name] = data.hex()
    return found


def check_whole(output: Path) -> list[str]:
    """Every visible file must load, and a map must have all that was asked for beside it."""
    wrong = []
    for path in [*output.rglob("*.npy"), *output.rglob("*.npz")]:
        try:
            np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            wrong.append(f"{path.name}: {error}")
    for path in output.rglob("run.json"):
        wrong += check_run(path.parent.parent)
    return wrong


def check_run(output: Path) -> list[str]:
    if (read_run(str(output)) or {}).get("clearing"):
        return []  # what stands is of older settings
    wrong, run = [], Run(output)
    for key in run:
        beside = [key + "_mask.npy", *(f"{key}@{layer}.npy" for layer in run.layers[1:])]
        beside += [key + "_vec.npz"] * has_vectors(run.fingerprint)
        wrong += [f"{key} has no {name}" for name in beside if not (output / name).exists()]
    return wrong


def campaign(
    folder: Path, every: int, flags: list[str], earlier: list[str], command: Command
) -> dict[str, object]:
    """`earlier`: flags of a finished run in other settings, that the killed run overwrites."""
    source, kills, wrong = folder / "in", 0, []
    make_images(source)
    whole = folder / "whole"
    expected_code = in_child(
        lambda: command(source, whole, [f for f in flags if f != "--overwrite"])
    )
    expected = snapshot(whole)
    for step in range(1, 10_000, every):
        output = folder / f"out-{step}"
        if earlier:
            in_child(partial(command, source, output, earlier))
        if in_child(partial(killed_run, step, command, source, output, flags)) != -signal.SIGKILL:
            break
        kills += 1
        wrong += [f"step {step}: {text}" for text in check_whole(output)]
        again, found = in_child(partial(command, source, output, flags)), snapshot(output)
        if again != expected_code or found != expected:
            names = {*found, *expected}
            differing = sorted(n for n in names if found.get(n) != expected.get(n))
            wrong.append(f"step {step}: exit {again}, differing {differing}")
    return {"kills": kills, "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--flags", default="--save_meta", help="flags of the run, blanks between")
    parser.add_argument("--earlier", default="", help="flags of a finished run that is overwritten")
    parser.add_argument("--table", default="", help="a table of vectors of this name, not maps")
    words = parser.parse_args()
    flags, earlier = (text.split() for text in (words.flags, words.earlier))
    command: Command = encode
    if words.table:
        import pyarrow.parquet
        import torch.utils.flop_counter  # noqa: F401 (once, and not in each fork)

        pyarrow.array(np.zeros(1))  # imports pandas if it is there

        command = partial(vectorize_into, words.table)
    found = campaign(words.folder, words.every, flags, earlier, command)
    print(json.dumps(found))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
