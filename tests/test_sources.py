"""Inputs: what is found, in which order and under which key; what is passed over or refused."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from featprep.errors import CollisionError, InputError
from featprep.naming import is_in_shard
from featprep.records import Failure, ImageRef
from featprep.sources import Census, Selection, Source, folds_case
from featprep.stores.npy_tree import NpyTreeStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif"})
PLAIN = Selection(SUFFIXES, NpyTreeStore("out").files)
WITH_META = replace(PLAIN, outputs=NpyTreeStore("out", meta=True).files)
FULL = replace(PLAIN, names="full")
FOLDS = replace(PLAIN, folds=True)


def make(root: Path, *names: str) -> Path:
    """Files of these names, each holding its own name; a name that ends in / is a folder."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(os.fsencode(name))
    return root


def entries(path: object, selection: Selection = PLAIN) -> list[ImageRef | Failure]:
    """Everything an input yields. In every case the census must have counted the same."""
    source = Source(str(path), selection)
    found = [entry for folder in source.folders() for entry in folder]
    census = source.census()
    if selection.limit is None:
        assert census.images == len([e for e in found if _stage(e) != "list"])
        if selection.shard is None:
            assert census.total == len(found)
    return found


def _stage(entry: ImageRef | Failure) -> str:
    return entry.stage if isinstance(entry, Failure) else ""


def keys(path: object, selection: Selection = PLAIN) -> list[str]:
    found = entries(path, selection)
    assert not [entry for entry in found if isinstance(entry, Failure)]
    return [entry.key for entry in found]


def failures(path: object, selection: Selection = PLAIN) -> list[tuple[str, str, str, str]]:
    found = [entry for entry in entries(path, selection) if isinstance(entry, Failure)]
    return [(f.key, f.source, f.stage, f.reason) for f in found]


def census(path: object, selection: Selection = PLAIN) -> Census:
    return Source(str(path), selection).census()


def collision(path: object, selection: Selection = PLAIN) -> str:
    with pytest.raises(CollisionError) as caught:
        census(path, selection)
    return str(caught.value)


def refusal(path: object, selection: Selection = PLAIN) -> str:
    with pytest.raises(InputError) as caught:
        census(path, selection)
    return str(caught.value)


# ---- folders


def test_an_image_has_its_path_below_the_input_as_key_and_what_stat_says_of_it(
    tmp_path: Path,
) -> None:
    make(tmp_path, "in/a/b.png")
    os.utime(tmp_path / "in/a/b.png", ns=(1, 1_700_000_000_123_456_789))
    (ref,) = entries(tmp_path / "in")
    path = os.path.realpath(tmp_path / "in/a/b.png")
    assert ref == ImageRef("a/b", "a/b.png", path, 10, 1_700_000_000_123_456_789)


def test_directories_and_names_come_by_bytes_files_before_subfolders(tmp_path: Path) -> None:
    names = ["b.png", "B.png", "é.png", "\udcff.png", "a-.png", "a/z.png", "a/a.png", "a-/x.png"]
    make(tmp_path, *names, "z/y/x.png", "z/y.png")
    assert keys(tmp_path) == [
        "B",
        "a-",
        "b",
        "é",
        "\udcff",
        "a/a",
        "a/z",
        "a-/x",
        "z/y",
        "z/y/x",
    ]


def test_suffixes_count_in_any_case_and_a_folder_may_be_called_like_an_image(
    tmp_path: Path,
) -> None:
    make(tmp_path, "a.PNG", "b.JpEg", "c.png/d.gif", "e.png.txt", "f.", "g")
    assert keys(tmp_path) == ["a", "b", "c.png/d"]
    assert census(tmp_path).ignored == {".txt": 1, ".": 1, "without suffix": 1}


def test_dot_names_and_the_folders_of_macos_and_synology_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "a.png", ".b.png", "._a.png", ".git/c.png", "@eaDir/d.png", "x/__MACOSX/e.png")
    make(tmp_path, ".featprep/f.png", "x/g.png", "eaDir/h.png")
    assert keys(tmp_path) == ["a", "eaDir/h", "x/g"]
    assert census(tmp_path).ignored == {}


def test_other_files_are_counted_by_suffix_and_results_are_not(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "a.npy", "a_mask.npy", "a.json", "a_vec.npz", "b.jp2", "c/d.JP2")
    make(tmp_path, "e.tar.gz", "README")
    found = census(tmp_path)
    assert found.ignored == {".jp2": 2, ".gz": 1, "without suffix": 1}
    assert found.images == found.total == 1


