"""Vectors that a collection takes, and queries that are made as its vectors were.

A query is made by the collection's own models, prepared as its images were, and the digests of
their weights are held against what is recorded: a cosine between two models means nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

import numpy as np

from featprep.config import EncodeConfig, parse_value
from featprep.differences import by_name
from featprep.errors import FingerprintError, InputError, UsageError
from featprep.journal import LineIndex
from featprep.ledger import folder_of
from featprep.naming import printable
from featprep.records import AnyArray
from featprep.runs import Run
from featprep.session import Session, open_session
from featprep.stores.vector_files import BATCH, VectorBatch, VectorFile, as_text
from featprep.tasks import inputs
from featprep.tasks.models import find_model, open_text
from featprep.tasks.rows import RowEncoder
from featprep.tasks.urls import UrlLimits
from featprep.tasks.vectors import FORMAT, Ensemble, join_member, shaping, vector_of, want_of

About = Mapping[str, Any]


class Vectors(Protocol):
    """A table of vectors. `about`: as image_vectorizer.py writes it."""

    about: dict[str, Any]
    count: int

    def batches(self, size: int = BATCH) -> Iterator[VectorBatch]: ...


def open_vectors(path: str) -> Vectors:
    """NAME.parquet or NAME.npy of image_vectorizer.py, or an output of encode with --pooled. Raises
    InputError and UsageError."""
    return RunVectors(path) if os.path.isdir(path) else VectorFile(path)


class RunVectors:
    """The pooled vectors of `featprep encode --pooled`."""

    def __init__(self, path: str) -> None:
        self._run = Run(path)
        made = self._run.fingerprint
        if not made.get("pooled"):
            raise InputError(
                f"{printable(path)}: its run took no pooled vectors; make some with "
                "image_vectorizer.py, or run encode with --pooled into another --output"
            )
        first = next(iter(self._run), None)
        if first is None:
            raise InputError(f"{printable(path)}: no result in it; run encode first")
        name, self.count = made["encoder"], len(self._run)
        dim = len(self._vector(first))
        whole = {"vectors": FORMAT, "models": [name], "normalize": "none", "names": made["names"]}
        whole |= {f"{name} {field}": value for field, value in shaping(made).items()}
        self.about: dict[str, Any] = {
            "model": name,
            "models": [{"model": name, "dim": dim, "vector": "pooled", "weights": made["weights"]}],
            "dim": dim,
            "dtype": made["storage"],
            "normalize": "none",
            "fingerprint": {**whole, f"{name} vector": "pooled"},
        }

    def batches(self, size: int = BATCH) -> Iterator[VectorBatch]:
        with contextlib.closing(LineIndex(folder_of(self._run.path), "results-*.jsonl")) as lines:
            keys = iter(self._run)
            while part := list(islice(keys, size)):
                paths = [self._path((lines.get(key) or {}).get("source", "")) for key in part]
                vectors = np.stack([self._vector(key) for key in part])
                yield VectorBatch([as_text(key) for key in part], paths, vectors)

    def _vector(self, key: str) -> AnyArray:
        try:
            vector: AnyArray = (self._run[key].vectors or {})["pooled"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{printable(self._run.path)}: the pooled vector of {printable(key)} cannot be "
                "read; remove that result and run encode again"
            ) from error
        return vector

    def _path(self, source: str) -> str:
        """The image; of a list, of what lies below its folder."""
        root = self._run.input
        is_folder = os.path.isdir(root) or not os.path.splitext(root)[1]
        return as_text(os.path.join(root if is_folder else os.path.dirname(root), source))


def refuse_mixing(where: str, there: About, mine: About) -> None:
    """Raises FingerprintError unless both tables were made alike."""
    different = by_name(there["fingerprint"], mine["fingerprint"])
    if different:
        raise FingerprintError(
            f"{where} holds vectors of other settings: {_few(different)}. Nothing was touched: use "
            "another --collection, or another --db"
        )


class Query:
    """The models of a collection, loaded and found to be the same ones."""

    def __init__(
        self, where: str, about: About, models: tuple[str, ...], settings: Mapping[str, Any]
    ) -> None:
        """`models`: as the user names them, where it is not as they were named then, such as
        FAMILY:ID=PATH; else empty. `settings`: device, trust_weights, quick_gelu. Raises
        UsageError, WeightsError and FingerprintError."""
        self.notes: list[str] = []  # what the user should know of the query
        self._where, self._about, self._settings = where, about, dict(settings)
        recorded = tuple(row["model"] for row in about["models"])
        self._values = models or recorded
        names = tuple(self._named(value) for value in self._values)
        if names != recorded:
            raise UsageError(
                f"--models {','.join(self._values)}: {where} holds vectors of "
                f"{', '.join(recorded)}; name these, in this order, or none"
            )
        self._ensemble = Ensemble(
            [join_member(name, self._open(name, value))
             for name, value in zip(names, self._values, strict=True)],
            about["normalize"],
        )  # fmt: skip
        self._check()

    def of_image(self, image: str) -> AnyArray:
        """(D,) of a path or an http(s) address. Raises ImageError."""
        data = inputs.read(image, UrlLimits())
        vectors = []
        for member in self._ensemble.members:
            want = want_of(member.session.encoder.spec)
            (row,) = RowEncoder(member.session).rows(iter([data]), want, 1, UrlLimits())
            vectors.append(vector_of(member.kind, row))
        return self._ensemble.join(vectors)

    def of_text(self, text: str) -> AnyArray:
        """(D,). Raises UsageError where the collection's vectors are not those of one model of
        images and texts."""
        members = self._ensemble.members
        if len(members) > 1:
            raise UsageError(
                f"--text: {self._where} holds vectors of {len(members)} models together; a text "
                "is compared with those of one model of images and texts; use --image"
            )
        tower = open_text(find_model(self._values[0]), members[0].session.config)
        if tower.too_long([text]):
            self.notes.append(
                f"the text is longer than {tower.context} tokens: its end is left out"
            )
        vector: AnyArray = tower.encode_text([text])[0]
        if len(vector) != self._about["dim"]:
            raise UsageError(
                f"--text: {tower.name} gives texts {len(vector)} values and {self._where} holds "
                f"{self._about['dim']}: its vectors are not aligned with texts; use --image"
            )
        return vector

    def _named(self, value: str) -> str:
        try:
            return str(find_model(value))
        except UsageError as error:
            recorded = [row["model"] for row in self._about["models"]]
            if value not in recorded:
                raise
            raise UsageError(
                f"{self._where} holds vectors of {value}, local weights; name them: --models "
                f"{','.join(f'{name}=PATH' if name == value else name for name in recorded)}"
            ) from error

    def _open(self, name: str, value: str) -> Session:
        asked = {**_geometry(self._about, name), **self._settings}
        settings = {field: parse_value(field, raw) for field, raw in asked.items()}
        settings |= {"input": "(memory)", "output": "(memory)", "mask": "none", "model": value}
        config = EncodeConfig(**settings)
        return open_session(config, find_model(value), pooled_if_any=True)

    def _check(self) -> None:
        """Weights and preparation; the precision may be another, which moves a cosine by little."""
        there = _comparable(self._about["fingerprint"])
        mine = _comparable(self._ensemble.fingerprint(""))
        different = by_name(there, mine)
        if different:
            raise FingerprintError(
                f"{self._where} holds vectors that this model does not make: {_few(different)}; "
                "name the same weights with --models FAMILY:ID=PATH, or index vectors of these"
            )


def _comparable(fingerprint: About) -> dict[str, Any]:
    left_out = ("names", " compute", " storage")
    return {name: value for name, value in fingerprint.items() if not name.endswith(left_out)}


def _geometry(about: About, name: str) -> dict[str, Any]:
    """The settings that prepare an image as the collection's were."""
    made = about["fingerprint"]
    resize, size = made[f"{name} resize"], made[f"{name} size"]
    settings = {field: made[f"{name} {field}"] for field in ("pos_embed", "max_tokens")}
    settings["background"] = "#{:02x}{:02x}{:02x}".format(*made[f"{name} background"])
    if size is not None and resize not in ("native", "keep"):
        settings["size"] = size
    return {"resize": resize, **settings}


def _few(different: list[str], most: int = 6) -> str:
    more = f"; and {len(different) - most} more" if len(different) > most else ""
    return "; ".join(different[:most]) + more
