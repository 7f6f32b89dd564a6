"""The store: every byte of its files, their order, what stands after a failed or killed write."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from featprep.errors import ImageError, OutputError
from featprep.records import AnyArray, Features, ImageRef, Result
from featprep.stores import STORES
from featprep.stores.base import is_temporary, sweep, write_whole
from featprep.stores.npy_files import npy, npz, read_array, read_json, read_npz
from featprep.stores.npy_tree import NpyTreeStore
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

MAP = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
MASK = np.eye(3, 4, dtype=np.uint8)
META = {"key": "a/b", "format": 1, "encoder": "fake:mean", "notes": ["ö"]}


def result(
    key: str = "a/b", feature: AnyArray = MAP, mask: AnyArray | None = MASK, **meta: Any
) -> Result:
    ref = ImageRef(key, f"{key}.png", f"/in/{key}.png", 7, 1)
    return Result(ref, Features({0: feature}), mask, "0" * 64, {**META, "key": key, **meta})


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> NpyTreeStore:
    return NpyTreeStore(str(tmp_path), meta=True)


# ---- the contract of every store


@pytest.mark.parametrize("name", STORES)
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    with STORES[name](str(tmp_path), meta=True) as store:
        assert not store.done("a/b")
        with pytest.raises(KeyError):
            store.read("a/b")
        written = store.write("a/b", result())
        assert list(written) == list(store.files("a/b"))
        feature, mask, meta = store.read("a/b")
        assert np.array_equal(feature, MAP)
        assert mask is not None
        assert np.array_equal(mask, MASK)
        assert meta == META
        assert store.done("a/b")
        assert list(store.keys()) == ["a/b"]
        store.remove("a/b")
        assert not store.done("a/b")
        assert list(store.keys()) == []
    assert tree(tmp_path) == {}


# ---- the bytes


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "mask",
    [MASK, np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), None],
    ids=["any", "coverage", "none"],
)
def test_files_are_what_np_save_writes_and_load_mapped_without_pickle(
    tmp_path: Path, dtype: str, mask: AnyArray | None
) -> None:
    feature = MAP.astype(dtype)
    store = NpyTreeStore(str(tmp_path), mask=mask is not None)
    written = store.write("a/b", result(feature=feature, mask=mask))
    for array, file in ((feature, "a/b.npy"), (mask, "a/b_mask.npy")):
        path = tmp_path / file
        if array is None:
            assert not path.exists()
            continue
        np.save(tmp_path / "reference.npy", array)
        assert path.read_bytes() == (tmp_path / "reference.npy").read_bytes()
        data = path.read_bytes()
        assert written[file] == (xxhash.xxh3_128_hexdigest(data), len(data))
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        assert isinstance(loaded, np.memmap)
        assert loaded.offset % 64 == 0
        assert loaded.flags.c_contiguous
        assert (loaded.dtype, loaded.tolist()) == (array.dtype, array.tolist())
    stored, stored_mask, meta = store.read("a/b")
    assert stored.dtype == dtype
    assert (stored_mask is None) == (mask is None)
    assert meta is None


def test_vectors_are_a_zip_whose_bytes_hold_no_hour_and_no_pickle(tmp_path: Path) -> None:
    store = NpyTreeStore(str(tmp_path), layers=(5, 0), vectors=True)
    vectors = {"prefix": MAP[:, 0].astype(np.float16), "empty": np.array(False)}
    features = Features({11: MAP, 5: MAP + 5, 0: MAP + 1}, vectors)
    taken = replace(result("a"), features=features)
    written = store.write("a", taken)
    assert tuple(written) == store.files("a")
    assert tuple(written) == ("a_mask.npy", "a@0.npy", "a@5.npy", "a_vec.npz", "a.npy")
    with zipfile.ZipFile(tmp_path / "a_vec.npz") as file:
        found = [(item.filename, item.compress_type, item.date_time) for item in file.infolist()]
    epoch = (1980, 1, 1, 0, 0, 0)
    assert found == [("prefix.npy", zipfile.ZIP_STORED, epoch), ("empty.npy", 0, epoch)]
    data = (tmp_path / "a_vec.npz").read_bytes()
    assert written["a_vec.npz"] == (xxhash.xxh3_128_hexdigest(data), len(data))
    loaded = np.load(tmp_path / "a_vec.npz", allow_pickle=False)
    assert np.array_equal(loaded["prefix"], vectors["prefix"])
    assert (loaded["prefix"].dtype, loaded["empty"].shape, loaded["empty"].dtype) == (
        np.float16, (), bool,
    )  # fmt: skip
    assert store.read_layers("a")[5].tolist() == (MAP + 5).tolist()
    store.remove("a")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("file", ["a_vec.npz", "a@5.npy"])
def test_a_layer_or_a_zip_that_is_damaged_is_a_value_error(tmp_path: Path, file: str) -> None:
    store = NpyTreeStore(str(tmp_path), layers=(5,), vectors=True)
    store.write("a", replace(result("a"), features=Features({11: MAP, 5: MAP}, {"x": MAP})))
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is no whole \.np[yz] file"):
        store.read_vectors("a") if file.endswith("z") else store.read_layers("a")
    with pytest.raises(KeyError):
        store.read_layers("b")
    with pytest.raises(KeyError):
        store.read_vectors("b")


def test_an_array_that_is_not_in_c_order_is_stored_in_it(store: NpyTreeStore) -> None:
    turned = MAP.transpose(0, 2, 1)
    store.write("a", result("a", feature=turned, mask=MASK.T))
    feature, mask, _ = store.read("a")
    assert feature.flags.c_contiguous
    assert feature.tolist() == turned.tolist()
    assert mask is not None
    assert mask.tolist() == MASK.T.tolist()


def test_metadata_is_json_in_utf_8_with_sorted_keys(store: NpyTreeStore, tmp_path: Path) -> None:
    store.write("a/b", result(source="\udcff.png"))
    text = (tmp_path / "a/b.json").read_bytes()
    assert text == (
        b'{\n "encoder": "fake:mean",\n "format": 1,\n "key": "a/b",\n "notes": [\n  "\\u00f6"\n ],'
        b'\n "source": "\\udcff.png"\n}\n'
    )
    assert store.read("a/b")[2] == {**META, "source": "\udcff.png"}


# ---- order, replacing, removing


def watch(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[str]:
    """What happens to files below `root`, in order."""
    steps: list[str] = []
    rename, unlink = os.rename, os.unlink

    def watched_rename(source: str, target: str) -> None:
        assert Path(source).parent == Path(target).parent
        assert is_temporary(Path(source).name, "all")
        np_or_json = Path(source).read_bytes()  # closed and whole before it has its name
        assert np_or_json[-1:] == b"\n" or np_or_json[:6] == b"\x93NUMPY"
        rename(source, target)
        steps.append("+" + str(Path(target).relative_to(root)))

    def watched_unlink(path: str) -> None:
        unlink(path)
        steps.append("-" + str(Path(path).relative_to(root)))

    monkeypatch.setattr(os, "rename", watched_rename)
    monkeypatch.setattr(os, "unlink", watched_unlink)
    return steps


def test_files_get_their_names_in_the_order_mask_metadata_feature(
    store: NpyTreeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = watch(monkeypatch, tmp_path)
    store.write("a/b", result())
    assert steps == ["+a/b_mask.npy", "+a/b.json", "+a/b.npy"]
    assert sorted(tree(tmp_path)) == ["a/b.json", "a/b.npy", "a/b_mask.npy"]


def test_a_result_that_is_replaced_loses_its_feature_file_first(
    store: NpyTreeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a/b", result())
    steps = watch(monkeypatch, tmp_path)
    store.write("a/b", result(feature=MAP + 1))
    assert steps == ["-a/b.npy", "+a/b_mask.npy", "+a/b.json", "+a/b.npy"]
    assert store.read("a/b")[0].tolist() == (MAP + 1).tolist()


def test_a_result_that_is_removed_loses_its_feature_file_first(
    store: NpyTreeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a/b", result())
    steps = watch(monkeypatch, tmp_path)
    store.remove("a/b")
    store.remove("a/b")
    store.remove("never/there")
    assert steps == ["-a/b.npy", "-a/b.json", "-a/b_mask.npy"]


def test_a_store_without_masks_writes_none_that_it_is_given(tmp_path: Path) -> None:
    NpyTreeStore(str(tmp_path), mask=False).write("a", result("a"))
    assert sorted(tree(tmp_path)) == ["a.npy"]


def test_metadata_can_be_written_alone_and_only_inside_the_output(
    store: NpyTreeStore, tmp_path: Path
) -> None:
    assert list(store.write_meta("a/b", META)) == ["a/b.json"]
    with pytest.raises(ImageError, match="its key names no place in the output"):
        store.write_meta("../b", META)
    assert sorted(tree(tmp_path)) == ["a/b.json"]


def test_names_that_are_taken_are_told_with_the_feature_file_last(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert NpyTreeStore(root).files("a/b") == ("a/b_mask.npy", "a/b.npy")
    assert NpyTreeStore(root, mask=False).files("a/b") == ("a/b_mask.npy", "a/b.npy")
    assert NpyTreeStore(root, meta=True).files("a") == ("a_mask.npy", "a.json", "a.npy")


# ---- annotations that are not ours


@pytest.mark.parametrize(
    "annotation",
    [b'{"shapes": []}', b'{"key": "a/b", "caption": "x"}', b"[1]", b"\xff", b"", b"[" * 100_000],
)
def test_a_json_file_that_featprep_did_not_write_is_neither_replaced_nor_removed(
    store: NpyTreeStore, tmp_path: Path, annotation: bytes
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.json").write_bytes(annotation)
    with pytest.raises(ImageError) as caught:
        store.write("a/b", result())
    assert str(caught.value) == "b.json is there and not featprep's: use another --output"
    assert caught.value.stage == "store"
    assert not store.done("a/b")
    store.remove("a/b")
    assert tree(tmp_path) == {"a/b.json": annotation}


def test_metadata_of_another_key_is_not_ours(store: NpyTreeStore) -> None:
    store.write("a/b", result())
    assert store.own_meta("a/b") == META
    os.rename(store.path("a/b.json"), store.path("a/c.json"))
    assert store.own_meta("a/c") is None
    assert store.own_meta("a/b") is None


# ---- failing writes


def failing(
    monkeypatch: pytest.MonkeyPatch, number: int, when: Callable[[bytes], bool]
) -> list[int]:
    """os.write that fails with errno `number` once `when` says so, after half of the data."""
    real, lengths = os.write, []

    def write(descriptor: int, data: bytes) -> int:
        lengths.append(len(data))
        if when(bytes(data)):
            real(descriptor, bytes(data)[: len(data) // 2])
            raise OSError(number, os.strerror(number))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    return lengths


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_full_disk_stops_the_run_and_leaves_the_old_result_gone_and_no_temporary(
    store: NpyTreeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store.write("a/b", result())
    failing(monkeypatch, number, lambda data: data == MAP.tobytes())
    with pytest.raises(OutputError) as caught:
        store.write("a/b", result())
    assert str(caught.value) == (
        f"cannot write {tmp_path}/a/b.npy: {os.strerror(number)}. Free space or mend the folder's "
        "permissions; the same command goes on from here"
    )
    assert caught.value.exit_code == 4
    assert sorted(tree(tmp_path)) == ["a/b.json", "a/b_mask.npy"]
    assert list(store.keys()) == []


def test_a_first_write_that_fails_leaves_nothing(
    store: NpyTreeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, errno.ENOSPC, lambda data: True)
    with pytest.raises(OutputError):
        store.write("a/b", result())
    assert tree(tmp_path) == {}


def test_a_real_limit_on_file_size_stops_the_run(store: NpyTreeStore, tmp_path: Path) -> None:
    big = np.zeros((64, 32, 32), np.float32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python itself sets it
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"b\.npy: File too large\."):
            store.write("a/b", result(feature=big))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert sorted(tree(tmp_path)) == ["a/b.json", "a/b_mask.npy"]


def test_a_write_that_stops_short_is_taken_up_where_it_stopped(
    store: NpyTreeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:5]))
    store.write("a/b", result())
    monkeypatch.setattr(os, "write", real)
    assert store.read("a/b")[0].tolist() == MAP.tolist()


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_whatever_interrupts_a_write_leaves_no_temporary(
    store: NpyTreeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(descriptor: int, data: bytes) -> int:
        raise error

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(error):
        store.write("a/b", result())
    assert tree(tmp_path) == {}


def test_a_name_too_long_is_that_images_failure(store: NpyTreeStore, tmp_path: Path) -> None:
    key = "a/" + "x" * 250
    with pytest.raises(ImageError) as caught:
        store.write(key, result(key))
    assert caught.value.stage == "store"
    assert str(caught.value) == f"{'x' * 250}_mask.npy cannot be written: File name too long"
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("foreign", "reason"),
    [
        ("a", "b_mask.npy cannot be written: Not a directory"),
        ("a/b.npy/", "b.npy cannot be written: Is a directory"),
        ("a/b_mask.npy/", "b_mask.npy cannot be written: Is a directory"),
    ],
)
def test_a_file_where_a_folder_must_be_is_that_images_failure_and_the_other_way_round(
    store: NpyTreeStore, tmp_path: Path, foreign: str, reason: str
) -> None:
    if foreign.endswith("/"):
        (tmp_path / foreign).mkdir(parents=True)
    else:
        (tmp_path / foreign).touch()
    with pytest.raises(ImageError) as caught:
        store.write("a/b", result())
    assert str(caught.value) == reason
    store.remove("a/b")
    assert (tmp_path / foreign).exists()
    assert not [name for name in tree(tmp_path) if ".fp-" in name]


def test_a_name_with_escapes_is_shown_safely(store: NpyTreeStore) -> None:
    key = "\x1b[2J" + "x" * 250
    with pytest.raises(ImageError) as caught:
        store.write(key, result(key))
    assert str(caught.value).startswith("\\x1b[2Jxxx")


# ---- nothing leads out of the output


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", ".featprep/run", ".FEATPREP/x", "", "a//b", "/etc/x", "a\0b"]
)
def test_a_key_that_names_no_place_in_the_output_is_refused(
    tmp_path: Path, key: str, store: NpyTreeStore
) -> None:
    outside = {"x.npy": b"theirs", "out/.featprep/run.json": b"{}"}
    store = NpyTreeStore(str(tmp_path / "out"), meta=True)
    for name, data in outside.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError) as caught:
        store.write(key, result(key))
    assert str(caught.value) == "its key names no place in the output; rename the image"
    store.remove(key)
    assert not store.done(key)
    with pytest.raises(KeyError):
        store.read(key)
    assert tree(tmp_path) == outside


def test_a_linked_folder_that_leads_out_of_the_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.npy").write_bytes(b"theirs")
    (tmp_path / "elsewhere/.fp-all-0.tmp").write_bytes(b"theirs")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").symlink_to("../elsewhere")
    store = NpyTreeStore(str(tmp_path / "out"))
    for key in ("a/b", "a/c/d"):
        with pytest.raises(ImageError) as caught:
            store.write(key, result(key))
        assert str(caught.value) == "a link in the output leads outside it; remove the link"
        store.remove(key)
    store.list_folder("a", sweep=True)
    assert (tmp_path / "elsewhere/b.npy").read_bytes() == b"theirs"
    assert sorted(os.listdir(tmp_path / "elsewhere")) == [".fp-all-0.tmp", "b.npy"]


def test_links_within_the_output_and_an_output_that_is_a_link_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real/x").mkdir(parents=True)
    (tmp_path / "real/y").symlink_to("x")
    (tmp_path / "out").symlink_to("real")
    store = NpyTreeStore(str(tmp_path / "out"))
    store.write("y/b", result("y/b"))
    assert (tmp_path / "real/x/b.npy").exists()


def test_a_linked_file_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "out").mkdir()
    for name in ("b.npy", "b_mask.npy"):
        (tmp_path / "out" / name).symlink_to("../theirs")
    NpyTreeStore(str(tmp_path / "out")).write("b", result("b"))
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert not (tmp_path / "out/b.npy").is_symlink()


def test_a_million_folders_are_not_remembered(tmp_path: Path) -> None:
    store = NpyTreeStore(str(tmp_path))
    for number in range(2500):
        store.remove(f"{number}/x")
    assert len(store._inside) <= 1000


# ---- temporary files


def test_temporaries_of_this_shard_are_swept_and_those_of_others_left(tmp_path: Path) -> None:
    names = [".fp-1-of-8-ab.tmp", ".fp-1-of-80-ab.tmp", ".fp-2-of-8-ab.tmp", ".fp-all-ab.tmp"]
    others = ["x.tmp", ".fp-x", "a.npy"]
    (tmp_path / "s").mkdir()
    for name in names + others:
        (tmp_path / "s" / name).touch()
    shard = NpyTreeStore(str(tmp_path), tag="1-of-8")
    assert shard.list_folder("s") == {*names, *others}
    assert sorted(os.listdir(tmp_path / "s")) == sorted(names + others)
    shard.list_folder("s", sweep=True)
    assert sorted(os.listdir(tmp_path / "s")) == sorted(names[1:] + others)
    NpyTreeStore(str(tmp_path)).list_folder("s", sweep=True)
    assert sorted(os.listdir(tmp_path / "s")) == sorted(others)
    assert shard.list_folder("nowhere", sweep=True) == set()


def test_a_folder_is_swept_by_name_alone(tmp_path: Path) -> None:
    for name in (".fp-2-of-2-a.tmp", ".fp-1-of-2-a.tmp", "x"):
        (tmp_path / name).touch()
    sweep(str(tmp_path), "1-of-2")
    assert sorted(os.listdir(tmp_path)) == [".fp-2-of-2-a.tmp", "x"]
    sweep(str(tmp_path / "nowhere"), "all")


def test_a_temporary_bears_the_tag_of_its_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (seen.append(Path(a).name), rename(a, b)))
    NpyTreeStore(str(tmp_path), tag="3-of-8", mask=False).write("a", result("a"))
    (name,) = seen
    assert len(name) == len(".fp-3-of-8-XXXXXXXXXXXX.tmp")
    assert is_temporary(name, "3-of-8")


def test_write_whole_translates_what_the_system_says(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught:
        write_whole(f"{tmp_path}/file/x.json", [b"{}"])
    assert str(caught.value) == (
        f"cannot write {tmp_path}/file/x.json: Not a directory. Free space or mend the folder's "
        "permissions; the same command goes on from here"
    )


def test_write_whole_takes_its_parts_one_at_a_time(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        for number in range(3):
            yield b"%d\n" % number

    written = write_whole(f"{tmp_path}/x/y", parts())
    assert (tmp_path / "x/y").read_bytes() == b"0\n1\n2\n"
    assert written == (xxhash.xxh3_128_hexdigest(b"0\n1\n2\n"), 6)


# ---- keys


def test_keys_come_by_bytes_and_the_ledgers_folder_is_passed_over(store: NpyTreeStore) -> None:
    keys = ["B", "a-", "b", "é", "\udcff", "a/a", "a/z", "a-/x", ".h/x", "z/.featprep/y"]
    for key in reversed(keys):
        store.write(key, result(key))
    os.makedirs(f"{store.root}/.featprep/deep")
    np.save(f"{store.root}/.featprep/deep/x.npy", MAP)
    np.save(f"{store.root}/._b.npy", MAP)  # as macOS leaves them, though without an array in it
    expected = ["B", "a-", "b", "é", "\udcff", ".h/x", "a/a", "a/z", "a-/x", "z/.featprep/y"]
    assert list(store.keys()) == expected


@pytest.mark.parametrize("key", ["a\nb", "'\"", "-rf", "\udcff/\udc80", "😀", " ", "a.b", "x.npy"])
def test_odd_keys_are_keys_like_others(store: NpyTreeStore, key: str) -> None:
    written = store.write(key, result(key))
    assert list(written) == [f"{key}_mask.npy", f"{key}.json", f"{key}.npy"]
    assert list(store.keys()) == [key]
    assert store.read(key)[2] == {**META, "key": key}


def test_a_mask_beside_its_map_is_no_key(store: NpyTreeStore) -> None:
    store.write("x", result("x"))
    assert list(store.keys()) == ["x"]
    assert not store.done("x_mask")
    with pytest.raises(KeyError):
        store.read("x_mask")


def test_what_stands_where_a_mask_would_is_a_mask_beside_a_map_and_a_key_alone(
    store: NpyTreeStore, tmp_path: Path
) -> None:
    """Also if it looks like a map, or cannot be read: a reader of the key is then told why."""
    store.write("x", result("x"))
    for content in ((tmp_path / "x.npy").read_bytes(), b"damaged"):
        (tmp_path / "x_mask.npy").write_bytes(content)
        assert list(store.keys()) == ["x"]
        (tmp_path / "x.npy").rename(tmp_path / "x")
        assert list(store.keys()) == ["x_mask"]
        (tmp_path / "x").rename(tmp_path / "x.npy")


def test_the_map_of_an_image_called_like_a_mask_is_a_key_if_it_stands_alone(
    store: NpyTreeStore,
) -> None:
    store.write("x_mask", result("x_mask"))
    assert list(store.keys()) == ["x_mask"]
    assert store.done("x_mask")
    assert store.read("x_mask")[0].tolist() == MAP.tolist()


def test_a_mask_that_a_killed_run_left_alone_is_no_key(store: NpyTreeStore, tmp_path: Path) -> None:
    store.write("x", result("x"))
    (tmp_path / "x.npy").unlink()
    assert list(store.keys()) == []
    assert not store.done("x_mask")


# ---- what is read may be damaged


def saved_npy(array: AnyArray, tmp_path: Path) -> bytes:
    np.save(tmp_path / "whole.npy", array)
    return (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: b"PK\x03\x04" + data,
        lambda data: b"\x80\x04N.",
        lambda data: data.replace(b"'<f4'", b"'|O8'"),
        lambda data: data.replace(b"(2, 3, 4)", b"(2, 3, -)"),
        lambda data: data.replace(b"(2, 3, 4)", b"(9**9**9)"),
        lambda data: data.replace(b"{", b"("),
    ],
)
def test_a_damaged_array_is_a_value_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(damage(saved_npy(MAP, tmp_path)))
    with pytest.raises(ValueError, match=r"x\.npy is no whole \.npy file"):
        read_array(str(path))


@given(data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes_are_an_array_or_a_value_error(data: st.DataObject, tmp_path: Path) -> None:
    raw = bytearray(saved_npy(MAP, tmp_path))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.npy"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(ValueError):
        read_array(str(path))


@given(key=st.text(st.characters(codec=None), max_size=12))
@example(key="a/b_mask")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_key_is_written_whole_or_refused(key: str, tmp_path_factory: Any) -> None:
    root = tmp_path_factory.mktemp("out")
    store = NpyTreeStore(str(root / "o"))
    try:
        os.fsencode(key)
    except UnicodeEncodeError:
        return  # no path and no line of a list is spelled so
    try:
        store.write(key, result(key))
    except ImageError:
        assert not (root / "o").exists() or tree(root) == {}
    else:
        is_of_macos = key.rpartition("/")[2].startswith("._")
        assert list(store.keys()) == [key] * (not is_of_macos)
    assert set(os.listdir(root)) <= {"o"}


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, '\\o'), }",  # Python warns
        b"{'descr': '|S4', 'fortran_order': False, 'shape': (2, 3), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)*9**9**9, }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (0x2for, 3), }",
    ],
)
def test_only_plain_headers_are_parsed_at_all(tmp_path: Path, header: bytes) -> None:
    length = len(header) + 1
    raw = b"\x93NUMPY\1\0" + length.to_bytes(2, "little") + header + b"\n" + bytes(24)
    (tmp_path / "x.npy").write_bytes(raw)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("prefix.npy", raw)
    why = "its header is damaged or of another kind than featprep writes"
    with pytest.raises(ValueError, match=rf"x\.npy is no whole \.npy file: {why}"):
        read_array(str(tmp_path / "x.npy"))
    with pytest.raises(ValueError, match=rf"x\.npz is no whole \.npz file: {why}"):
        read_npz(str(tmp_path / "x.npz"))


def test_vectors_come_back_as_they_were_written_and_cannot_grow_beyond_their_file(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "x.npz")
    arrays = {"prefix": MAP[:, :, 0], "pooled": np.zeros(0, np.float16), "empty": np.bool_(True)}
    Path(path).write_bytes(b"".join(npz(arrays)))
    with np.load(path, allow_pickle=False) as loaded:
        assert {name: loaded[name].tolist() for name in loaded.files} == {
            name: np.asarray(array).tolist() for name, array in arrays.items()
        }
    read = read_npz(path)
    assert list(read) == list(arrays)
    for name, array in read.items():
        assert array.dtype == np.asarray(arrays[name]).dtype
        assert array.tolist() == np.asarray(arrays[name]).tolist()
    np.savez_compressed(path, prefix=np.zeros((1 << 20,)))
    with pytest.raises(ValueError, match=r"x\.npz is no whole \.npz file: it is compressed, and"):
        read_npz(path)
    claims = npy(np.zeros((2, 3), np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"".join(claims).replace(b"(2, 3)", b"(2,99)"))
    with pytest.raises(ValueError, match="an array in it is not as long as its header says"):
        read_npz(path)


def test_a_zip_whose_offsets_lead_before_its_start_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    raw = bytearray(b"".join(npz({"prefix": MAP})))
    end = raw.rfind(b"PK\5\6")
    raw[end + 16 : end + 20] = (2**20).to_bytes(4, "little")  # where its directory begins
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x\.npz is no whole \.npz file"):
        read_npz(str(path))


def test_metadata_of_a_thousand_brackets_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"x\.json holds no JSON object"):
        read_json(str(path))


def test_metadata_that_is_no_object_is_a_value_error(store: NpyTreeStore, tmp_path: Path) -> None:
    store.write("a/b", result())
    (tmp_path / "a/b.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"b\.json holds no JSON object"):
        store.read("a/b")