def test_an_output_inside_the_input_or_the_input_itself_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "sub/b.png")
    before = keys(tmp_path)
    make(tmp_path, "a.npy", "a_mask.npy", "a.json", "sub/b.npy", ".featprep/run.json")
    make(tmp_path, "features/a.npy", "features/sub/b.npy", "features/.featprep/results-all.jsonl")
    assert keys(tmp_path, WITH_META) == before
    assert census(tmp_path).ignored == {}


def test_the_mask_folder_inside_the_input_is_no_source_of_images(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "masks/a.png", "sub/b.png")
    (tmp_path / "sub/link").symlink_to(tmp_path / "masks")
    selection = replace(PLAIN, excluded=frozenset({os.path.realpath(tmp_path / "masks")}))
    assert keys(tmp_path, selection) == ["a", "sub/b"]


def test_an_input_without_images_is_refused_with_the_suffixes_seen(tmp_path: Path) -> None:
    make(tmp_path, "a.tga", "b.TGA", "c", "sub/d.\x1b", "e.npy")
    assert refusal(tmp_path) == (
        f"--input {tmp_path}: no image in it (seen: 2 .tga, 1 without suffix, 1 .\\x1b); read are "
        ".gif .jpeg .jpg .png"
    )


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"--input {tmp_path}: no image in it (seen: no file); read are .gif .jpeg .jpg .png"
    )


def test_an_input_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == (
        f"--input {tmp_path}/nowhere: no such file or folder; check the path"
    )


@pytest.mark.parametrize("name", ["a.tga", "list.csv", "fifo.txt"])
def test_a_file_that_is_neither_image_nor_list_is_refused(tmp_path: Path, name: str) -> None:
    if name == "fifo.txt":
        os.mkfifo(tmp_path / name)  # opened, it would wait for ever
    else:
        make(tmp_path, name)
    assert refusal(tmp_path / name) == (
        f"--input {tmp_path}/{name}: not an image of a listed format (.gif .jpeg .jpg .png), a "
        "folder or a .txt list"
    )


def test_one_image_is_an_input_of_its_own(tmp_path: Path) -> None:
    make(tmp_path, "sub/a.PNG", "sub/b.png")
    (tmp_path / "link").symlink_to("sub")
    source = Source(f"{tmp_path}/link/a.PNG", PLAIN)
    path = os.path.join(os.path.realpath(tmp_path / "sub"), "a.PNG")
    assert source.root == path
    (ref,) = entries(f"{tmp_path}/link/a.PNG")
    assert (ref.key, ref.source, ref.path) == ("a", "a.PNG", path)  # type: ignore[union-attr]


# ---- links, special files, folders that cannot be read


def test_linked_files_are_read_and_linked_folders_followed_once(tmp_path: Path) -> None:
    make(tmp_path, "in/a.png", "out/b.png", "out/sub/c.png")
    (tmp_path / "in/file.png").symlink_to(tmp_path / "out/b.png")
    (tmp_path / "in/one").symlink_to(tmp_path / "out")
    (tmp_path / "in/two").symlink_to(tmp_path / "out")
    (tmp_path / "in/two_sub").symlink_to(tmp_path / "out/sub")
    assert keys(tmp_path / "in") == ["a", "file", "one/b", "one/sub/c"]


def test_a_folder_inside_another_linked_one_is_followed_once_whichever_comes_first(
    tmp_path: Path,
) -> None:
    make(tmp_path, "in/x.png", "out/b.png", "out/sub/c.png")
    (tmp_path / "in/1").symlink_to(tmp_path / "out/sub")
    (tmp_path / "in/2").symlink_to(tmp_path / "out")
    assert keys(tmp_path / "in") == ["x", "1/c", "2/b"]


def test_links_into_the_input_and_circles_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "a/b/c.png")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/self").symlink_to(".")
    (tmp_path / "root").symlink_to(tmp_path)
    assert keys(tmp_path) == ["a/b/c"]


def test_a_link_to_the_parent_of_the_input_takes_its_images_but_not_the_input_again(
    tmp_path: Path,
) -> None:
    make(tmp_path, "p/other.png", "p/in/a.png", "p/in/sub/b.png")
    (tmp_path / "p/in/up").symlink_to("..")
    assert keys(tmp_path / "p/in") == ["a", "sub/b", "up/other"]


