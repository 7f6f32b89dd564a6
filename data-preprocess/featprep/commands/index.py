"""`featprep index`: vectors into a collection of Milvus, to be searched."""

from __future__ import annotations

import time
from collections.abc import Sequence

from featprep.commands.flags import Parser
from featprep.errors import UsageError
from featprep.settings import nearest, shown

_DESCRIPTION = """Put the vectors of images into a collection of Milvus, for featprep search.

  featprep index vectors.parquet --db photos.db                  (Milvus Lite: no server)
  featprep index vectors.parquet --db http://localhost:19530     (a server)

A server's USER:PASSWORD or token stands in the variable MILVUS_TOKEN.
Rows whose key is there are replaced. Vectors of other models or settings are refused.
"""


def make_parser() -> Parser:
    parser = Parser("featprep index", _DESCRIPTION)
    parser.add_argument(
        "vectors", help="NAME.parquet or NAME.npy of image_vectorizer.py, or an encode --pooled"
    )
    add_database(parser)
    parser.add_argument(
        "--index", metavar="HOW", default="flat",
        help="of a new collection: flat, exact; or hnsw, faster among millions, nearly exact "
        "(default: flat)",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="errors alone")
    return parser


def add_database(parser: Parser) -> None:
    parser.add_argument("--db", metavar="FILE_OR_URI", help="NAME.db, or http://HOST:PORT")
    parser.add_argument(
        "--collection", metavar="NAME", default="featprep", help="of that name (default: featprep)"
    )


def check_database(db: str | None, prog: str) -> str:
    if not (db or "").strip():
        raise UsageError(
            f"--db is required: NAME.db, or a server's http://HOST:PORT; see {prog} --help"
        )
    return str(db)


def main(argv: Sequence[str]) -> int:
    flags = make_parser().read(argv)
    db = check_database(flags.db, "featprep index")
    from featprep.commands.console import Progress, say
    from featprep.stores.milvus import INDEXES, Collection
    from featprep.tasks.retrieval import open_vectors, refuse_mixing

    if flags.index not in INDEXES:
        raise UsageError(
            f"--index {shown(flags.index)}: allowed is {' or '.join(INDEXES)}."
            f"{nearest(flags.index, INDEXES)}"
        )
    table = open_vectors(flags.vectors)
    began = time.perf_counter()
    with Collection(db, flags.collection) as collection:
        there = collection.about()
        if there is None:
            collection.create(table.about, flags.index)
        else:
            refuse_mixing(f"{collection.title}, collection {flags.collection},", there, table.about)
        progress = Progress(table.count, 0, quiet=flags.quiet, verbose=False, unit="vectors")
        zeros = 0
        for batch in table.batches():
            zeros += collection.put(batch)
            for _ in batch.keys:
                progress.step()
        progress.close()
        count = collection.count()
    if not flags.quiet:
        left_out = f", {zeros:,} left out: zeros, which have no cosine" if zeros else ""
        put = table.count - zeros
        say("done", f"{put:,} vector{'s' * (put != 1)} put in{left_out}; {count:,} in the "
                    f"collection {flags.collection} of {collection.shown}")  # fmt: skip
        say("time", f"{time.perf_counter() - began:.1f} s")
    return 0
