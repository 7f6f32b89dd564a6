"""The run behind `featprep vectorize`: loads the models, then one image's vector, or a table."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from featprep import devices, images
from featprep.commands import vectorize_lines as lines
from featprep.commands.console import say
from featprep.commands.vectorize_job import VectorJob
from featprep.commands.vectorize_table import TableRun, make_ledger
from featprep.config import EncodeConfig
from featprep.decode_pool import DecodePool
from featprep.decoding import prepare_job
from featprep.encoders.base import ModelName
from featprep.errors import FeatprepError, ImageError, UsageError
from featprep.ledger import read_run
from featprep.naming import printable
from featprep.records import Failure
from featprep.session import Decided, open_session
from featprep.sources import Selection, Source
from featprep.stores.base import check_writable
from featprep.stores.vector_files import check_suffix
from featprep.tasks.models import find_model
from featprep.tasks.vector_run import folder_of
from featprep.tasks.vectors import Ensemble, Member, join_member, vector_of


def run(job: VectorJob) -> int:
    """Exit code (SPEC 7)."""
    if job.output is not None:
        check_suffix(job.output, "--output")
    check_names(job)
    source, is_one = open_source(job.config)
    if job.output is None:
        if not is_one:
            raise UsageError(
                f"--image_path {printable(job.config.input)}: many images go into a file; add "
                "--output vectors.parquet, or vectors.npy"
            )
        devices.let_threads_sleep()
        return print_one(job, source)
    refuse_early(job, source.root)
    check_writable(folder_of(job.output))
    census = source.census()
    devices.let_threads_sleep()
    workers, _ = devices.choose_workers(job.config.workers)
    with DecodePool(workers, job.config.decode_timeout) as pool:  # starts while torch is imported
        ensemble = load(job)
        lines.introduce(job, ensemble, census)
        return TableRun(job, ensemble, source, pool).go(census.images, is_one=is_one)


def open_source(config: EncodeConfig) -> tuple[Source, bool]:
    """What the images are, and whether it is one by itself."""
    selection = Selection(
        suffixes=images.SUFFIXES,
        outputs=lambda key: (f"{key}/",),  # a row of its key, which no folder's name can be
        names=config.names,
        shard=config.shard,
        limit=config.limit,
        flag="--image_path",
    )
    source = Source(config.input, selection)
    is_list = config.input.lower().endswith(".txt")
    return source, os.path.isfile(config.input) and not is_list


def check_names(job: VectorJob) -> None:
    """A model that there is not is said to be before any other has been loaded."""
    for value in () if job.skip_failed else job.models:
        try:
            find_model(value)
        except FeatprepError as error:
            raise _not_loaded(job, value, error) from error


def load(job: VectorJob) -> Ensemble:
    """Every model, told of as it loads. Raises what the first that fails does, unless it is to be
    skipped."""
    device, _ = devices.choose_device(job.config.device)  # refused, it is no model's failure
    devices.choose_precision(job.config.fp16, job.config.precision, device)
    before = _batch_sizes(job)
    members: list[Member] = []
    for value in job.models:
        began = time.perf_counter()
        try:
            members.append(_load(job.config, value, before))
        except FeatprepError as error:
            if not job.skip_failed:
                raise _not_loaded(job, value, error) from error
            say("skipped", f"{printable(value)} does not load: {printable(str(error))}")
            continue
        lines.tell_member(job, members, time.perf_counter() - began)
    if not members:
        raise UsageError(f"--models {','.join(job.models)}: none of them loads; nothing was done")
    return Ensemble(members, job.normalize)  # type: ignore[arg-type]


def _not_loaded(job: VectorJob, value: str, error: FeatprepError) -> FeatprepError:
    text = f"{value} does not load: {error}"
    if len(job.models) > 1:
        text += "; or" if text[-1] not in ".?" else " Or"
        text += " go on without it: --skip_failed"
    return type(error)(text)


def _load(config: EncodeConfig, value: str, before: dict[str, int]) -> Member:
    name = find_model(value)
    own = replace(config, model=value)
    decided = Decided(batch_size=before.get(str(name)))
    session = open_session(own, name, before=decided, pooled_if_any=True)
    return join_member(str(name), session)


def _batch_sizes(job: VectorJob) -> dict[str, int]:
    """`auto` is resolved once for an output: rows of one run are made in batches of one size."""
    if job.output is None or job.config.overwrite:
        return {}
    run = read_run(folder_of(job.output))
    sizes = run.get("about", {}).get("batch_sizes") if run else None
    return dict(sizes) if isinstance(sizes, dict) else {}


def refuse_early(job: VectorJob, root: str) -> None:
    """What can be refused before any weights load: a table that is no run's, other models, another
    way to put them together."""
    output, config = str(job.output), job.config
    there = read_run(folder_of(output))
    if there is None:
        if os.path.exists(output) and not config.overwrite:
            raise UsageError(
                f"--output {printable(output)} is there, and no record of the run that made it "
                f"({printable(folder_of(output))}): use another --output, or --overwrite to "
                "replace it"
            )
        return
    mine = {**there["fingerprint"], "normalize": job.normalize, "names": config.names}
    if not job.skip_failed:
        mine["models"] = [str(_named(value)) for value in job.models]
    make_ledger(job, mine, root, {}).check()


def _named(value: str) -> ModelName | str:
    """A name that is not one is refused when it is loaded, with what else there is to say."""
    try:
        return find_model(value)
    except UsageError:
        return value


def print_one(job: VectorJob, source: Source) -> int:
    """One image, and no file."""
    ((entry,),) = list(source.folders())
    if isinstance(entry, Failure):
        return _failed(entry)
    ensemble = load(job)
    began = time.perf_counter()
    rules = [member.session.rules for member in ensemble.members]
    vectors = []
    outcomes = prepare_job(entry, rules)
    decoded = time.perf_counter()
    for member, outcome in zip(ensemble.members, outcomes, strict=True):
        if isinstance(outcome, Failure):
            return _failed(outcome)
        (row,) = member.batch_encoder(1, lambda size: None).encode([outcome])
        if isinstance(row, Failure):
            return _failed(row)
        vectors.append(vector_of(member.kind, row[1]))
    try:
        vector = ensemble.join(vectors)
    except ImageError as error:
        return _failed(Failure(entry.key, entry.source, error.stage, str(error)))
    done = time.perf_counter()
    time_text = (
        f"{(done - began) * 1000:.0f} ms: read and decode {(decoded - began) * 1000:.0f}, "
        f"encode {(done - decoded) * 1000:.0f}"
    )
    lines.print_vector(ensemble, vector, time_text)
    return 0


def _failed(failure: Failure) -> int:
    say("failed", f"{printable(failure.source)}: {failure.stage}: {printable(failure.reason)}")
    return 3
