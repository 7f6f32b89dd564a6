"""Keys, shards and what may be printed: pure functions of names."""

from __future__ import annotations

import os
import unicodedata

import pytest
from featprep.naming import fold, is_in_shard, is_reserved, key_of, printable, shard_of, sort_key
from hypothesis import example, given, settings
from hypothesis import strategies as st

# What a path can hold: no NUL; bytes that are not UTF-8 come as lone surrogates.
NAMES = st.binary(min_size=1, max_size=40).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"x")))
TEXTS = st.text(st.characters(codec=None), max_size=40)  # lone surrogates among them


@pytest.mark.parametrize(
    ("source", "stem"),
    [
        ("a/b.png", "a/b"),
        ("b.tar.JPEG", "b.tar"),
        ("a.b/c.png", "a.b/c"),
        ("x.png/y.png", "x.png/y"),
        ("a b\n'\".png", "a b\n'\""),
        ("-rf.png", "-rf"),
        ("\udcff.png", "\udcff"),
    ],
)
def test_the_key_is_the_path_without_its_suffix_or_with_names_full_all_of_it(
    source: str, stem: str
) -> None:
    assert key_of(source, "stem") == stem
    assert key_of(source, "full") == source


def test_names_sort_by_their_bytes_not_by_their_letters() -> None:
    names = ["é", "\udcff", "a", "Z", "z", "😀", "_"]
    assert sorted(names, key=sort_key) == ["Z", "_", "a", "z", "é", "😀", "\udcff"]


@pytest.mark.parametrize(
    ("key", "of_two", "of_eight", "of_thousand"),
    [("a/b", 0, 4, 148), ("a", 1, 7, 719), ("café", 1, 7, 439), ("\udcff", 0, 6, 702)],
)
def test_the_shard_of_a_key_never_changes(
    key: str, of_two: int, of_eight: int, of_thousand: int
) -> None:
    assert [shard_of(key, n) for n in (1, 2, 8, 1000)] == [0, of_two, of_eight, of_thousand]


@settings(deadline=None)
@given(key=NAMES, count=st.integers(1, 50))
def test_shards_are_disjoint_and_together_everything(key: str, count: int) -> None:
    assert [is_in_shard(key, (i, count)) for i in range(1, count + 1)].count(True) == 1
    assert is_in_shard(key, None)


def test_shards_are_of_about_one_size() -> None:
    sizes = [sum(is_in_shard(f"a/{n}", (i, 8)) for n in range(8000)) for i in range(1, 9)]
    assert min(sizes) > 900
    assert max(sizes) < 1100


@settings(deadline=None)
@given(TEXTS)
@example("ᾳ")
@example("İ")
@example("ǰ̣")
def test_names_that_differ_in_case_or_composition_fold_to_one(name: str) -> None:
    folded = fold(name)
    assert fold(folded) == folded
    assert fold(unicodedata.normalize("NFC", name)) == folded
    assert fold(unicodedata.normalize("NFD", name)) == folded


@pytest.mark.parametrize(
    ("one", "other"),
    [("A.PNG", "a.png"), ("Straße", "STRASSE"), ("é", "e\u0301"), ("É", "e\u0301"), ("Σ", "ς")],
)
def test_a_file_system_that_folds_takes_these_for_one(one: str, other: str) -> None:
    assert fold(one) == fold(other)


@pytest.mark.parametrize(
    "key",
    [
        ".featprep",
        ".featprep/x",
        ".FeatPrep/run",
        "",
        "/a",
        "a//b",
        "a/",
        ".",
        "a/./b",
        "..",
        "../a",
        "a/../b",
        "a\0b",
    ],
)
def test_no_result_may_stand_in_the_ledger_or_outside_the_output(key: str) -> None:
    assert is_reserved(key)


@pytest.mark.parametrize(
    "key", ["a", "a/.featprep", ".featprepx/a", "...", "a/..b", ".hidden/x", "-", "\udcff", " "]
)
def test_other_keys_are_free(key: str) -> None:
    assert not is_reserved(key)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("häß/日本 😀'\".png", "häß/日本 😀'\".png"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\udcff\udc80", "\\xff\\x80"),
        ("\ud800", "\\ud800"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("\u2028", "\\u2028"),
    ],
)
def test_control_characters_escapes_and_lone_bytes_are_spelled_out(name: str, shown: str) -> None:
    assert printable(name) == shown


@settings(deadline=None)
@given(TEXTS)
def test_what_is_printed_is_one_line_of_utf_8_and_printing_it_again_changes_nothing(
    name: str,
) -> None:
    shown = printable(name)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert printable(shown) == shown
