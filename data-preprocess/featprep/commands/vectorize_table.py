"""A run of `featprep vectorize` into a table, from its lock to its closing lines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from featprep import devices
from featprep.commands import vectorize_lines as lines
from featprep.commands.console import Progress, Teller, say
from featprep.commands.stopping import Stopping
from featprep.commands.vectorize_job import VectorJob
from featprep.decode_pool import DecodePool
from featprep.journal import LineIndex
from featprep.ledger import Ledger, LedgerOptions, RunIdentity
from featprep.ledger import folder_of as ledger_folder
from featprep.naming import printable
from featprep.records import ImageRef
from featprep.runner import Events, Lane, Runner, Totals
from featprep.sources import Source
from featprep.stores.row_file import RowFile
from featprep.tasks.vector_run import VectorRecorder, folder_of, rows_path
from featprep.tasks.vectors import Ensemble


def make_ledger(
    job: VectorJob, fingerprint: dict[str, Any], root: str, about: dict[str, Any]
) -> Ledger:
    config, output = job.config, str(job.output)
    options = LedgerOptions(None, config.overwrite, config.moved, config.break_lock)
    rows = rows_path(output)
    return Ledger(
        folder_of(output),
        RunIdentity(fingerprint, root, about),
        options,
        lambda count, keys, older: RowFile(rows, 1, "float32").clear(),
    )


class TableRun:
    """One run into a table, from its lock to its closing lines."""

    def __init__(
        self, job: VectorJob, ensemble: Ensemble, source: Source, pool: DecodePool
    ) -> None:
        self.job, self.ensemble, self.source, self.pool = job, ensemble, source, pool
        self.output = str(job.output)
        self.hands = ensemble.members[0].session.hands  # all are on one device
        self.stopping = Stopping()

    def go(self, images: int, *, is_one: bool) -> int:
        config = self.job.config
        fingerprint = self.ensemble.fingerprint(config.names)
        about = _about(self.ensemble)
        ledger = make_ledger(self.job, fingerprint, self.source.root, about)
        rows = RowFile(rows_path(self.output), self.ensemble.dim, self.ensemble.dtype)
        with self.stopping.heard(), ledger:
            if config.overwrite:
                rows.clear()
            done = _count_done(self.output) if not config.overwrite else 0
            progress = Progress(images, done, quiet=config.quiet, verbose=config.verbose)
            recorder = VectorRecorder(self.ensemble, ledger, rows)
            try:
                totals = self._encode(recorder, progress)
            finally:
                progress.close()
            ledger.is_complete = not (totals.stopped or config.limit is not None)
            count = 0
            if not totals.stopped:
                count = recorder.write(self.output, self.source.folders, self.source.root)
                if is_one and count:
                    lines.print_vector(self.ensemble, _only_row(recorder, self.source), "")
            lines.close(self.job, recorder, totals, count)
        if self.stopping.signal:
            return 128 + self.stopping.signal
        return 3 if recorder.failed else 0

    def _encode(self, recorder: VectorRecorder, progress: Progress) -> Totals:
        teller = Teller(progress, lambda height, width: (0, 0), "")
        recorder.on_failure = teller.on_failure
        recorder.on_done = lambda ref: _tell_done(progress, self.ensemble, ref)
        recorder.on_replaced = progress.on_replaced
        rules = [member.session.rules for member in self.ensemble.members]
        runner = Runner(
            decode=lambda jobs, ahead: self.pool.run(jobs, rules, ahead),
            lanes=_lanes(self.ensemble, recorder, self.hands.count),
            workers=self.pool.workers,
            hands=self.hands.count,
            on_hand=lambda: devices.hold_threads(self.hands.threads),
            stop=self.stopping.asked,
        )
        totals = runner.run(recorder.left(self.source.folders()))
        totals.encoded, totals.failed = recorder.encoded, recorder.failed  # of images, not of lanes
        return totals


def _lanes(ensemble: Ensemble, recorder: VectorRecorder, hands: int) -> Sequence[Lane]:
    def tell_halved(title: str, size: int) -> None:
        say("memory", f"{title}: the device is full: going on with batches of {size}")

    return [
        Lane(
            member.batch_encoder(
                member.session.batch_size, partial(tell_halved, member.name), hands
            ),
            sink,
            Events(),
        )
        for member, sink in zip(ensemble.members, recorder.sinks(), strict=True)
    ]


def _tell_done(progress: Progress, ensemble: Ensemble, ref: ImageRef) -> None:
    if progress.verbose:
        say("image", f"{printable(ref.source)} → ({ensemble.dim},) {ensemble.dtype}")
    progress.step()


def _about(ensemble: Ensemble) -> dict[str, Any]:
    sessions = [member.session for member in ensemble.members]
    return {
        "device": devices.device_title(sessions[0].device),
        "batch_sizes": {member.name: member.session.batch_size for member in ensemble.members},
        "precision": sessions[0].precision.reason,
        "versions": devices.library_versions(),
    }


def _count_done(output: str) -> int:
    results = LineIndex(ledger_folder(folder_of(output)), "results-*.jsonl")
    try:
        return sum(1 for line in results if "row" in line)
    finally:
        results.close()


def _only_row(recorder: VectorRecorder, source: Source) -> Any:
    ((entry,),) = list(source.folders())
    line = recorder.ledger.line(entry.key)
    assert line is not None, "the table has its row"
    return recorder.rows.read([line["row"]])[0]
