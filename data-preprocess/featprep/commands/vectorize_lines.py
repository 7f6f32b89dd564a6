"""What `featprep vectorize` says: each model as it loads, one image's vector, the closing lines."""

from __future__ import annotations

from collections.abc import Sequence

from featprep import devices
from featprep.commands.console import say, size_text, time_text
from featprep.commands.vectorize_job import VectorJob
from featprep.naming import printable
from featprep.records import AnyArray
from featprep.runner import Totals
from featprep.sources import Census
from featprep.tasks.vector_run import VectorRecorder, folder_of
from featprep.tasks.vectors import Ensemble, Member

SHOWN = 10  # elements of a vector


def tell_member(job: VectorJob, members: Sequence[Member], seconds: float) -> None:
    """The last one, which has just been loaded."""
    if job.config.quiet:
        return
    member, session = members[-1], members[-1].session
    encoder = session.encoder
    size = "×".join(map(str, session.resolved.geometry.size or ())) or "each image's own size"
    say("model", f"{member.name}  {member.dim} values ({_KINDS[member.kind]}) at {size}  "
                 f"{cost_text(members[0], member)}  loaded in {seconds:.1f} s  "
                 f"weights {encoder.digest[:8]} ({encoder.origin})")  # fmt: skip
    if encoder.spec.meaningless:
        say("", "tiny has seeded random weights: its vectors carry no meaning")


_KINDS = {
    "pooled": "its vector of the image",
    "cls": "CLS: it has no pooled vector",
    "mean": "mean over patches: it has no pooled vector",
}


def cost_text(first: Member, member: Member) -> str:
    """GFLOP an image; beside it, relative to the first model."""
    if not (first.gflop and member.gflop):
        return "GFLOP not known"
    return f"{member.gflop:.3g} GFLOP an image ({member.gflop / first.gflop:.2f}×)"


def ensemble_text(ensemble: Ensemble) -> str:
    members = ensemble.members
    models = f"{len(members)} model{'s' * (len(members) > 1)}"
    text = f"{ensemble.dim:,} values of {models}, normalize {ensemble.normalize}"
    if all(member.gflop for member in members):
        total = sum(member.gflop for member in members)
        relative = f"{total / members[0].gflop:.2f}× {members[0].name}"
        text += f"; {total:.3g} GFLOP an image, {relative}"
    return text


def introduce(job: VectorJob, ensemble: Ensemble, census: Census) -> None:
    if job.config.quiet:
        return
    say("vector", ensemble_text(ensemble))
    say("device", f"{device_text(ensemble)}  {batches_text(ensemble)}")
    ignored = ", ".join(f"{n:,} {printable(s)}" for s, n in census.ignored.most_common(6))
    passed = f"; ignored: {ignored}" if ignored else ""
    say("input", f"{printable(job.config.input)}  {census.images:,} images{passed}")


def device_text(ensemble: Ensemble) -> str:
    session = ensemble.members[0].session
    precision = session.precision
    return (
        f"{devices.device_title(session.device)}  compute {precision.compute} "
        f"({precision.reason}), stored {precision.storage}"
    )


def batches_text(ensemble: Ensemble) -> str:
    sizes = sorted({member.session.batch_size for member in ensemble.members})
    hands = ensemble.members[0].session.hands
    text = f"batch {', '.join(map(str, sizes))}"
    return f"{text}, {hands.count} at a time ({hands.reason})" if hands.count > 1 else text


def print_vector(ensemble: Ensemble, vector: AnyArray, time: str) -> None:
    """The whole of what one image gives, on stdout."""
    print(f"device  {device_text(ensemble)}")
    for member in ensemble.members:
        print(f"model   {member.name}  {member.dim} values")
    if len(ensemble.members) > 1:
        print(f"vector  {ensemble_text(ensemble)}")
    if time:
        print(f"time    {time}")
    print(f"shape   ({len(vector)},) {vector.dtype}")
    values = vector.astype("float64")
    print(f"first   {', '.join(f'{value:.6g}' for value in values[:SHOWN])}")
    print(f"mean    {values.mean():.6g}")
    print(f"std     {values.std():.6g}")


def close(job: VectorJob, recorder: VectorRecorder, totals: Totals, count: int) -> None:
    verb = "stopped" if totals.stopped else "done"
    failed = f", {recorder.failed:,} failed"
    if recorder.failed:
        failed += f": {printable(recorder.ledger.failures_path)}"
    say(verb, f"{recorder.encoded:,} encoded, {recorder.skipped:,} there before{failed}")
    if totals.stopped:
        kept = printable(folder_of(str(job.output)))
        say("", f"what is done is kept in {kept}; the same command goes on from here")
    else:
        table, output = recorder.ensemble, str(job.output)
        size = size_text(count * table.dim * (2 if table.dtype == "float16" else 4))
        say("written", f"{printable(output)}  ({count:,}, {table.dim}) {table.dtype}, {size}")
    say("time", time_text(totals))
