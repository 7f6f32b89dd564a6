"""Vectors in a collection of Milvus: of Milvus Lite, a folder NAME.db that this process opens by
itself, or of a server; the same code for both.

What the run was stands in the collection's properties, so that other vectors are never mixed in.
Knows no model.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featprep.errors import OutputError, UsageError
from featprep.extras import need
from featprep.naming import printable
from featprep.records import AnyArray
from featprep.stores.vector_files import VectorBatch

MOST_HITS = 16384  # of one search, as Milvus has it
DEFAULT_NAME = "featprep"
TOKEN = "MILVUS_TOKEN"  # the variable with USER:PASSWORD or a token, which no flag should hold
# Flat compares with every vector: exact, and of 10,000 random vectors of 512 values still 20 ms a
# query. HNSW as Milvus Lite has it by itself (AUTOINDEX) found 85 of 100 nearest of 64 values; with
# these numbers it is 99, and of 512 random values 95.
INDEXES: dict[str, dict[str, Any]] = {"flat": {}, "hnsw": {"M": 32, "efConstruction": 200}}
_EF = 512  # candidates that a search of hnsw keeps
_PROPERTY = "featprep.about"
_LONGEST = 65535  # bytes of a string
_BYTES_A_CALL = 8_000_000  # a server takes 64 MB


@dataclass(frozen=True, slots=True)
class Hit:
    """`score`: the cosine, 1 … −1."""

    key: str
    path: str
    score: float


def check_address(db: str) -> None:
    """Refuse what is neither NAME.db nor an address. Raises UsageError."""
    asked = f"--db {printable(_shown(db))}"
    if _is_address(db):
        need("pymilvus", "retrieval", asked)
        return
    if not db.endswith(".db"):
        raise UsageError(
            f"{asked}: allowed is NAME.db, which Milvus Lite keeps here, or a server's address; "
            "for example --db photos.db or --db http://localhost:19530"
        )
    need("milvus_lite", "retrieval", asked)
    need("pymilvus", "retrieval", asked)


def is_missing(db: str) -> bool:
    """Whether it is a folder that is not there: opening one makes it."""
    return not _is_address(db) and not os.path.exists(db)


class Collection:
    """A collection, which need not be there yet. A context manager.

    Raises UsageError where it cannot be opened, OutputError where Milvus refuses to write.
    """

    def __init__(self, db: str, name: str = DEFAULT_NAME) -> None:
        check_address(db)
        if not re.fullmatch(r"[A-Za-z_]\w{0,254}", name, re.ASCII):
            raise UsageError(
                f"--collection {printable(name)}: allowed are letters, digits and _, no digit "
                f"first; for example --collection {DEFAULT_NAME}"
            )
        self.db, self.name = db, name
        self.shown = printable(_shown(db))
        self.title = f"--db {self.shown}"
        self._client = self._open()

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        if not _is_address(self.db):  # else the folder stays open, and locked, until the end
            manager = need("milvus_lite.server_manager", "retrieval", self.title)
            manager.server_manager_instance.release_server(self.db)

    def about(self) -> dict[str, Any] | None:
        """What the vectors in it are; None if it is not there. Raises UsageError."""
        with self._told("read"):
            if not self._client.has_collection(self.name):
                return None
            properties = self._client.describe_collection(self.name).get("properties") or {}
        try:
            about = json.loads(properties[_PROPERTY])
        except (KeyError, ValueError):
            about = None
        if not isinstance(about, dict) or not isinstance(about.get("fingerprint"), dict):
            raise UsageError(
                f"{self.title}: the collection {self.name} in it is not featprep's; give another "
                "--collection"
            )
        return about

    def create(self, about: Mapping[str, Any], index: str) -> None:
        """Make it, for vectors of about["dim"] values, with what they are. `index`: of INDEXES."""
        kinds = need("pymilvus", "retrieval", self.title).DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", kinds.VARCHAR, is_primary=True, max_length=_LONGEST)
        schema.add_field("path", kinds.VARCHAR, max_length=_LONGEST)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=about["dim"])
        params = self._client.prepare_index_params()
        params.add_index(
            "vector", index_type=index.upper(), metric_type="COSINE", params=INDEXES[index]
        )
        with self._told("write"):
            self._client.create_collection(
                self.name,
                schema=schema,
                index_params=params,
                properties={_PROPERTY: json.dumps({**about, "index": index})},
                consistency_level="Strong",  # what was put in is found
            )

    def put(self, batch: VectorBatch) -> int:
        """Insert rows; those whose key is there are replaced. Vectors of zeros, which have no
        cosine, are left out: how many."""
        vectors = batch.vectors.astype(np.float32)
        usable = np.flatnonzero(vectors.any(axis=1))
        step = max(1, _BYTES_A_CALL // (vectors.shape[1] * 4))
        for start in range(0, len(usable), step):
            rows = [
                {"key": batch.keys[i], "path": batch.paths[i], "vector": vectors[i].tolist()}
                for i in usable[start : start + step]
            ]
            with self._told("write"):
                self._client.upsert(self.name, rows)
        return len(vectors) - len(usable)

    def count(self) -> int:
        with self._told("read"):
            self._client.load_collection(self.name)
            (row,) = self._client.query(self.name, output_fields=["count(*)"])
        return int(row["count(*)"])

    def search(self, vectors: AnyArray, top: int) -> list[list[Hit]]:
        """Of each of (Q, D), the `top` nearest, nearest first."""
        queries = vectors.astype(np.float32).tolist()
        is_exact = (self.about() or {}).get("index") == "flat"
        params = {} if is_exact else {"ef": max(_EF, top)}
        with self._told("read"):
            self._client.load_collection(self.name)
            found = self._client.search(
                self.name, queries, limit=top, output_fields=["key", "path"],
                search_params={"metric_type": "COSINE", "params": params},
            )  # fmt: skip
        return [
            [
                Hit(hit["entity"]["key"], hit["entity"]["path"], float(hit["distance"]))
                for hit in one
            ]
            for one in found
        ]

    def _open(self) -> Any:
        library = need("pymilvus", "retrieval", self.title)
        # They log every error with its traceback.
        for name in ("pymilvus", "milvus_lite", "grpc._server"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        try:
            return library.MilvusClient(self.db, token=os.environ.get(TOKEN, ""), timeout=30)
        except library.MilvusException as error:
            raise UsageError(f"{self.title}: {_why_not(self.db, error)}") from error

    @contextlib.contextmanager
    def _told(self, verb: str) -> Iterator[None]:
        library = need("pymilvus", "retrieval", self.title)
        try:
            yield
        except library.MilvusException as error:
            raise OutputError(
                f"{self.title}: Milvus cannot {verb} the collection {self.name}: "
                f"{_message(error)}; the same command goes on from here"
            ) from error


def _is_address(db: str) -> bool:
    return re.match(r"(https?|tcp)://|unix:", db) is not None


def _shown(db: str) -> str:
    """Without a password."""
    return re.sub(r"//[^/@]*@", "//", db)


def _message(error: Any) -> str:
    return printable(" ".join(str(getattr(error, "message", error)).split()))[:200]


def _why_not(db: str, error: Any) -> str:
    if _is_address(db):
        return (
            f"the server does not answer ({_message(error)}); check the address, and {TOKEN} where "
            "it wants a password"
        )
    folder = os.path.dirname(os.path.abspath(db))
    if not os.path.isdir(folder):
        return f"there is no folder {printable(folder)}; make it first"
    if os.path.exists(db) and not os.path.isdir(db):
        return "is a file, and Milvus Lite keeps a folder of that name; give another name"
    return "cannot be opened; if another command has it open, wait for it, else give another name"
