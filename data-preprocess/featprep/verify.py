"""Is an output what its records say? Every recorded result, one by one, then every file that
stands: what no record names is told, and never touched. Prints nothing and changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from featprep.images import SUFFIXES
from featprep.journal import Line, LineIndex
from featprep.ledger import folder_of, is_record, read_run
from featprep.lock import RunLock, title_of
from featprep.naming import RESERVED, sort_key
from featprep.runs import Run
from featprep.stores.base import EVERYTHING, is_temporary, output_error
from featprep.stores.npy_files import FEATURE
from featprep.stores.npy_tree import META, VECTORS
from featprep.verify_result import Finding, check_result, expected_of


class Verification:
    """One output, open from `__enter__` to `__exit__`. `results`, `files` and `size` count what
    the records name, while `findings` goes over it.

    Memory stays flat: records are asked of an index on disk, the tree is listed by folder.
    """

    def __init__(self, output: str, *, deep: bool, is_ours: bool = False) -> None:
        """`is_ours`: its lock is held by who asks. Raises InputError where no run wrote,
        FingerprintError where run.json is damaged."""
        self.run, self.deep = Run(output), deep
        self.output = self.run.path
        self.results = self.files = self.size = 0
        holders = () if is_ours else RunLock(folder_of(self.output)).holders()
        self.at_work = [title_of(holder) for _, holder, lives in holders if lives]

    def __enter__(self) -> Self:
        self._index = LineIndex(folder_of(self.output), "results-*.jsonl")
        return self

    def __exit__(self, *_: object) -> None:
        self._index.close()

    @property
    def records(self) -> int:
        return len(self._index)

    def findings(self, on_record: Callable[[], object] = lambda: None) -> Iterator[Finding]:
        """`on_record`: told of each record gone over. While a run works here, its temporary files
        and what it has not yet recorded are no findings."""
        if (read_run(self.output) or {}).get("clearing"):
            text = (
                "a run with --overwrite was stopped while it removed older results; start it again"
            )
            yield Finding("run", f"{RESERVED}/run.json", text)
        expected = expected_of(self.run.fingerprint)
        for line in self._index:
            on_record()
            if is_record(line):
                self._count(line)
                yield from check_result(self.output, line, expected, deep=self.deep)
        if not self.at_work:
            yield from self._strangers()

    def _count(self, line: Line) -> None:
        sizes = line.get("bytes")
        self.results += 1
        self.files += len(line["files"])
        lengths = sizes.values() if isinstance(sizes, dict) else ()
        self.size += sum(n for n in lengths if isinstance(n, int) and 0 <= n < 1 << 63)

    def _strangers(self) -> Iterator[Finding]:
        """Files that no record names, and temporary ones."""
        for folder, name in self._tree():
            file = f"{folder}{name}"
            if is_temporary(name, EVERYTHING):
                text = "a temporary file of a run that was killed; the next run removes it"
                yield Finding("temporary", file, text)
            elif not (name.startswith(".") or self._is_recorded(file) or self._is_input(file)):
                yield Finding("unrecorded", file, "no record names it")

    def _tree(self) -> Iterator[tuple[str, str]]:
        """(folder, name) of every file, by bytes; not of the ledger's, nor of another run's output
        in this one. A linked folder is a file here: no result lies behind one."""
        stack = [""]
        while stack:
            folder = stack.pop()
            entries = _listed(os.path.join(self.output, folder))
            folders = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
            if folder and RESERVED in folders:
                continue
            yield from ((folder, entry.name) for entry in entries if entry.name not in folders)
            below = sorted(folders - {RESERVED}, key=sort_key, reverse=True)
            stack.extend(f"{folder}{name}/" for name in below)

    def _is_recorded(self, file: str) -> bool:
        for key in _owners(file):
            line = self._index.get(key)
            if line is not None and is_record(line) and file in line["files"]:
                return True
        return False

    def _is_input(self, file: str) -> bool:
        """The output may be the input, or hold it: images and annotations there are people's. So
        are images in an output that lies in the input."""
        if file.endswith((FEATURE, VECTORS)) or not self.run.input:
            return False
        source, output = Path(os.path.realpath(self.run.input)), Path(os.path.realpath(self.output))
        home = source if source.is_dir() else source.parent
        if home.is_relative_to(output):
            return (output / file).is_relative_to(home)
        is_image = os.path.splitext(file)[1].lower() in SUFFIXES
        return is_image and source.is_dir() and output.is_relative_to(home)


def _owners(file: str) -> Iterator[str]:
    """The keys whose result could have a file of this name."""
    if file.endswith(FEATURE):
        stem = file[: -len(FEATURE)]
        yield stem
        if stem.endswith("_mask"):
            yield stem[: -len("_mask")]
        if "@" in stem.rpartition("/")[2]:
            yield stem.rpartition("@")[0]
    for suffix in (META, VECTORS):
        if file.endswith(suffix):
            yield file[: -len(suffix)]


def _listed(path: str) -> list[os.DirEntry[str]]:
    """What stands in a folder, by bytes; nothing of one that went meanwhile."""
    try:
        with os.scandir(path) as listing:
            return sorted(listing, key=lambda entry: sort_key(entry.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise output_error(path, error, "list") from error
