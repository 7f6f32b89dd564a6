"""A folder, one image or a .txt list → ordered ImageRefs, a directory at a time.

Two passes: `census` counts, and finds every collision before any work; `folders` yields the images.
Neither keeps more than one directory, so memory does not grow with the number of images (a list
counts as one directory). Is given image suffixes and output names as values, opens no image.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from featprep.errors import CollisionError, InputError
from featprep.naming import fold, is_in_shard, is_reserved, key_of, printable, sort_key
from featprep.records import Failure, ImageRef

SKIPPED_FOLDERS = {"@eaDir", "__MACOSX"}
RESULT_SUFFIXES = {".npy", ".npz", ".json"}  # ours, where output and input share folders
SHOWN_COLLISIONS = 10

Entry = ImageRef | Failure


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images, and what they would write.

    `outputs`: key → file names below the output. `folds`: the output's file system folds case.
    `excluded`: real paths of folders to pass over (the mask folder). `flag`: what the user named
    the input with.
    """

    suffixes: frozenset[str]
    outputs: Callable[[str], tuple[str, ...]]
    names: str = "stem"
    shard: tuple[int, int] | None = None
    limit: int | None = None
    folds: bool = False
    excluded: frozenset[str] = frozenset()
    flag: str = "--input"


@dataclass(slots=True)
class Folder:
    """One directory of the input: its images in byte order, and what was passed over."""

    name: str  # below the input; "" is the input itself
    sources: list[tuple[str, str]] = field(default_factory=list)  # (source, path to open)
    failures: list[Failure] = field(default_factory=list)
    subfolders: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Census:
    """What an input holds. `images` counts those selected, `done` those of them with results;
    `total` all, with what cannot be listed, `taken` those of all where some file of a result
    stands; `ignored` other files by suffix."""

    images: int = 0
    done: int = 0
    total: int = 0
    taken: int = 0
    ignored: Counter[str] = field(default_factory=Counter)


class Source:
    """An input that was found to exist. Raises InputError if it does not."""

    def __init__(self, path: str, selection: Selection) -> None:
        self.path, self.selection = path, selection
        self.root, self._scan = _open_input(path, selection)

    def census(
        self, count_done: Callable[[list[str]], tuple[int, int]] = lambda keys: (0, 0)
    ) -> Census:
        """Count the images and refuse collisions and empty inputs, without a stat a file.

        `count_done`: one folder's keys → how many have results, and how many any file of one.
        """
        found, clashing = Census(), 0
        clashes: list[tuple[str, str, str]] = []
        for folder in self._scan():
            keys = [key_of(source, self.selection.names) for source, _ in folder.sources]
            selected = [key for key in keys if is_in_shard(key, self.selection.shard)]
            if self.selection.limit is not None:
                selected = selected[: self.selection.limit - found.images]
            found.total += len(keys) + len(folder.failures)
            found.images += len(selected)
            done, taken = count_done(selected)
            found.done += done
            found.taken += taken if len(selected) == len(keys) else count_done(keys)[1]
            found.ignored.update(folder.ignored)
            for clash in _collisions(folder, keys, self.selection):
                clashing += 1
                clashes += [clash] * (len(clashes) < SHOWN_COLLISIONS)
        if clashes:
            raise CollisionError(_collision_text(clashes, clashing, self.selection.names))
        if not found.total:
            raise InputError(_no_image_text(self.path, found.ignored, self.selection))
        return found

    def folders(self) -> Iterator[list[Entry]]:
        """The selected images, one list a directory, stat'ed; what cannot be is a Failure."""
        left = self.selection.limit
        for folder in self._scan():
            entries: list[Entry] = [
                failure
                for failure in folder.failures  # a folder that cannot be listed concerns all shards
                if failure.key.endswith("/") or is_in_shard(failure.key, self.selection.shard)
            ]
            for source, path in folder.sources:
                key = key_of(source, self.selection.names)
                if left == 0 or not is_in_shard(key, self.selection.shard):
                    continue
                entries.append(_stat(key, source, path))
                left = None if left is None else left - 1
            yield entries
            if left == 0:
                return


