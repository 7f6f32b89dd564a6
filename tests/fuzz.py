"""Fuzz everything that reads what others may have written, and say what it did not stand.

    python tests/fuzz.py --inputs 100000 --seed 1
    python tests/fuzz.py --inputs 5000 --only image --keep found/
    scripts/fuzz.sh --inputs 1000000                       with the project's own Python

Inputs are small real files, damaged (fuzz_inputs); what each reader may answer stands in
fuzz_targets. One of eight inputs runs under a tracer, and one that reaches a new line joins those
that are damaged further. Chunks run in forks, so that a crash or a hang of a decoder costs its
chunk alone, and is found by the input that stands on the board. The same seed gives the same
inputs. Prints one JSON object, of what was done until then if it is stopped (SIGINT, SIGTERM); the
exit code is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import mmap
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT.parent / "data-preprocess")]

from featprep.codec_state import mute_decoders  # noqa: E402
from fuzz_inputs import MOST  # noqa: E402
from fuzz_targets import Target, make_targets  # noqa: E402

SLOW_S, HUNG_S = 5, 30
GROWTH = 384 << 20  # bytes of peak memory that one input may add
TRACED = 8  # one of so many
CHUNK = 20_000
KEPT = 2000  # inputs a corpus holds beside its seeds


@dataclass(slots=True)
class State:
    """What one chunk hands to the next of its target."""

    pool: list[bytes]
    lines: set[tuple[str, int]] = field(default_factory=set)
    outcomes: Counter[str] = field(default_factory=Counter)
    found: list[dict[str, Any]] = field(default_factory=list)
    at: int = 0


class Tracer:
    """Lines of ours, of Pillow and of PyYAML that an input reached for the first time."""

    def __init__(self, lines: set[tuple[str, int]]) -> None:
        self._lines, self.is_new = lines, False

    def __enter__(self) -> Tracer:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_filename
        is_ours = "/featprep/" in name or "/PIL/" in name or "/yaml/" in name
        return self._line if is_ours else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        place = (frame.f_code.co_filename, frame.f_lineno)
        if place not in self._lines:
            self._lines.add(place)
            self.is_new = True
        return self._line


class Chunk:
    """Some inputs of one target, in this process."""

    def __init__(self, name: str, target: Target, state: State, seed: int, folder: Path) -> None:
        self.name, self.target, self.state, self.seed = name, target, state, seed
        self.folder = folder
        self.noise = _Noise(folder / "noise")

    def run(self, stop: int, board: mmap.mmap) -> None:
        for number in range(self.state.at, stop):
            dice = random.Random(f"{self.seed} {self.name} {number}")
            data = self.target.make(self.state.pool, dice)
            _put(board, data)
            signal.alarm(HUNG_S)
            self._try(number, data)
        signal.alarm(0)
        self.state.at = stop

    def _try(self, number: int, data: bytes) -> None:
        began, before = time.perf_counter(), _peak()
        try:
            if number % TRACED:
                outcome: str = self.target.run(data, self.folder)
            else:
                outcome = self._traced(data)
        except Exception as error:
            outcome = "found"
            self._find(number, _signature(error), data, traceback.format_exc(limit=-8))
        self.state.outcomes[outcome] += 1
        if time.perf_counter() - began > SLOW_S:
            self._find(number, "slow", data, f"{time.perf_counter() - began:.1f} s")
        if _peak() - before > GROWTH:
            self._find(number, "memory", data, f"{_peak() - before:,} bytes more")
        said = self.noise.taken()
        if said:
            self._find(number, f"noise: {said[:60]}", data, said)

    def _traced(self, data: bytes) -> str:
        with Tracer(self.state.lines) as tracer:
            outcome = self.target.run(data, self.folder)
        if tracer.is_new and len(self.state.pool) < KEPT:
            self.state.pool.append(data)
        return outcome

    def _find(self, number: int, what: str, data: bytes, text: str) -> None:
        known = next((one for one in self.state.found if one["what"] == what), None)
        if known:
            known["count"] += 1
            return
        self.state.found.append(
            {"target": self.name, "what": what, "number": number, "count": 1,
             "text": text, "input": data.hex()}
        )  # fmt: skip


class _Noise:
    """What is printed while a reader reads, by Python or by a warning; a worker's C libraries are
    muted, as in a run."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(self._file, 1)
        os.dup2(self._file, 2)
        mute_decoders()
        warnings.simplefilter("always")

    def taken(self) -> str:
        size = os.fstat(self._file).st_size
        if not size:
            return ""
        text = os.pread(self._file, 4000, 0).decode("utf-8", "replace")
        os.ftruncate(self._file, 0)
        return text


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _signature(error: Exception) -> str:
    """Type and place of an error: what tells one defect from another."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [one for one in frames if "/featprep/" in one.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return f"{type(error).__name__} at {place}"


def _put(board: mmap.mmap, data: bytes) -> None:
    board.seek(0)
    board.write(len(data).to_bytes(4, "little") + data)


def _taken(board: mmap.mmap) -> bytes:
    board.seek(0)
    return board.read(int.from_bytes(board.read(4), "little"))


def fuzz(
    name: str,
    target: Target,
    inputs: int,
    seed: int,
    deadline: float,
    state: State | None = None,
) -> State:
    """One target up to an input's number, a chunk in a fork after the other."""
    state = state or State(target.seeds())
    while state.at < inputs and time.monotonic() < deadline:
        state = _forked(name, target, state, seed, min(inputs, state.at + CHUNK))
    return state