def test_a_link_into_a_folder_that_the_walk_passes_over_is_followed(tmp_path: Path) -> None:
    make(tmp_path, ".store/images/a.png", ".store/images/deep/b.png")
    (tmp_path / "images").symlink_to(".store/images")
    (tmp_path / "more").symlink_to(".store/images/deep")
    assert keys(tmp_path) == ["images/a", "images/deep/b"]


def test_many_linked_folders_and_their_folders_are_each_walked_once(tmp_path: Path) -> None:
    make(tmp_path, "in/", *[f"pool/{n}/x.png" for n in range(30)])
    for n in range(30):
        (tmp_path / f"in/{n:02}").symlink_to(tmp_path / f"pool/{n}")
    assert keys(tmp_path / "in") == [f"{n:02}/x" for n in range(30)]


def test_a_link_that_leads_nowhere_or_in_a_circle_is_a_failure_if_named_like_an_image(
    tmp_path: Path,
) -> None:
    make(tmp_path, "ok.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "circle").symlink_to("circle")
    assert failures(tmp_path) == [
        ("broken", "broken.png", "read", "link that leads nowhere"),
        ("circle", "circle.png", "read", "link that leads nowhere"),
    ]
    assert census(tmp_path).ignored == {"without suffix": 1}


def test_what_is_no_regular_file_is_a_failure_and_never_opened(tmp_path: Path) -> None:
    make(tmp_path, "ok.png")
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    assert failures(tmp_path) == [
        ("fifo", "fifo.png", "read", "not a regular file"),
        ("null", "null.png", "read", "not a regular file"),
    ]


def deny(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """Let the folder be unreadable, also for root, who may read everything."""
    real = os.scandir

    def scandir(path: str) -> Any:
        if path == os.path.realpath(folder):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_cannot_be_listed_is_a_failure_of_its_own_key_in_every_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.png", "a/b.png", "c/d.png")
    deny(monkeypatch, f"{tmp_path}/a")
    expected = [("a/", "a", "list", "folder cannot be listed: Permission denied")]
    assert failures(tmp_path) == expected
    for shard in ((1, 2), (2, 2)):
        assert failures(tmp_path, replace(PLAIN, shard=shard)) == expected


def test_an_input_that_cannot_be_listed_is_a_failure_and_not_an_empty_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "in/a.png")
    deny(monkeypatch, f"{tmp_path}/in")
    assert failures(tmp_path / "in") == [
        ("./", ".", "list", "folder cannot be listed: Permission denied")
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_read_permission_is_a_failure(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "a/b.png")
    (tmp_path / "a").chmod(0)
    try:
        assert [key for key, *_ in failures(tmp_path)] == ["a/"]
    finally:
        (tmp_path / "a").chmod(0o700)


# ---- collisions


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["b.png", "b.jpg"], "b.jpg and b.png → b.npy"),
        (["s/b.png", "s/b.PNG"], "s/b.PNG and s/b.png → s/b.npy"),
        (["b.png", "b_mask.png"], "b.png and b_mask.png → b_mask.npy"),
        (["b.png", "b.npy/x.png"], "b.npy/ and b.png → b.npy"),
        (["b.png", "b_mask.npy/x.png"], "b_mask.npy/ and b.png → b_mask.npy"),
    ],
)
def test_two_inputs_that_would_write_one_file_are_refused(
    tmp_path: Path, names: list[str], message: str
) -> None:
    assert collision(make(tmp_path, *names)) == (
        f"one pair of inputs would write the same file: {message}. Nothing was done: use --names "
        "full (a/b.png → a/b.png.npy)"
    )


def test_an_image_and_its_namesake_mask_are_refused_without_masks_too(tmp_path: Path) -> None:
    selection = replace(PLAIN, outputs=NpyTreeStore("out", mask=False).files)
    assert "b.png and b_mask.png → b_mask.npy" in collision(
        make(tmp_path, "b.png", "b_mask.png"), selection
    )


def test_metadata_files_collide_only_where_they_are_written(tmp_path: Path) -> None:
    make(tmp_path, "b.png", "b.json/x.png")
    assert keys(tmp_path) == ["b", "b.json/x"]
    assert "b.json/ and b.png → b.json" in collision(tmp_path, WITH_META)