def _open_input(path: str, selection: Selection) -> tuple[str, Callable[[], Iterator[Folder]]]:
    """(what identifies the input, its scan)."""
    real = os.path.realpath(path)
    if os.path.isdir(path):
        return real, lambda: _walk(real, selection)
    if not os.path.exists(path):
        raise InputError(
            f"{selection.flag} {printable(path)}: no such file or folder; check the path"
        )
    folder, name = os.path.split(os.path.abspath(path))
    suffix = os.path.splitext(name)[1].lower()
    if not os.path.isfile(path) or suffix not in {".txt", *selection.suffixes}:
        allowed = " ".join(sorted(selection.suffixes))
        raise InputError(
            f"{selection.flag} {printable(path)}: not an image of a listed format ({allowed}), "
            "a folder or a .txt list"
        )
    if suffix == ".txt":
        return real, lambda: iter([_read_list(path, selection)])
    image = os.path.join(os.path.realpath(folder), name)
    return image, lambda: iter([Folder("", [(name, image)])])


def _walk(root: str, selection: Selection) -> Iterator[Folder]:
    """Depth first, files before subfolders, names by bytes; linked folders once, loops never."""
    roots = {root}
    stack = [("", root)]
    while stack:
        name, path = stack.pop()
        folder, below = _list_folder(name, path, selection, roots)
        yield folder
        stack.extend(reversed(below))


def _list_folder(
    name: str, path: str, selection: Selection, roots: set[str]
) -> tuple[Folder, list[tuple[str, str]]]:
    """`roots`: real paths of the input and of the linked folders followed so far; grows."""
    folder, below = Folder(name), []
    try:
        with os.scandir(path) as listing:
            found = sorted(listing, key=lambda entry: sort_key(entry.name))
    except OSError as error:
        reason = f"folder cannot be listed: {error.strerror or error}"
        folder.failures.append(Failure(f"{name or '.'}/", name or ".", "list", reason))
        return folder, []
    for entry in found:
        if _is_passed_over(entry.name):
            continue
        source = f"{name}/{entry.name}" if name else entry.name
        if not _is_folder(entry):
            _sort_file(folder, source, entry.path, selection.suffixes)
        elif _is_followed(entry, selection, roots):
            folder.subfolders.append(source)
            below.append((source, entry.path))
    return folder, below


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name in SKIPPED_FOLDERS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or through a folder that may not be entered
        return False


def _sort_file(folder: Folder, source: str, path: str, suffixes: frozenset[str]) -> None:
    suffix = os.path.splitext(source)[1].lower()
    if suffix in suffixes:
        folder.sources.append((source, path))
    elif suffix not in RESULT_SUFFIXES:
        folder.ignored[suffix or "without suffix"] += 1


def _is_followed(entry: os.DirEntry[str], selection: Selection, roots: set[str]) -> bool:
    """Folders are, but for those a link led to before; links where the walk would not come by."""
    is_link = entry.is_symlink()
    if not is_link and not selection.excluded and len(roots) == 1:
        return True  # the common case costs no realpath
    real = os.path.realpath(entry.path)
    if real in selection.excluded or real in roots:
        return False
    if is_link:
        for above in _above(real):
            if above in roots and not any(map(_is_passed_over, real[len(above) :].split("/"))):
                return False
        roots.add(real)
    return True


def _is_within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _read_list(path: str, selection: Selection) -> Folder:
    """A list as one folder. A path below the list's folder keeps its relative name as key; any
    other is named by its absolute path, so that adding lines never renames a result."""
    base = os.path.dirname(os.path.abspath(path))
    folder, seen = Folder(""), set()
    for line in _lines_of(path, selection.flag):
        full = line if "\0" in line else os.path.normpath(os.path.join(base, line))
        if full in seen or not line.strip():
            continue
        seen.add(full)
        source = os.path.relpath(full, base) if _is_within(full, base) else full.lstrip("/")
        *above, name = source.split("/")
        if is_reserved(source):
            reason = "a list entry may not name this place; move the image or leave it out"
            folder.failures.append(Failure(source, source, "list", reason))
        elif _is_passed_over(name) or not SKIPPED_FOLDERS.isdisjoint(above):
            folder.ignored["hidden"] += 1
        else:
            _sort_file(folder, source, full, selection.suffixes)
    folder.subfolders = sorted(
        {parent for source, _ in folder.sources for parent in _above(source)}
    )
    return folder