def _forked(name: str, target: Target, state: State, seed: int, stop: int) -> State:
    board = mmap.mmap(-1, MOST + 4 + 4096)
    with tempfile.TemporaryDirectory(dir=_quick_folder()) as folder:
        after = Path(folder) / "state"
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for number in (signal.SIGALRM, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                chunk = Chunk(name, target, state, seed, Path(folder))
                chunk.run(stop, board)
                after.write_bytes(pickle.dumps(chunk.state))
                code = 0
            except BaseException:
                faulthandler.disable()
                Path(folder, "died").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            return pickle.loads(after.read_bytes())
        died = Path(folder, "died")
        text = died.read_text() if died.exists() else ""
    what = "hung" if code == -signal.SIGALRM else f"the process ended with {code}"
    state.found.append({"target": name, "what": what, "number": -1, "count": 1, "text": text,
                        "input": _taken(board).hex()})  # fmt: skip
    state.at = stop  # its counts are lost, and said to be: outcomes add up to less
    return state


def _quick_folder() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def campaign(
    inputs: int, seed: int, only: str = "", most_s: float = 1e9, scale: int = 0
) -> dict[str, Any]:
    """All targets by their shares. `scale`: the same number for each instead."""
    targets = {n: t for n, t in make_targets().items() if only in n}
    shares = sum(target.share for target in targets.values())
    counts = {n: scale or max(1, inputs * t.share // shares) for n, t in targets.items()}
    states, began = dict[str, State](), time.monotonic()
    turns = max(1, max(counts.values()) // CHUNK)
    with contextlib.suppress(KeyboardInterrupt):  # what was done until then is told
        for turn in range(1, turns + 1):  # in turns, so that a time limit cuts all of them alike
            for name, target in targets.items():
                stop, state = counts[name] * turn // turns, states.get(name)
                states[name] = fuzz(name, target, stop, seed, began + most_s, state)
            _tell(turn, turns, states)
    return {
        "seed": seed,
        "inputs": sum(sum(state.outcomes.values()) for state in states.values()),
        "targets": {
            name: dict(state.outcomes) | {"lines": len(state.lines)}
            for name, state in states.items()
        },
        "found": [one for state in states.values() for one in state.found],
        "seconds": round(time.monotonic() - began, 1),
    }


def _tell(turn: int, turns: int, states: dict[str, State]) -> None:
    inputs = sum(sum(state.outcomes.values()) for state in states.values())
    found = sum(len(state.found) for state in states.values())
    print(f"turn {turn} of {turns}: {inputs:,} inputs, {found} found", file=sys.stderr, flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="targets whose name holds this")
    parser.add_argument("--seconds", type=float, default=1e9, help="no new chunk after these")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that were not stood")
    return parser


def main() -> int:
    flags = make_parser().parse_args()
    signal.signal(signal.SIGTERM, _stop)
    result = campaign(flags.inputs, flags.seed, flags.only, flags.seconds)
    for number, one in enumerate(result["found"]):
        data = bytes.fromhex(one.pop("input"))
        one["bytes"] = len(data)
        if flags.keep:
            flags.keep.mkdir(parents=True, exist_ok=True)
            path = flags.keep / f"{one['target'].replace(' ', '-')}-{flags.seed}-{number}"
            path.write_bytes(data)
            one["file"] = str(path)
    print(json.dumps(result, indent=1))
    return 1 if result["found"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
