"""The rounds of `featprep bench`: everyone is loaded, warmed up, and asked in turns (A B A B)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from featprep.bench import material, startup
from featprep.bench.load import cores_of_others, read_load
from featprep.bench.peers import Peer, peers_of
from featprep.bench.processes import Figures, HandError, Job, Maker, Process
from featprep.bench.report import Rounds, summarise
from featprep.bench.report import startup as startup_figures
from featprep.bench.stages import make_parts
from featprep.commands.bench_run import make_run
from featprep.commands.console import say
from featprep.encoders.base import ModelName
from featprep.errors import FeatprepError
from featprep.version import read_version

_FEW = 8  # images, to warm up with
OURS = {"limit": "parts", "model": "parts", "stages": "parts", "run": "run"}  # task → its process


@dataclass(frozen=True, slots=True)
class Asked:
    """The flags, checked. `encode`: settings of featprep encode."""

    name: ModelName
    size: tuple[int, int]
    images: int
    rounds: int
    input: str | None
    peers: bool
    encode: Mapping[str, Any]


def measure(asked: Asked, folder: Path, start: Callable[[Maker, Job], Any] = Process) -> Figures:
    """The whole report. `start`: gives a contestant a process of its own."""
    say("weights", f"looking for those of {asked.name.typed}")
    name, origin = material.weights_here(asked.name, folder / "weights")
    images = _images(asked, folder / "images")
    job = Job(name, images.folder, images.paths, str(folder), asked.size, **asked.encode)
    converted = material.converted(name, asked.name.id, folder / "converted") if asked.peers else {}
    peers = peers_of(str(asked.name), name, converted) if asked.peers else []
    with _Contest(job, peers, start) as contest:
        contest.load()
        for number in range(asked.rounds):
            say("round", f"{number + 1} of {asked.rounds}")
            contest.go_round(len(images.paths))
        about, memory = contest.about, contest.close_watching()
    titles = {peer.key: peer.title for peer in peers}
    report = summarise(contest.rounds, about["parts"], titles)
    for row in report["peers"]:
        row |= {"settings": about.get(row["key"], {}), "memory": memory.get(row["key"], {})}
    return {
        "featprep": read_version(),
        "model": asked.name.typed,
        "weights": origin,
        "images": _images_told(images),
        "settings": _settings_told(asked, about["parts"]),
        **report,
        "memory": memory.get("run", {}),
        "startup": _startup(job, asked.rounds) if start is Process else {},
    }


def _images(asked: Asked, folder: Path) -> material.Material:
    if asked.input is None:
        return material.generate(asked.images, folder)
    return material.gather(asked.input, asked.images, folder)


def _images_told(images: material.Material) -> Figures:
    sizes = images.megapixels
    return {
        "count": len(images.paths),
        "source": images.source,
        "different": images.different,
        "megapixels": {"median": median(sizes), "low": min(sizes), "high": max(sizes)},
        "mean_file_bytes": round(images.file_bytes / len(images.paths)),
    }


def _settings_told(asked: Asked, about: Figures) -> Figures:
    keys = ("device", "cores", "compute", "stored", "reason", "batch_size", "map", "threads",
            "batches_at_a_time", "versions")  # fmt: skip
    return {
        "size": list(asked.size),
        "rounds": asked.rounds,
        **{key: about[key] for key in keys},
    }


class _Contest:
    """Everyone who is measured. A peer that fails is out, with its reason; one of ours ends it."""

    def __init__(self, job: Job, peers: Sequence[Peer], start: Callable[[Maker, Job], Any]) -> None:
        self.rounds, self.about = Rounds(), dict[str, Figures]()
        self._peers, self._hands = peers, dict[str, Any]()
        self._makers: dict[str, tuple[Maker, Job]] = {
            "parts": (make_parts, job),
            "run": (make_run, job),
        }
        for peer in peers:
            own = replace(job, name=peer.name, folder=os.path.join(job.folder, peer.key))
            self._makers[peer.key] = (peer.make, own)
        self._start = start

    def __enter__(self) -> _Contest:
        for key, (make, job) in self._makers.items():
            self._hands[key] = self._start(make, job)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self) -> None:
        """Wait for all, then let each do a few images: caches, thread pools, packed weights."""
        for key in list(self._hands):
            say("loading", key)
            with self._or_out(key):
                self.about[key] = self._hands[key].wait()
        for task, key in self._tasks():
            with self._or_out(key):
                self._hands[key].ask(task, self._few(key))

    def go_round(self, count: int) -> None:
        for task, key in self._tasks():
            name = task if key in OURS.values() else key
            with self._or_out(key):
                before = read_load()
                figures = self._hands[key].ask(task, count)
                self.rounds.add(name, figures, cores_of_others(before, read_load()))

    def close_watching(self) -> dict[str, Figures]:
        """Peak memory of each; of `featprep encode` also with its workers, in one more pass over a
        few images."""
        told: dict[str, Figures] = {}
        with self._or_out("run"):
            told["run"] = self._hands["run"].watch_memory("run", self._few("run"))
        for key, hand in self._hands.items():
            told[key] = told.get(key, {}) | hand.close()
        self._hands.clear()
        return told

    def close(self) -> None:
        for hand in self._hands.values():
            hand.close()
        self._hands.clear()

    def _tasks(self) -> list[tuple[str, str]]:
        ours = list(OURS.items())
        return ours + [("run", peer.key) for peer in self._peers if peer.key in self._hands]

    def _few(self, key: str) -> int:
        """A batch, or of who has none, two images."""
        batch = self.about[key].get("batch_size", _FEW)
        return min(2 if batch == 1 else _FEW, len(self._makers["run"][1].paths))

    @contextmanager
    def _or_out(self, key: str) -> Iterator[None]:
        try:
            yield
        except HandError as error:
            if key in OURS.values():
                raise _ended(error) from error
            self.rounds.failed[key] = str(error)
            self._hands.pop(key).close()


def _ended(error: HandError) -> FeatprepError:
    ended = FeatprepError(str(error))
    ended.exit_code = error.exit_code
    return ended


def _startup(job: Job, rounds: int) -> Figures:
    own = replace(job, folder=os.path.join(job.folder, "startup"))
    words = [
        *("encode", "--model", job.name.typed, "--input", job.images, "--output", own.folder),
        *("--size", ",".join(map(str, job.size)), "--device", job.device, "--limit", "8"),
        *(("--fp16",) if job.fp16 else ()),
        *(("--precision", job.precision) if job.precision else ()),
        *(("--batch_size", str(job.batch_size)) if job.batch_size else ()),
    ]
    taken: dict[str, list[float]] = {"encode": [], "bare": [], "upstream": []}
    for number in range(rounds):
        say("start-up", f"{number + 1} of {rounds}")
        taken["encode"].append(startup.seconds_to_first_batch(own, words))
        taken["bare"].append(startup.bare_seconds(job))
        taken["upstream"].append(startup.upstream_seconds(job))
    return startup_figures(taken)
