"""The run behind `featprep encode`: opens every stage, encodes, closes them in order.

One encoder or several go the same way: each is a part of the run with its own output, lock, ledger
and lane of the runner; an image that several still want is decoded once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

from featprep import devices
from featprep.commands import encode_lines as lines
from featprep.commands.console import Progress, Teller, say
from featprep.commands.encode_parts import Part, decided_before, open_parts, open_source
from featprep.commands.stopping import Stopping
from featprep.config import EncodeConfig
from featprep.decode_pool import DecodePool
from featprep.differences import Fingerprint
from featprep.ledger import Ledger, LedgerOptions, RunIdentity, folder_of
from featprep.naming import printable
from featprep.recording import Recorder, entries_left
from featprep.records import ImageRef, Prepared
from featprep.resolve import has_vectors, layers_of
from featprep.runner import Lane, Runner, Totals
from featprep.session import Session, open_session
from featprep.stores.base import check_writable
from featprep.stores.npy_tree import NpyTreeStore


def plan(config: EncodeConfig, family: str) -> int:
    """--plan: counts, collisions, bytes. Touches nothing and imports no torch."""
    lines.print_plan(config, open_parts(config, family))
    return 0


def run(config: EncodeConfig, family: str) -> int:
    """Encode; returns the exit code (SPEC 7)."""
    parts = open_parts(config, family)
    for part in parts:
        check_writable(folder_of(part.config.output))  # before the weights are loaded
    devices.let_threads_sleep()
    workers, _ = devices.choose_workers(config.workers)
    with DecodePool(workers, config.decode_timeout) as pool:  # starts while torch is imported
        for part in parts:
            before = decided_before(part.config)
            part.take(open_session(part.config, part.name, before=before, images=part.left))
        lines.introduce(config, parts)
        return EncodeRun(config, parts, pool).go()


class EncodeRun:
    """One run from its locks to its closing lines."""

    def __init__(self, config: EncodeConfig, parts: Sequence[Part], pool: DecodePool) -> None:
        self.config, self.parts, self.pool = config, parts, pool
        self.hands = parts[0].session.hands  # all are on one device, with the same threads
        self.stopping = Stopping()

    def go(self) -> int:
        ledgers = [_ledger(part) for part in self.parts]
        images = sum(part.census.images for part in self.parts)
        done = 0 if self.config.overwrite else sum(part.census.done for part in self.parts)
        quiet, verbose = self.config.quiet, self.config.verbose
        unit = lines.unit_of(self.parts)
        progress = Progress(images, done, quiet=quiet, verbose=verbose, unit=unit)
        with self.stopping.heard(), ExitStack() as stack:
            for ledger in ledgers:  # every lock before any work
                stack.enter_context(ledger.held())
            for ledger in ledgers:
                stack.enter_context(ledger)
            recorders = [
                _recorder(part, ledger, progress)
                for part, ledger in zip(self.parts, ledgers, strict=True)
            ]
            lanes = [
                _lane(part, recorder, progress, self.hands.count)
                for part, recorder in zip(self.parts, recorders, strict=True)
            ]
            try:
                totals = self._encode(lanes, recorders)
                for part, lane, recorder in zip(self.parts, lanes, recorders, strict=True):
                    failed = self._complete_meta(part, recorder)
                    lane.failed += failed
                    totals.failed += failed
            finally:
                progress.close()
            for ledger in ledgers:
                ledger.is_complete = not (totals.stopped or self.config.limit is not None)
        lines.close(self.config, self.parts, lanes, recorders, totals)
        if self.stopping.signal:
            return 128 + self.stopping.signal
        return 3 if totals.failed else 0

    def _encode(self, lanes: Sequence[Lane], recorders: Sequence[Recorder]) -> Totals:
        rules = [part.session.rules for part in self.parts]
        runner = Runner(
            decode=lambda jobs, ahead: self.pool.run(jobs, rules, ahead),
            lanes=lanes,
            workers=self.pool.workers,
            hands=self.hands.count,
            on_hand=lambda: devices.hold_threads(self.hands.threads),
            writers=devices.choose_writers(self.parts[0].session.device),
            stop=self.stopping.asked,
        )
        return runner.run(entries_left(recorders, self.parts[0].source.folders()))

    def _complete_meta(self, part: Part, recorder: Recorder) -> int:
        """--save_meta on a later run: the metadata that is missing, without encoding. How many
        images failed."""
        failed = written = 0
        if not self.config.save_meta or self.stopping.asked.is_set():
            return failed
        refs: Iterable[ImageRef] = recorder.without_meta(part.source.folders())
        for outcome in self.pool.map(refs, part.session.rules, 4 * self.pool.workers):
            is_written = False
            if isinstance(outcome, Prepared):
                is_written = recorder.write_meta(outcome)
            else:
                recorder.fail(outcome)
            written += is_written
            failed += not is_written
            if self.stopping.asked.is_set():
                break
        if written:
            text = f"{written:,} files written for results that stood without"
            say("metadata", f"{part.title}: {text}" if part.title else text)
        return failed


def _ledger(part: Part) -> Ledger:
    config = part.config
    options = LedgerOptions(
        config.shard, config.overwrite, config.moved, config.break_lock, taken=part.census.taken
    )
    identity = _identity(part.session, part.source.root)
    return Ledger(
        config.output,
        identity,
        options,
        lambda count, keys, older: _clear(part, count, keys, older),
    )


def _identity(session: Session, root: str) -> RunIdentity:
    about = {
        "device": devices.device_title(session.device),
        "batch_size": session.batch_size,
        "compile": session.compiled,
        "precision": session.precision.reason,
        "weights_files": dict(session.encoder.weights_files),
        "versions": devices.library_versions(),
    }
    return RunIdentity(session.fingerprint, root, about)


def _recorder(part: Part, ledger: Ledger, progress: Progress) -> Recorder:
    session = part.session
    recorder = Recorder(
        part.store, ledger, session.metadata, session.resolved, overwrite=part.config.overwrite
    )
    recorder.on_replaced = progress.on_replaced
    return recorder


def _lane(part: Part, recorder: Recorder, progress: Progress, hands: int) -> Lane:
    def tell_halved(size: int) -> None:
        text = f"the device is full: going on with batches of {size}"
        say("memory", f"{part.title}: {text}" if part.title else text)

    encoder = part.session.batch_encoder(tell_halved, hands)
    return Lane(encoder, recorder, Teller(progress, part.session.encoder.tokens, part.title))


def _clear(part: Part, count: int, keys: Iterator[str], older: list[Fingerprint]) -> None:
    """--overwrite with another fingerprint: recorded results, then what lost its record."""
    config = part.config
    say("remove", f"{count:,} results of other settings in {printable(config.output)}")
    store = _store_of(part, older)
    for key in keys:
        store.remove(key)
    everything = dataclasses.replace(config, shard=None, limit=None)
    for entries in open_source(everything, part.store).folders():
        for entry in entries:
            store.remove(entry.key)


def _store_of(part: Part, older: list[Fingerprint]) -> NpyTreeStore:
    """One that knows every file that a run of these settings, or of this one's, may have left."""
    layers = {*part.store.layers, *(n for run in older for n in layers_of(run)[1:])}
    vectors = part.store.vectors or any(map(has_vectors, older))
    return NpyTreeStore(part.config.output, layers=sorted(layers), vectors=vectors)
