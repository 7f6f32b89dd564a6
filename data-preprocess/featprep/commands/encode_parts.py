"""What a run of one encoder or several is about, before any work: for each its settings, its folder
of the output, what is there, and every refusal that needs no weights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featprep import encoders, images
from featprep.config import EncodeConfig
from featprep.devices import Precision
from featprep.differences import Fingerprint
from featprep.encoders import wants
from featprep.encoders.base import EncoderSpec, ModelName, StorageDtype
from featprep.errors import UsageError
from featprep.ledger import (
    Ledger,
    LedgerOptions,
    RunIdentity,
    folder_of,
    read_run,
    tag_of,
)
from featprep.lock import RunLock
from featprep.naming import RESERVED, fold, folder_of_encoder, printable
from featprep.resolve import Resolved, by_patch, fingerprint, fixed, resolve, want_of
from featprep.session import Decided, Session
from featprep.sources import Census, Selection, Source, folds_case
from featprep.standing import count_done
from featprep.stores.npy_tree import NpyTreeStore


@dataclass(slots=True)
class Part:
    """One encoder of a run. `config` is its own: of one model, with its own output. `title`: its
    folder's name, empty where it is alone."""

    config: EncodeConfig
    name: ModelName
    title: str
    layers: tuple[int, ...]  # beside the first, as far as is known
    store: NpyTreeStore
    source: Source
    census: Census
    to_remove: int = 0  # results of other settings, with --overwrite
    session: Session = field(init=False)

    @property
    def left(self) -> int:
        """Images that there are to encode, as far as names tell."""
        return self.census.images - (0 if self.config.overwrite else self.census.done)

    def take(self, session: Session) -> None:
        """The loaded encoder, which may be the first to know how many layers it has."""
        self.session, layers = session, tuple(session.resolved.more_channels)
        if layers != self.layers:
            self.layers = layers
            self.store, self.source, self.census = _survey(self.config, layers)


def open_parts(config: EncodeConfig, scope: str) -> list[Part]:
    """Raises UsageError and its like if any of the encoders is refused."""
    named = _named(config, scope)
    for own, _, _ in named:
        _refuse_nested(own.output)
        _refuse_held(own)
    layers = [further_layers(own, name) for own, name, _ in named]
    parts = [
        Part(own, name, title, more, *_survey(own, more))
        for (own, name, title), more in zip(named, layers, strict=True)
    ]
    for part in parts:
        _refuse_early(part)
    return parts


def _named(config: EncodeConfig, scope: str) -> list[tuple[EncodeConfig, ModelName, str]]:
    """Each encoder's config, name and title."""
    if isinstance(config.model, str):
        return [(config, encoders.resolve(config.model, scope), "")]
    asked = ",".join(config.model)
    try:
        names = [encoders.resolve(value, scope) for value in config.model]
    except UsageError as error:
        raise UsageError(
            f"{error} (one of --model {printable(asked)}; what has a comma of its own stands in a "
            "YAML list, model: [A, B])"
        ) from error
    folders = [folder_of_encoder(str(name)) for name in names]
    counts = Counter(map(fold, folders))
    twice = [folder for folder in folders if counts[fold(folder)] > 1]
    if twice:
        raise UsageError(
            f"--model {printable(asked)}: two of them would write to the folder {twice[0]}; name "
            "each once"
        )
    if read_run(config.output) is not None:
        raise UsageError(
            f"--output {printable(config.output)}: holds the results of one encoder, and of "
            "several each gets a folder in the output; use another --output"
        )
    return [
        (replace(config, model=value, output=os.path.join(config.output, folder)), name, folder)
        for value, name, folder in zip(config.model, names, folders, strict=True)
    ]