def _lines_of(path: str, flag: str) -> Iterator[str]:
    """Lines as they stand, blanks in names included; bytes that are not UTF-8 as surrogates."""
    try:
        with Path(path).open("rb") as file:
            if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise InputError(f"{flag} {printable(path)}: a list in UTF-16; save it as UTF-8")
            file.seek(0)
            for number, line in enumerate(file):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
                yield os.fsdecode(text.rstrip(b"\r\n"))
    except OSError as error:
        raise InputError(f"{flag} {printable(path)}: {error.strerror or error}") from error


def _above(source: str) -> Iterator[str]:
    """Every folder that `source` lies in."""
    while source := source.rpartition("/")[0]:
        yield source


def _stat(key: str, source: str, path: str) -> Entry:
    try:
        found = os.stat(path)
    except OSError as error:
        is_broken_link = os.path.islink(path) and not os.path.exists(path)
        reason = "link that leads nowhere" if is_broken_link else (error.strerror or str(error))
        return Failure(key, source, "read", reason)
    if not stat.S_ISREG(found.st_mode):
        return Failure(key, source, "read", "not a regular file")
    return ImageRef(key, source, path, found.st_size, found.st_mtime_ns)


def _collisions(
    folder: Folder, keys: Iterable[str], selection: Selection
) -> Iterator[tuple[str, str, str]]:
    """(first, second, file both would write) for each clash in one directory."""
    normal = fold if selection.folds else str
    owners: dict[str, str] = {}
    for name in folder.subfolders:
        owner = owners.setdefault(normal(name), name + "/")
        if owner != name + "/":
            yield owner, name + "/", name
    for (source, _), key in zip(folder.sources, keys, strict=True):
        for file in reversed(selection.outputs(key)):  # the map is what a user knows
            if normal(file) in owners:
                yield owners[normal(file)], source, file
                break
            owners[normal(file)] = source


def _collision_text(clashes: list[tuple[str, str, str]], count: int, names: str) -> str:
    pairs = "; ".join(
        f"{printable(a)} and {printable(b)} → {printable(file)}" for a, b, file in clashes
    )
    more = f"; and {count - len(clashes):,} more" if count > len(clashes) else ""
    way_out = "rename them" if names == "full" else "use --names full (a/b.png → a/b.png.npy)"
    what = "one pair of inputs" if count == 1 else f"{count:,} pairs of inputs"
    return f"{what} would write the same file: {pairs}{more}. Nothing was done: {way_out}"


def _no_image_text(path: str, ignored: Counter[str], selection: Selection) -> str:
    seen = ", ".join(f"{n:,} {printable(suffix[:24])}" for suffix, n in ignored.most_common(8))
    allowed = " ".join(sorted(selection.suffixes))
    return (
        f"{selection.flag} {printable(path)}: no image in it (seen: {seen or 'no file'}); read are "
        f"{allowed}"
    )


def folds_case(path: str) -> bool:
    """Does the file system at `path` (or at its nearest folder that stands) take `A` for `a`?

    Asked of a name that is there already, since nothing may be written before the collisions are
    known; an empty folder is asked by its own name.
    """
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    try:
        with os.scandir(path) as listing:
            names = [entry.path for entry in listing if entry.name.swapcase() != entry.name]
    except OSError:
        names = []
    known = names[0] if names else path
    folder, name = os.path.split(known)
    swapped = os.path.join(folder, name.swapcase())
    return swapped != known and os.path.exists(swapped) and os.path.samefile(known, swapped)
