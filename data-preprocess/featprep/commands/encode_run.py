"""The run behind `featprep encode`: opens every stage, says what it does, closes them in order."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from featprep import devices, encoders, images
from featprep.commands.console import Progress, say, shape_text, size_text, time_text
from featprep.config import EncodeConfig
from featprep.decoding import DecodePool
from featprep.devices import Precision
from featprep.encoders import wants
from featprep.encoders.base import ModelName, StorageDtype
from featprep.ledger import Fingerprint, Ledger, LedgerOptions, RunIdentity, read_run, tag_of
from featprep.naming import printable
from featprep.recording import Recorder, count_changed, count_done
from featprep.records import ImageRef, Prepared
from featprep.resolve import (
    Resolved,
    by_patch,
    fingerprint,
    has_vectors,
    layers_of,
    resolve,
    want_of,
)
from featprep.runner import Runner, Totals
from featprep.session import Session, open_session
from featprep.sources import Census, Selection, Source, folds_case
from featprep.stores.base import write_whole
from featprep.stores.npy_tree import NpyTreeStore


def plan(config: EncodeConfig, family: str) -> int:
    """--plan: counts, collisions, bytes. Touches nothing and imports no torch."""
    name = encoders.resolve(config.model, family)
    store, source, census = survey(config, further_layers(config, name))
    refuse_early(config, name, source)
    missing, changed = census.images - census.done, count_changed(store, source)
    again = f", {changed:,} of images that changed since" if changed else ""
    print(f"input       {input_text(config, census)}")
    print(f"there       {census.done:,} results{again}; {missing:,} missing")
    count = census.images if config.overwrite else missing + changed
    print(f"to write    {_planned_bytes(config, name, count)}")
    print("collisions  none")
    return 0


def run(config: EncodeConfig, family: str) -> int:
    """Encode; returns the exit code (SPEC 7)."""
    name = encoders.resolve(config.model, family)
    layers = further_layers(config, name)
    store, source, census = survey(config, layers)
    refuse_early(config, name, source)
    devices.let_threads_sleep()
    workers, _ = devices.choose_workers(config.workers)
    with DecodePool(workers, config.decode_timeout) as pool:  # starts while torch is imported
        session = open_session(config, name, batch_size=_batch_size_before(config))
        if tuple(session.resolved.more_channels) != layers:  # only the weights told them
            store, source, census = survey(config, tuple(session.resolved.more_channels))
        introduce(config, session, census)
        return EncodeRun(session, store, source, census, pool).go()


def refuse_early(config: EncodeConfig, name: ModelName, source: Source) -> None:
    """Refuse an output of other settings before the weights load, as far as can be seen without.

    What only a loaded encoder tells is taken as it stands there; the ledger compares it later.
    """
    there, spec = read_run(config.output), encoders.describe(name)
    if there is None or spec is None:
        return
    before = there["fingerprint"]
    storage: StorageDtype = "float16" if config.fp16 else "float32"
    resolved = resolve(config, spec, storage, by_patch(spec), is_plain=name.is_plain)
    precision = Precision(before.get("compute", "float32"), storage, "")
    mine = fingerprint(config, spec, before.get("weights", ""), resolved, precision)
    asked_of_model = "cells" if config.grid else "grid"
    mine[asked_of_model] = before.get(asked_of_model)
    identity = RunIdentity(mine, source.root)
    options = LedgerOptions(config.shard, config.overwrite, config.moved)
    Ledger(config.output, identity, options, lambda count, keys, older: None).check()


def further_layers(config: EncodeConfig, name: ModelName) -> tuple[int, ...]:
    """Layers beside the first, counted from 0; before the weights are read, as far as is known."""
    spec = encoders.describe(name)
    if spec is None:
        return tuple(sorted(layer for layer in config.layer[1:] if layer >= 0))
    return tuple(sorted(wants.check(spec, want_of(config, "float32")).layers[1:]))


def survey(config: EncodeConfig, layers: Sequence[int]) -> tuple[NpyTreeStore, Source, Census]:
    """The output, the input, and what stands of one in the other. Raises for names that collide."""
    store = make_store(config, layers)
    source = open_source(config, store)
    return store, source, source.census(lambda keys: count_done(store, keys))


def make_store(config: EncodeConfig, layers: Sequence[int]) -> NpyTreeStore:
    return NpyTreeStore(
        config.output,
        mask=config.mask != "none",
        meta=config.save_meta,
        layers=layers,
        vectors=config.prefix or config.pooled or config.masked_pool,
        tag=tag_of(config.shard),
    )


def open_source(config: EncodeConfig, store: NpyTreeStore) -> Source:
    masks = {os.path.realpath(config.mask_dir)} if config.mask_dir else set()
    selection = Selection(
        suffixes=images.SUFFIXES,
        outputs=store.files,
        names=config.names,
        shard=config.shard,
        limit=config.limit,
        folds=folds_case(config.output),
        excluded=frozenset(masks - {os.path.realpath(config.input)}),
    )
    return Source(config.input, selection)


def introduce(config: EncodeConfig, session: Session, census: Census) -> None:
    """The first lines of a run: encoder, device, input, each choice with its reason."""
    if config.quiet:
        return
    spec, geometry = session.encoder.spec, session.resolved.geometry
    shape = session.resolved.map_shape or (session.resolved.channels, "h", "w")
    size = "×".join(map(str, geometry.size)) if geometry.size else "each image's own size"
    if session.resolved.tiling:
        size += f" in windows of {'×'.join(map(str, session.resolved.tiling.tile))}"
    layers = ",".join(map(str, session.resolved.layers))
    layer = f"  layer {layers}" if config.layer != (-1,) else ""
    weights = f"weights {session.encoder.digest[:8]} ({session.encoder.origin})"
    say("encoder", f"{spec.name}  ({', '.join(map(str, shape))}) at {size}{layer}  {weights}")
    if spec.meaningless:
        say("", "tiny has seeded random weights: its features carry no meaning")
    precision = session.precision
    say(
        "device",
        f"{devices.device_title(session.device)}  compute {precision.compute} "
        f"({precision.reason}), stored {precision.storage}; "
        f"batch {session.batch_size} ({session.batch_reason})",
    )
    left = census.images if config.overwrite else census.images - census.done
    each = session.resolved.bytes_per_image(config.save_meta)
    to_write = f", {size_text(left * each)} to write" if each else ""
    say("input", input_text(config, census, f", {census.done:,} done before{to_write}"))


def input_text(config: EncodeConfig, census: Census, middle: str = "") -> str:
    shard = f" in shard {config.shard[0]}/{config.shard[1]}" if config.shard else ""
    ignored = ", ".join(f"{n:,} {printable(s)}" for s, n in census.ignored.most_common(6))
    passed = f"; ignored: {ignored}" if ignored else ""
    return f"{printable(config.input)}  {census.images:,} images{shard}{middle}{passed}"


def _planned_bytes(config: EncodeConfig, name: ModelName, missing: int) -> str:
    spec = encoders.describe(name)
    if spec is None:
        return f"{missing:,} results; their size is known once the weights are read"
    storage = "float16" if config.fp16 else "float32"
    resolved = resolve(config, spec, storage, by_patch(spec), is_plain=name.is_plain)
    each = resolved.bytes_per_image(config.save_meta)
    if each is None:
        return f"{missing:,} results; each image's size decides"
    shape = shape_text((resolved.channels, *(resolved.geometry.grid or ())))
    more = _further_text(resolved)
    return (
        f"{size_text(missing * each)}: {missing:,} × {shape} {storage}{more}, "
        f"{size_text(each)} each"
    )


def _further_text(resolved: Resolved) -> str:
    """What a result holds beside its first map and its mask."""
    grid = resolved.geometry.grid or ()
    texts = [f"@{n} {shape_text((c, *grid))}" for n, c in resolved.more_channels.items()]
    texts += [name for name in resolved.vector_sizes if name != "empty"]
    return "".join(f", {text}" for text in texts)


def _batch_size_before(config: EncodeConfig) -> int | None:
    """`auto` is resolved once for an output: maps of one run are made in batches of one size."""
    before = None if config.overwrite else read_run(config.output)
    size = before.get("about", {}).get("batch_size") if before else None
    return size if isinstance(size, int) and size > 0 else None


class EncodeRun:
    """One run from lock to closing lines."""

    def __init__(
        self,
        session: Session,
        store: NpyTreeStore,
        source: Source,
        census: Census,
        pool: DecodePool,
    ) -> None:
        self.session, self.config, self.store = session, session.config, store
        self.source, self.census, self.pool = source, census, pool
        self.stop = threading.Event()
        self.signal = 0

    def go(self) -> int:
        config = self.config
        options = LedgerOptions(
            config.shard,
            config.overwrite,
            config.moved,
            config.break_lock,
            taken=self.census.taken,
        )
        ledger = Ledger(config.output, self._identity(), options, self._clear)
        done = 0 if config.overwrite else self.census.done
        progress = RunProgress(self.session, self.census.images, done)
        with self._signals(), ledger:
            recorder = Recorder(
                self.store,
                ledger,
                self.session.metadata,
                self.session.resolved,
                overwrite=config.overwrite,
            )
            recorder.on_replaced = progress.on_replaced
            try:
                totals = self._encode(recorder, progress)
                totals.failed += self._complete_meta(recorder)
            finally:
                progress.close()
            ledger.is_complete = not (totals.stopped or config.limit is not None)
        self._close(totals, recorder)
        if self.signal:
            return 128 + self.signal
        return 3 if totals.failed else 0

    def _encode(self, recorder: Recorder, progress: Progress) -> Totals:
        encoder = self.session.batch_encoder(on_halved=_tell_halved)
        rules = self.session.rules
        runner = Runner(
            decode=lambda refs, ahead: self.pool.map(refs, rules, ahead),
            encoder=encoder,
            sink=recorder,
            events=progress,
            workers=self.pool.workers,
            stop=self.stop,
        )
        return runner.run(recorder.todo(self.source.folders()))

    def _complete_meta(self, recorder: Recorder) -> int:
        """--save_meta on a later run: the metadata that is missing, without encoding. How many
        images failed."""
        failed = written = 0
        if not self.config.save_meta or self.stop.is_set():
            return failed
        refs: Iterable[ImageRef] = recorder.without_meta(self.source.folders())
        for outcome in self.pool.map(refs, self.session.rules, 4 * self.pool.workers):
            is_written = False
            if isinstance(outcome, Prepared):
                is_written = recorder.write_meta(outcome)
            else:
                recorder.fail(outcome)
            written += is_written
            failed += not is_written
            if self.stop.is_set():
                break
        if written:
            say("metadata", f"{written:,} files written for results that stood without")
        return failed

    def _identity(self) -> RunIdentity:
        about = {
            "device": devices.device_title(self.session.device),
            "batch_size": self.session.batch_size,
            "precision": self.session.precision.reason,
            "versions": devices.library_versions(),
            "weights_files": dict(self.session.encoder.weights_files),
        }
        return RunIdentity(self.session.fingerprint, self.source.root, about)

    def _clear(self, count: int, keys: Iterator[str], older: list[Fingerprint]) -> None:
        """--overwrite with another fingerprint: recorded results, then what lost its record."""
        say("remove", f"{count:,} results of other settings in {printable(self.config.output)}")
        store = self._store_of(older)
        for key in keys:
            store.remove(key)
        everything = dataclasses.replace(self.config, shard=None, limit=None)
        for entries in open_source(everything, self.store).folders():
            for entry in entries:
                store.remove(entry.key)

    def _store_of(self, older: list[Fingerprint]) -> NpyTreeStore:
        """One that knows every file that a run of these settings, or of this one's, may have
        left."""
        layers = {*self.store.layers, *(n for run in older for n in layers_of(run)[1:])}
        vectors = self.store.vectors or any(map(has_vectors, older))
        return NpyTreeStore(self.config.output, layers=sorted(layers), vectors=vectors)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM ends the run cleanly, the second at once."""
        before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.signal = number
            self.stop.set()
            for name in before:
                signal.signal(name, signal.SIG_DFL)
            os.write(2, b"\nstopping   finishing what is in flight; again to stop at once\n")

        for name in before:
            signal.signal(name, on_signal)
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _close(self, totals: Totals, recorder: Recorder) -> None:
        skipped = recorder.skipped
        failed = f", {totals.failed:,} failed"
        if totals.failed:
            failed += f": {printable(recorder.ledger.failures_path)}"
        verb = "stopped" if totals.stopped else "done"
        say(verb, f"{totals.encoded:,} encoded, {skipped:,} skipped{failed}")
        say("time", time_text(totals))
        if totals.stopped:
            say("", "the same command goes on from here")
        if self.config.summary:
            self._write_summary(totals, skipped)

    def _write_summary(self, totals: Totals, skipped: int) -> None:
        size, session = self.session.resolved.geometry.size, self.session
        figures: dict[str, Any] = {
            "encoder": session.encoder.spec.name,
            "images": self.census.images,
            "encoded": totals.encoded,
            "skipped": skipped,
            "failed": totals.failed,
            "ignored": dict(self.census.ignored),
            "stopped": totals.stopped,
            "seconds": round(totals.wall_s, 3),
            "images_per_s": round((totals.encoded + totals.failed) / max(totals.wall_s, 1e-9), 3),
            "busy": {name: round(share, 4) for name, share in totals.busy().items()},
            "batch_size": session.batch_size,
            "size": list(size) if size else None,
            "peak_memory_bytes": peak_memory(),
        }
        text = json.dumps(figures, indent=1) + "\n"
        write_whole(os.path.abspath(str(self.config.summary)), [text.encode()])


class RunProgress(Progress):
    """Progress that knows the session, for the shapes line."""

    def __init__(self, session: Session, total: int, done: int) -> None:
        config = session.config
        super().__init__(total, done, quiet=config.quiet, verbose=config.verbose)
        self._encoder = session.encoder

    def on_batch(self, batch: int, images: Sequence[Prepared]) -> None:
        height, width = images[0].pixels.shape[1:]
        self.show_shapes(batch, self._encoder.tokens(height, width), images[0])


def _tell_halved(size: int) -> None:
    say("memory", f"the device is full: going on with batches of {size}")


def peak_memory() -> dict[str, int]:
    """Peak resident bytes of this process and of its largest decoding worker."""
    unit = 1 if sys.platform == "darwin" else 1024
    own, child = (
        resource.getrusage(who).ru_maxrss * unit
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {"main": own, "worker": child}
