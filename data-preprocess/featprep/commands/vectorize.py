"""`featprep vectorize`, which image_vectorizer.py is too: one vector an image.

Reading the flags needs the standard library alone, so that --help answers at once; the work is in
vectorize_run.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from featprep.commands.flags import as_models
from featprep.commands.vectorize_job import make_parser, read_job


def main(argv: Sequence[str], prog: str = "featprep vectorize") -> int:
    job = read_job(make_parser(prog), argv)
    from featprep.commands import vectorize_run
    from featprep.commands.console import warnings_as_notes

    with warnings_as_notes(), as_models():
        return vectorize_run.run(job)
