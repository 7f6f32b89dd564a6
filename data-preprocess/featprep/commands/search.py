"""`featprep search`: the images of a collection that are nearest to a text or to an image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featprep.commands.flags import Parser, add_settings, as_models, parsed_settings
from featprep.commands.index import add_database, check_database
from featprep.config import parse_value
from featprep.errors import ImageError, UsageError

if TYPE_CHECKING:
    from featprep.stores.milvus import Hit

_DESCRIPTION = """Find the images nearest to a text or to an image, by cosine.

  featprep search --db photos.db --image cat.jpg
  featprep search --db photos.db --text "a red car" --top 5 --json

The models that made the collection's vectors make the query's, and their weights are compared.
"""
_SETTINGS = ("device", "trust_weights", "quick_gelu")


def make_parser() -> Parser:
    parser = Parser("featprep search", _DESCRIPTION)
    add_database(parser)
    parser.add_argument("--text", help="what is looked for, in words")
    parser.add_argument("--image", metavar="FILE", help="or an image: a path or an http(s) address")
    parser.add_argument("--top", metavar="K", default="10", help="how many (default: 10)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--models", metavar="A[,B…]", help="the collection's own, of other files: FAMILY:ID=PATH"
    )
    add_settings(parser, _SETTINGS)
    return parser


def main(argv: Sequence[str]) -> int:
    flags = make_parser().read(argv)
    db = check_database(flags.db, "featprep search")
    top = _check(flags.text, flags.image, flags.top)
    settings = parsed_settings({name: getattr(flags, name) for name in _SETTINGS})
    asked = parse_value("model", flags.models) if flags.models is not None else ()
    models = (asked,) if isinstance(asked, str) else asked
    from featprep import devices
    from featprep.commands.console import say, warnings_as_notes
    from featprep.naming import printable
    from featprep.stores.milvus import Collection, is_missing
    from featprep.tasks.retrieval import Query

    if is_missing(db):
        raise UsageError(
            f"--db {printable(db)}: is not there; make it first: featprep index VECTORS --db "
            f"{printable(db)}"
        )
    devices.let_threads_sleep()
    with Collection(db, flags.collection) as collection:
        about = collection.about()
        if about is None:
            raise UsageError(
                f"{collection.title}: no collection {flags.collection} in it; make it first: "
                "featprep index VECTORS --db …"
            )
        try:
            with warnings_as_notes(), as_models():
                query = Query(f"the collection {flags.collection}", about, models, settings)
                vector = query.of_image(flags.image) if flags.image else query.of_text(flags.text)
        except ImageError as error:
            say("failed", f"{printable(flags.image)}: {error.stage}: {printable(str(error))}")
            return 3
        for note in query.notes:
            say("note", note)
        (hits,) = collection.search(vector[None], top)
    _print(hits, flags, about)
    return 0


def _check(text: str | None, image: str | None, top: str) -> int:
    from featprep.stores.milvus import MOST_HITS

    if (text is None) == (image is None):
        raise UsageError('give either --text "…" or --image FILE')
    if not (text or image or "").strip():
        raise UsageError(f"--{'text' if image is None else 'image'} is empty: say what is sought")
    if not top.isascii() or not top.isdigit() or not 1 <= int(top[:9]) <= MOST_HITS:
        raise UsageError(
            f"--top {top}: allowed is a number from 1 to {MOST_HITS}; for example --top 5"
        )
    return int(top)


def _print(hits: Sequence[Hit], flags: Any, about: dict[str, Any]) -> None:
    from featprep.naming import printable

    if flags.json:
        found = [{"key": hit.key, "path": hit.path, "score": hit.score} for hit in hits]
        query = {"text": flags.text} if flags.image is None else {"image": flags.image}
        print(json.dumps({"query": query, "model": about["model"], "results": found}, indent=1))
        return
    for hit in hits:
        print(f"{hit.score:7.4f}  {printable(hit.key)}  {printable(hit.path)}")