def test_with_full_names_the_same_inputs_do_not_collide(tmp_path: Path) -> None:
    make(tmp_path, "b.png", "b.jpg", "b_mask.png", "b.npy/x.png")
    assert keys(tmp_path, FULL) == ["b.jpg", "b.png", "b_mask.png", "b.npy/x.png"]


def test_with_full_names_the_way_out_is_to_rename(tmp_path: Path) -> None:
    assert collision(make(tmp_path, "b.png", "b.png.npy/x.png"), FULL) == (
        "one pair of inputs would write the same file: b.png.npy/ and b.png → b.png.npy. Nothing "
        "was done: rename them"
    )


def test_the_same_stem_in_other_folders_is_no_collision(tmp_path: Path) -> None:
    assert keys(make(tmp_path, "a/x.png", "b/x.jpg", "x.png")) == ["x", "a/x", "b/x"]


def test_names_that_differ_in_case_collide_where_the_file_system_folds_it(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "A.png", "Sub/x.png", "sub/y.png", "ß.png", "SS.png")
    assert len(keys(tmp_path)) == 6
    assert collision(tmp_path, FOLDS) == (
        "3 pairs of inputs would write the same file: Sub/ and sub/ → sub; A.png and a.png → "
        "a.npy; SS.png and ß.png → ß.npy. Nothing was done: use --names full (a/b.png → "
        "a/b.png.npy)"
    )
    assert "SS.png and ß.png" in collision(tmp_path, replace(FOLDS, names="full"))


def test_names_that_differ_in_unicode_composition_collide_where_it_is_folded(
    tmp_path: Path,
) -> None:
    one, other = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    make(tmp_path, one, other)
    assert len(keys(tmp_path)) == 2
    assert "one pair of inputs" in collision(tmp_path, FOLDS)


def test_many_collisions_are_counted_and_ten_are_shown(tmp_path: Path) -> None:
    make(tmp_path, *[f"{n:02}.{suffix}" for n in range(13) for suffix in ("png", "jpg")])
    message = collision(tmp_path)
    assert message.startswith("13 pairs of inputs would write the same file: 00.jpg and 00.png →")
    assert message.endswith(
        "; and 3 more. Nothing was done: use --names full (a/b.png → a/b.png.npy)"
    )
    assert message.count(" and ") == 11


def test_collisions_are_told_in_every_shard_and_under_any_limit(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "z/b.png", "z/b.jpg")
    for selection in (replace(PLAIN, shard=(1, 2)), replace(PLAIN, shard=(2, 2))):
        assert "z/b.jpg and z/b.png" in collision(tmp_path, selection)
    assert "z/b.jpg and z/b.png" in collision(tmp_path, replace(PLAIN, limit=1))


def test_a_name_with_escapes_is_shown_safely(tmp_path: Path) -> None:
    make(tmp_path, "\x1b[2J\n.png", "\x1b[2J\n.jpg")
    assert "\\x1b[2J\\n.jpg and \\x1b[2J\\n.png → \\x1b[2J\\n.npy" in collision(tmp_path)


# ---- lists


def write_list(folder: Path, *lines: str | bytes, end: bytes = b"\n", start: bytes = b"") -> Path:
    path = folder / "list.txt"
    raw = [line if isinstance(line, bytes) else os.fsencode(line) for line in lines]
    path.write_bytes(start + b"".join(line + end for line in raw))
    return path


def test_a_list_is_read_in_its_own_order_relative_to_where_it_lies(tmp_path: Path) -> None:
    make(tmp_path, "d/b.png", "d/sub/a.png", "d/c.png")
    path = write_list(tmp_path / "d", "c.png", "sub/a.png", "./b.png", "sub/../c.png")
    assert keys(path) == ["c", "sub/a", "b"]
    assert Source(str(path), PLAIN).root == os.path.realpath(path)


def test_images_outside_the_lists_folder_are_named_by_their_absolute_path(tmp_path: Path) -> None:
    make(tmp_path, "d/a.png", "e/b.png", "ee/c.png")
    path = write_list(tmp_path / "d", "../e/b.png", f"{tmp_path}/d/a.png", f"{tmp_path}/ee/c.png")
    below = str(tmp_path)[1:]
    assert keys(path) == [f"{below}/e/b", "a", f"{below}/ee/c"]


