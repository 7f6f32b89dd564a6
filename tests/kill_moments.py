"""Kill real runs at random moments, go on, and compare with an undisturbed run.

    python tests/kill_moments.py FOLDER [--kills 200] [--seed 1]

A run is the command as it is, with its weights, decoding processes and files, in a fork of a
process that has imported everything once. Each is ended at a moment drawn from its length: half by
SIGKILL, the others by SIGTERM and SIGINT, two of three once it has begun to write. At once the same
command goes on, and must leave what an undisturbed run leaves: files byte for byte, records as
sets, nothing temporary, no lock, no process. Runs take turns: one worker, three, two encoders,
--overwrite over another setting. Then two runs start at once, and four shards. Prints one JSON
object; the exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Decoding processes import this file too: what is heavy is imported where it is used.
ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT.parent / "data-preprocess")]

IMAGES = 120
PATIENCE_S = 300
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MARK = "FEATPREP_KILL_MOMENTS"  # in the environment of a run and of all that it starts
USUAL = ("--model=hf:tiny", "--size=56", "--batch_size=8", "--save_meta", "--quiet")
OTHER = ("--background=white", "--layer=-1,0", "--prefix")


@dataclass(frozen=True)
class Scene:
    """`earlier`: flags of a finished run whose output the run begins with."""

    name: str
    flags: tuple[str, ...]
    earlier: tuple[str, ...] = ()

    @property
    def undisturbed(self) -> tuple[str, ...]:
        return tuple(flag for flag in self.flags if flag != "--overwrite")


SCENES = (
    Scene("one worker", (*USUAL, "--workers=1")),
    Scene("three workers", (*USUAL, "--workers=3")),
    Scene("overwrite", (*USUAL, "--workers=2", "--overwrite"), (*USUAL, *OTHER)),
    Scene("two encoders", ("--model=hf:tiny,clip:tiny", *USUAL[1:], "--workers=2")),
)


def make_images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    dice = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / ("sub" if number % 3 else ".") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = dice.integers(0, 256, (90, 70, 4 if number % 2 else 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")


class Running:
    """A command in a fork of its own."""

    def __init__(self, source: Path, output: Path, flags: tuple[str, ...]) -> None:
        from featprep import cli

        words = ["encode", f"--input={source}", f"--output={output}", *flags]
        self.output, self.said_at = output, output.with_name(f"{output.name}.{time.time_ns()}.txt")
        self.began, self.text = time.monotonic(), ""
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                said = os.open(self.said_at, os.O_WRONLY | os.O_CREAT, 0o600)
                os.dup2(said, 1)
                os.dup2(said, 2)
                os.environ[MARK] = str(output)
                code = cli.main(words)
                sys.stderr.flush()
            finally:
                os._exit(code)

    def is_over(self) -> bool:
        """Without taking its exit code."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def sleep(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.is_over() and not until():
            time.sleep(0.002)

    def wait(self) -> int:
        """Its exit code, negative if a signal ended it; `text` is then what it said."""
        self.sleep(PATIENCE_S)
        is_hung = not self.is_over()
        if is_hung:
            os.kill(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        said = self.said_at.read_text("utf-8", "replace") if self.said_at.exists() else ""
        self.text = ("it hung; " if is_hung else "") + said[-2000:]
        self.said_at.unlink(missing_ok=True)
        return 99 if is_hung else code

    def has_begun(self) -> bool:
        return any(self.output.rglob("*_mask.npy"))


@dataclass
class Undisturbed:
    """What a whole run leaves, and how long it takes until it writes, and from then on."""

    files: dict[str, object]
    start_s: float
    rest_s: float


@dataclass
class Campaign:
    folder: Path
    dice: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    wholes: dict[str, Undisturbed] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        return self.folder / "in"

    def undisturbed(self, scene: Scene) -> Undisturbed:
        """Made when it is first asked for, and beside it what is overwritten."""
        if scene.name not in self.wholes:
            if scene.earlier:
                self._must(3, self._earlier(scene), scene.earlier)
            output = self.folder / f"whole {scene.name}"
            running = Running(self.source, output, scene.undisturbed)
            running.sleep(PATIENCE_S, running.has_begun)
            begun = time.monotonic()
            self._check(f"undisturbed {scene.name}", running, (3,))
            self.wholes[scene.name] = Undisturbed(
                _snapshot(output), begun - running.began, time.monotonic() - begun
            )
        return self.wholes[scene.name]

    def kill(self, number: int, scene: Scene) -> None:
        """One moment of one run."""
        from kill_harness import check_whole

        output, whole = self.folder / f"out-{number}", self.undisturbed(scene)
        if scene.earlier:
            shutil.copytree(self._earlier(scene), output)
        chosen = self.dice.choice(SIGNALS)
        running = Running(self.source, output, scene.flags)
        if self.dice.random() < 2 / 3:  # of an overwriting run: old masks stand from the start
            running.sleep(PATIENCE_S, running.has_begun)
            start = whole.start_s if scene.earlier else 0
            running.sleep(self.dice.uniform(start, start + 0.8 * whole.rest_s))
        else:
            running.sleep(self.dice.uniform(0, whole.start_s))
        is_over, begun = running.is_over(), running.has_begun()
        what = f"{number} {scene.name} {chosen.name}"
        if not is_over:
            os.kill(running.pid, chosen)
            self.counts[f"by {chosen.name}"] += 1
            self.counts["while it wrote" if begun else "before it wrote"] += 1
        self.counts["kills" if not is_over else "ended before the moment"] += 1
        # 3: one image is broken, and the run was through when the signal came
        ends = (-chosen, 3) if chosen == signal.SIGKILL else (-chosen, 128 + chosen, 3)
        code = self._check(what, running, (3,) if is_over else ends)
        if code == 128 + chosen:
            self.counts["stopped cleanly"] += 1
            self._check_tidy(what, output)
        self.wrong += [f"{what}: {text}" for text in check_whole(output)]
        self._must(3, output, scene.flags, what)
        self._compare(what, output, scene)
        shutil.rmtree(output)

    def two_at_once(self, number: int) -> None:
        scene, output = SCENES[0], self.folder / f"two-{number}"
        runs = [Running(self.source, output, scene.flags) for _ in range(2)]
        codes = sorted(self._check(f"two at once {number}", run, (2, 3)) for run in runs)
        refused = [run for run in runs if "another run works on" in run.text]
        if codes[1] != 3 or len(refused) != codes.count(2):
            self.wrong.append(f"two at once: exit codes {codes}, {len(refused)} refused")
        self.counts["two at once"] += 1
        self.counts["of these one refused"] += len(refused)
        self._compare(f"two at once {number}", output, scene)

    def shards_at_once(self, number: int, count: int = 4) -> None:
        """All shards of one output together, one of them killed and started again."""
        scene, output = SCENES[0], self.folder / f"shards-{number}"
        flags = [(*scene.flags, f"--shard={i + 1}/{count}") for i in range(count)]
        runs = [Running(self.source, output, each) for each in flags]
        victim = self.dice.randrange(count)
        runs[victim].sleep(PATIENCE_S, runs[victim].has_begun)
        if not runs[victim].is_over():
            os.kill(runs[victim].pid, signal.SIGKILL)
            self.counts["shards killed"] += 1
        for i, run in enumerate(runs):
            ends = (0, 3, -signal.SIGKILL) if i == victim else (0, 3)
            self._check(f"shard {i + 1} of {number}", run, ends)
        self._check("the shard again", Running(self.source, output, flags[victim]), (0, 3))
        self.counts["shards at once"] += count
        self._compare(f"shards at once {number}", output, scene)

    def _earlier(self, scene: Scene) -> Path:
        return self.folder / f"earlier {scene.name}"

    def _must(self, code: int, output: Path, flags: tuple[str, ...], what: str = "") -> None:
        running = Running(self.source, output, flags)
        self._check(f"{what} goes on" if what else f"first {output.name}", running, (code,))

    def _check(self, what: str, running: Running, allowed: tuple[int, ...]) -> int:
        code = running.wait()
        if code not in allowed or "Traceback" in running.text:
            self.wrong.append(f"{what}: exit {code}, {running.text}")
        return code

    def _check_tidy(self, what: str, output: Path) -> None:
        left = [str(path) for path in output.rglob("*") if path.name.endswith(".tmp")]
        left += [str(path) for path in output.rglob("lock-*")]
        self.wrong += [f"{what}: stopped cleanly and left {left}"] * bool(left)

    def _compare(self, what: str, output: Path, scene: Scene) -> None:
        found, expected = _snapshot(output), self.undisturbed(scene).files
        differing = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
        self.wrong += [f"{what}: differing {differing[:20]}"] * bool(differing)
        self._check_tidy(what, output)
        self.counts["results compared"] += sum(name.endswith(".npy") for name in found)


def _snapshot(output: Path) -> dict[str, object]:
    """Shards' records and failures are one set of records."""
    from kill_harness import snapshot

    merged: dict[str, Any] = {}
    for name, data in snapshot(output).items():
        folder, _, file = name.rpartition("/")
        kind = file.partition("-")[0].removesuffix(".jsonl")
        if file.endswith(".jsonl") and kind in ("results", "failures"):
            merged.setdefault(f"{folder}/{kind}", {}).update(json.loads(str(data)))
        else:
            merged[name] = data
    return merged


def left_running(folder: Path) -> list[int]:
    """Processes that runs in this folder started, and that live 10 s after the last one."""
    end = time.monotonic() + 10
    while (alive := list(_marked(folder))) and time.monotonic() < end:
        time.sleep(0.2)
    return alive


def _marked(folder: Path) -> list[int]:
    found, mark = [], b"\0" + os.fsencode(f"{MARK}={folder}/")
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in b"\0" + path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it ended, or is another user's
            continue
    return found


def take_own_shared_memory() -> bool:
    """A /dev/shm that this process and its runs alone have, where root may make one: what stands
    there afterwards was left by a run."""
    new_mounts = 0x00020000  # CLONE_NEWNS; Python has os.unshare from 3.12
    if sys.platform != "linux" or os.geteuid() or ctypes.CDLL(None).unshare(new_mounts):
        return False
    private = ["mount", "--make-rprivate", "/"]
    mount = ["mount", "-t", "tmpfs", "kill-moments", "/dev/shm"]
    return all(subprocess.run(do, capture_output=True).returncode == 0 for do in (private, mount))


def import_everything() -> None:
    """Once, for all forks."""
    import kill_harness  # noqa: F401
    import torch.utils.flop_counter  # noqa: F401
    import transformers.models.clip.modeling_clip
    import transformers.models.dinov2.modeling_dinov2  # noqa: F401
    from featprep import encoders

    encoders.resolve("hf:tiny", "any")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at_once", type=int, default=5, help="how often two, and four shards")
    return parser


def main() -> int:
    words = make_parser().parse_args()
    has_own_memory = take_own_shared_memory()
    import_everything()
    campaign = Campaign(words.folder.resolve(), random.Random(words.seed))
    make_images(campaign.source)
    number = 0
    while campaign.counts["kills"] < words.kills and not campaign.wrong[8:]:
        campaign.kill(number, SCENES[number % len(SCENES)])
        number += 1
        if number % 20 == 0:
            print(f"{number}: {dict(campaign.counts)}", file=sys.stderr, flush=True)
    for attempt in range(words.at_once):
        campaign.two_at_once(attempt)
        campaign.shards_at_once(attempt)
    campaign.wrong += [f"process {pid} still runs" for pid in left_running(campaign.folder)]
    for name in sorted(os.listdir("/dev/shm")) if has_own_memory else ():
        if name.startswith("sem."):  # 32 bytes, of a process killed before Python had noted them
            campaign.counts["semaphores left"] += 1
        else:
            campaign.wrong.append(f"/dev/shm/{name} was left")
    print(json.dumps({"seed": words.seed, **campaign.counts, "wrong": campaign.wrong}, indent=1))
    return 1 if campaign.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
