"""Our own parts, each alone: the limit, the model, and the stages that an image passes through.

One process for all of them, with threads as `featprep encode` sets them. A stage's cost is the
processor time of what the run itself calls, without the queues and processes between the stages.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from featprep import devices, encoders, images
from featprep.batching import Row
from featprep.bench.figures import STAGES
from featprep.bench.limit import Limit, operations_of
from featprep.bench.processes import Figures, Job, Ready
from featprep.config import EncodeConfig
from featprep.decoding import prepare, prepare_picture
from featprep.encoders.base import LoadOptions
from featprep.errors import InputError
from featprep.ledger import Ledger, LedgerOptions, RunIdentity
from featprep.naming import printable
from featprep.recording import Recorder
from featprep.records import Failure, ImageRef, Prepared, UInt8
from featprep.session import Session, open_session
from featprep.stores.npy_tree import NpyTreeStore


def config_of(job: Job, output: str, **more: Any) -> EncodeConfig:
    """The settings of `featprep encode` that the bench measures."""
    return EncodeConfig(
        input=job.images,
        output=output,
        model=job.name.typed,
        size=job.size,
        fp16=job.fp16,
        precision=job.precision,
        device=job.device,
        batch_size=job.batch_size,
        quiet=True,
        **more,
    )


def make_parts(job: Job) -> Ready:
    """Tasks limit, model and stages."""
    devices.let_threads_sleep()
    cores = devices.available_cores()
    session = open_session(config_of(job, job.folder), job.name)
    limit = Limit(_operations(job), session.batch_size, session.precision.compute,
                  session.device, cores)  # fmt: skip
    refs = [_ref(path) for path in job.paths]
    prepared = [_prepared(ref, session) for ref in refs]
    parts = Parts(job, session, refs, prepared, hands=_hands(session, cores))
    tasks = {"limit": limit.measure, "model": parts.model, "stages": parts.stages}
    more = {
        "cores": cores,
        "machine_cores": os.cpu_count() or cores,
        "limit": limit.about(),
    }
    return Ready(tasks, parts.about() | more)


def _operations(job: Job) -> Any:
    """Of our encoder as its library has it, in float32, whatever a run makes of it later."""
    device, _ = job.resolved()
    encoder = encoders.load_encoder(job.name, LoadOptions(device=device))
    pixels = np.zeros((1, 3, *job.size), np.uint8)
    return operations_of(lambda: encoder.encode(pixels, LoadOptions().want))


def _hands(session: Session, cores: int) -> int:
    """How many batches a run encodes at a time: as many as its threads leave cores for."""
    import torch

    return max(1, cores // torch.get_num_threads()) if session.device == "cpu" else 1


def _ref(path: str) -> ImageRef:
    name, found = os.path.basename(path), os.stat(path)
    return ImageRef(os.path.splitext(name)[0], name, path, found.st_size, found.st_mtime_ns)


def _prepared(ref: ImageRef, session: Session) -> Prepared:
    outcome = prepare(ref, session.rules)
    if isinstance(outcome, Failure):
        raise InputError(f"--input {printable(ref.source)}: {outcome.reason}; leave it out")
    return outcome


class Parts:
    """What is measured on images that are read once."""

    def __init__(
        self,
        job: Job,
        session: Session,
        refs: Sequence[ImageRef],
        prepared: Sequence[Prepared],
        hands: int,
    ) -> None:
        self.job, self.session, self.refs = job, session, refs
        self.prepared, self.hands = prepared, hands

    def about(self) -> Figures:
        import torch

        session = self.session
        shape = session.encoder.grid(*self.job.size)
        return {
            "device": devices.device_title(session.device),
            "compute": session.precision.compute,
            "stored": session.precision.storage,
            "reason": session.precision.reason,
            "batch_size": session.batch_size,
            "map": [session.resolved.channels, *shape],
            "threads": torch.get_num_threads(),
            "batches_at_a_time": self.hands,
            "versions": devices.library_versions(),
        }

    def model(self, count: int) -> Figures:
        """Our encoder on batches that are ready: uint8 in, maps on the host out."""
        size, want = self.session.batch_size, self.session.resolved.want
        whole = count - count % size or count  # a batch that must be padded would count for less
        batches = [_padded(part, size) for part in _parted(self.prepared[:whole], size)]
        with ThreadPoolExecutor(self.hands) as pool:
            began = time.perf_counter()
            for _ in pool.map(lambda batch: self.session.encoder.encode(batch, want), batches):
                pass
            seconds = time.perf_counter() - began
        return {"seconds": seconds, "images": whole, "images_per_s": whole / seconds}

    def stages(self, count: int) -> Figures:
        """Seconds an image: `core_s` of all threads, `wall_s` by the clock."""
        clock = Clock()
        for ref in self.refs[:count]:
            self._prepare(ref, clock)
        with self._recorder() as recorder:
            encoder = self.session.batch_encoder()
            for part in _parted(self.prepared[:count], self.session.batch_size):
                with clock.on("encode"):
                    rows = [row for row in encoder.encode(part) if not isinstance(row, Failure)]
                with clock.on("write"):
                    _write(recorder, rows)
        each = {name: {key: value / count for key, value in clock.spent[name].items()}
                for name in STAGES}  # fmt: skip
        return {"images": count, "stages": each}

    def _prepare(self, ref: ImageRef, clock: Clock) -> None:
        """decoding.prepare_job, taken apart."""
        rules = self.session.rules
        with clock.on("read"), open(ref.path, "rb") as file:
            data = file.read()
        with clock.on("decode"):
            picture = images.decode(data, max_pixels=rules.max_pixels)
        with clock.on("preprocess"):
            sha256 = hashlib.sha256(data).hexdigest()
            prepare_picture(picture, picture.alpha, ref, rules.geometry, sha256)

    @contextmanager
    def _recorder(self) -> Iterator[Recorder]:
        """Store and ledger of a run, in a folder that is removed."""
        output = tempfile.mkdtemp(prefix="write-", dir=self.job.folder)
        identity = RunIdentity(self.session.fingerprint, self.job.images)
        ledger = Ledger(output, identity, LedgerOptions(), lambda count, keys, older: None)
        try:
            with ledger.held(), ledger:
                session, store = self.session, NpyTreeStore(output)
                yield Recorder(store, ledger, session.metadata, session.resolved)
        finally:
            shutil.rmtree(output, ignore_errors=True)


def _parted(images: Sequence[Prepared], size: int) -> list[Sequence[Prepared]]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _write(recorder: Recorder, rows: Sequence[Row]) -> None:
    for row in rows:
        recorder.write(row)
    recorder.flush()


def _padded(part: Sequence[Prepared], size: int) -> UInt8:
    pixels = np.zeros((size, *part[0].pixels.shape), np.uint8)
    for row, image in zip(pixels, part, strict=False):
        row[...] = image.pixels
    return pixels


class Clock:
    """Adds up what each stage takes."""

    def __init__(self, times: Callable[[], tuple[float, float]] | None = None) -> None:
        self._times = times or (lambda: (time.process_time(), time.perf_counter()))
        self.spent = {name: {"core_s": 0.0, "wall_s": 0.0} for name in STAGES}

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        before = self._times()
        try:
            yield
        finally:
            for key, start, end in zip(("core_s", "wall_s"), before, self._times(), strict=True):
                self.spent[stage][key] += end - start