def test_adding_a_line_renames_nothing(tmp_path: Path) -> None:
    make(tmp_path, "d/a.png", "x.png")
    before = keys(write_list(tmp_path / "d", "a.png"))
    assert keys(write_list(tmp_path / "d", "../x.png", "a.png"))[1:] == before


@pytest.mark.parametrize(
    ("end", "start"),
    [(b"\r\n", b""), (b"\n", b"\xef\xbb\xbf"), (b"\r\n", b"\xef\xbb\xbf"), (b"\n\r\n \n", b"")],
    ids=["CRLF", "BOM", "both", "blank lines"],
)
def test_a_list_may_have_windows_endings_a_bom_blank_lines_and_duplicates(
    tmp_path: Path, end: bytes, start: bytes
) -> None:
    make(tmp_path, "é.png", "b c.png")
    lines = ["é.png", "b c.png", "é.png", "./é.png"]
    assert keys(write_list(tmp_path, *lines, end=end, start=start)) == ["é", "b c"]


def test_a_list_without_a_last_newline_is_whole(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png")
    assert keys(write_list(tmp_path, b"a.png\nb.png", end=b"")) == ["a", "b"]


def test_blanks_around_a_name_are_part_of_it_and_so_are_bytes_that_are_not_utf_8(
    tmp_path: Path,
) -> None:
    make(tmp_path, " a .png", "\udcff.png")
    assert keys(write_list(tmp_path, " a .png", b"\xff.png")) == [" a ", "\udcff"]


def test_a_list_in_utf_16_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("a.png\r\n".encode("utf-16"))
    assert refusal(path) == f"--input {path}: a list in UTF-16; save it as UTF-8"


def test_a_list_entry_that_is_not_there_or_no_file_is_a_failure_of_its_own(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "folder.png/")
    path = write_list(tmp_path, "a.png", "gone.png", "folder.png", "http://x.org/y.png")
    assert failures(path) == [
        ("gone", "gone.png", "read", "No such file or directory"),
        ("folder", "folder.png", "read", "not a regular file"),
        ("http:/x.org/y", "http:/x.org/y.png", "read", "No such file or directory"),
    ]


def test_an_entry_that_names_the_ledger_or_no_place_at_all_is_a_failure(tmp_path: Path) -> None:
    make(tmp_path, "a.png", ".featprep/x.png")
    path = write_list(tmp_path, "a.png", ".featprep/x.png", "b\0c.png", "/.FEATPREP/y.png", ".")
    reason = "a list entry may not name this place; move the image or leave it out"
    assert failures(path) == [
        (".featprep/x.png", ".featprep/x.png", "list", reason),
        ("b\0c.png", "b\0c.png", "list", reason),
        (".FEATPREP/y.png", ".FEATPREP/y.png", "list", reason),
        (".", ".", "list", reason),
    ]


def test_a_bad_list_entry_fails_in_one_shard_alone(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    path = write_list(tmp_path, "a.png", *[f"{n}\0.png" for n in range(20)])
    per_shard = [failures(path, replace(PLAIN, shard=(i, 3))) for i in (1, 2, 3)]
    assert sorted(chain(*per_shard)) == sorted(failures(path))
    assert all(per_shard)


def test_a_list_may_name_hidden_folders_but_hidden_files_are_passed_over_and_counted(
    tmp_path: Path,
) -> None:
    make(tmp_path, ".cache/a.png", ".cache/._a.png", "x/@eaDir/b.png", "notes.md")
    path = write_list(tmp_path, ".cache/a.png", ".cache/._a.png", "x/@eaDir/b.png", "notes.md")
    assert keys(path) == [".cache/a"]
    assert census(path).ignored == {"hidden": 2, ".md": 1}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x/a.png", "x/a.jpg"], "x/a.png and x/a.jpg → x/a.npy"),
        (["a.png", "b/c.png", "a.npy/d.png"], "a.npy/ and a.png → a.npy"),
        (["x/a.png", "x/a_mask.npy/b/c.png"], "x/a_mask.npy/ and x/a.png → x/a_mask.npy"),
    ],
)
def test_collisions_in_a_list_are_found_across_its_folders(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    assert message in collision(write_list(make(tmp_path, *lines), *lines))


def test_an_absolute_and_a_relative_entry_of_one_name_collide(tmp_path: Path) -> None:
    outside = make(tmp_path, "out/x.png") / "out/x.png"
    inside = str(outside)[1:]
    make(tmp_path / "d", inside)
    key = inside.removesuffix(".png")
    assert f"{inside} and {inside} → {key}.npy" in collision(
        write_list(tmp_path / "d", inside, str(outside))
    )


def test_a_list_of_nothing_is_refused(tmp_path: Path) -> None:
    path = write_list(tmp_path, "", "notes.md")
    assert refusal(path) == (
        f"--input {path}: no image in it (seen: 1 .md); read are .gif .jpeg .jpg .png"
    )


# ---- shards, limits, what is done


def test_shards_are_disjoint_complete_and_in_order(tmp_path: Path) -> None:
    make(tmp_path, *[f"{n % 3}/{n}.png" for n in range(40)])
    everything = keys(tmp_path)
    parts = [keys(tmp_path, replace(PLAIN, shard=(i, 4))) for i in range(1, 5)]
    assert sorted(chain(*parts)) == sorted(everything)
    for i, part in enumerate(parts, start=1):
        assert part == [key for key in everything if is_in_shard(key, (i, 4))]
        assert part


def test_a_limit_takes_the_first_across_folders(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png", "x/c.png", "x/d.png", "y/e.png")
    for limit in range(1, 8):
        selection = replace(PLAIN, limit=limit)
        assert keys(tmp_path, selection) == ["a", "b", "x/c", "x/d", "y/e"][:limit]
        assert census(tmp_path, selection).images == min(limit, 5)


def test_a_limit_counts_within_the_shard(tmp_path: Path) -> None:
    make(tmp_path, *[f"{n}.png" for n in range(20)])
    whole = keys(tmp_path, replace(PLAIN, shard=(2, 2)))
    selection = replace(PLAIN, shard=(2, 2), limit=3)
    assert keys(tmp_path, selection) == whole[:3]
    assert census(tmp_path, selection).images == 3


def test_the_census_asks_of_the_selected_what_is_done_and_of_all_what_is_taken(
    tmp_path: Path,
) -> None:
    make(tmp_path, "a.png", "b.png", "x/c.png", "x/d.png")
    asked: list[list[str]] = []

    def count(keys: list[str]) -> tuple[int, int]:
        asked.append(keys)
        return len(keys), 10 * len(keys)

    found = Source(str(tmp_path), replace(PLAIN, limit=3)).census(count)
    assert asked == [["a", "b"], ["x/c"], ["x/c", "x/d"]]
    assert (found.images, found.done, found.taken, found.total) == (3, 3, 40, 4)


PART = st.sampled_from(["a", "b", "A", ".h", "é", "\udcff", "@eaDir", "x y", "-", "c.png"])
SUFFIX = st.sampled_from([".png", ".JPG", ".txt", "", ".npy", ".json"])
TREE = st.lists(st.tuples(st.lists(PART, max_size=3), PART, SUFFIX), min_size=1, max_size=12)


@given(tree=TREE, shard=st.none() | st.just((1, 2)) | st.just((2, 2)))
@settings(deadline=None, max_examples=60, suppress_health_check=[*HealthCheck])
def test_the_census_counts_what_folders_yield_whatever_the_tree(
    tree: Iterable[tuple[list[str], str, str]],
    shard: tuple[int, int] | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for folders, stem, suffix in tree:
        path = root.joinpath(*folders, stem + suffix)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # the tree wants one name for a file and for a folder
    selection = replace(PLAIN, shard=shard, names="full")
    try:
        found = keys(root, selection)
    except InputError:
        found = []
    expected = [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file()
        and path.suffix.lower() in SUFFIXES
        and not any(part[0] == "." or part == "@eaDir" for part in path.relative_to(root).parts)
    ]
    assert sorted(found) == sorted(key for key in expected if is_in_shard(key, shard))


# ---- the output's file system


def test_a_file_system_that_tells_case_apart_does_not_fold(tmp_path: Path) -> None:
    make(tmp_path, "Name")
    if (tmp_path / "nAME").exists():
        pytest.skip("this file system folds case")
    assert not folds_case(str(tmp_path))
    assert not folds_case(str(tmp_path / "not/there/yet"))
    assert list(tmp_path.iterdir()) == [tmp_path / "Name"]


def test_a_file_system_that_folds_case_is_known_by_a_name_that_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "Name")
    real: Callable[[str], bool] = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: real(path.replace("nAME", "Name")))
    monkeypatch.setattr(os.path, "samefile", lambda one, other: one.lower() == other.lower())
    assert folds_case(str(tmp_path))