def _refuse_nested(output: str) -> None:
    """Of a run that lies in another's folder, every result would be one of the other's too."""
    if read_run(output) is not None:  # it began, and goes on
        return
    run, asked = os.path.join(RESERVED, "run.json"), f"--output {printable(output)}"
    for outer in Path(os.path.realpath(output)).parents:
        if (outer / run).exists():
            raise UsageError(
                f"{asked}: lies in {printable(str(outer))}, which holds the results of another "
                "run; use an --output outside it"
            )
    inner = sorted(path.parent.parent.name for path in Path(output).glob(f"*/{run}"))
    if inner:
        first = printable(os.path.join(output, inner[0]))
        more = " …" if len(inner) > 6 else ""
        raise UsageError(
            f"{asked}: holds folders with the results of other runs: "
            f"{', '.join(map(printable, inner[:6]))}{more}; use another --output, or --output "
            f"{first} to go on with that one"
        )


def _refuse_held(config: EncodeConfig) -> None:
    """The lock itself is taken when the weights are there: what makes a run fail until then, such
    as missing weights, leaves nothing in the output."""
    if not config.plan:
        tag = tag_of(config.shard)
        RunLock(folder_of(config.output), tag, break_lock=config.break_lock).ask()


def _refuse_early(part: Part) -> None:
    """Refuse settings that the encoder cannot have, and an output of other ones, before any
    weights load, as far as can be seen without.

    What only a loaded encoder tells is taken as it stands there; the ledger compares it later.
    """
    config, name = part.config, part.name
    there, spec = read_run(config.output), encoders.describe(name)
    mine: Fingerprint = there["fingerprint"] if there else {}
    if spec is not None:
        storage: StorageDtype = "float16" if config.fp16 else "float32"
        resolved = resolve(config, spec, storage, by_patch(spec), is_plain=name.is_plain)
        mine = _expected(config, spec, resolved, mine)
    identity = RunIdentity(mine, part.source.root)
    options = LedgerOptions(config.shard, config.overwrite, config.moved, taken=part.census.taken)
    ledger = Ledger(config.output, identity, options, lambda count, keys, older: None)
    ledger.check()
    part.to_remove = ledger.to_remove() if config.plan else 0


def _expected(
    config: EncodeConfig, spec: EncoderSpec, resolved: Resolved, before: Fingerprint
) -> Fingerprint:
    """The fingerprint that this run will have if the weights are those of `before`."""
    precision = Precision(before.get("compute", "float32"), resolved.want.dtype, "")
    mine = fingerprint(config, spec, before.get("weights", ""), resolved, precision)
    asked_of_model = "cells" if config.grid else "grid"
    size = config.batch_size or before.get("batch_size")
    asked = {"on": True, "off": False}.get(config.compile)
    compiled = bool(before.get("compile")) if asked is None else asked
    decided = fixed(config, before.get("threads"), size, compiled)
    return {**mine, **decided, asked_of_model: before.get(asked_of_model)}


def further_layers(config: EncodeConfig, name: ModelName) -> tuple[int, ...]:
    """Layers beside the first, counted from 0; before the weights are read, as far as is known."""
    spec = encoders.describe(name)
    if spec is None:
        return tuple(sorted(layer for layer in config.layer[1:] if layer >= 0))
    return tuple(sorted(wants.check(spec, want_of(config, "float32")).layers[1:]))


def decided_before(config: EncodeConfig) -> Decided:
    """What earlier runs of this output decided for all of them."""
    before = (None if config.overwrite else read_run(config.output)) or {}
    about, fingerprint = before.get("about", {}), before.get("fingerprint", {})
    compiled = about.get("compile")
    return Decided(
        _count(about.get("batch_size")),
        _count(fingerprint.get("threads")),
        compiled if isinstance(compiled, bool) else None,
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _survey(config: EncodeConfig, layers: Sequence[int]) -> tuple[NpyTreeStore, Source, Census]:
    """The output, the input, and what stands of one in the other. Raises for names that collide."""
    store = NpyTreeStore(
        config.output,
        mask=config.mask != "none",
        meta=config.save_meta,
        layers=layers,
        vectors=config.prefix or config.pooled or config.masked_pool,
        tag=tag_of(config.shard),
    )
    source = open_source(config, store)
    return store, source, source.census(lambda keys: count_done(store, keys))


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
