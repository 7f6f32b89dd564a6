"""Between store and ledger: what is left to do after any end of an earlier run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import SPEC
from featprep.config import make_config
from featprep.ledger import Ledger, LedgerOptions, RunIdentity
from featprep.recording import Recorder
from featprep.records import AnyArray, Failure, Features, ImageRef, Prepared
from featprep.resolve import resolve
from featprep.sources import Entry
from featprep.standing import Standing, count_done
from featprep.stores.npy_tree import NpyTreeStore

MAP = np.arange(48, dtype=np.float32).reshape(3, 4, 4)
MASK = np.ones((4, 4), np.uint8)
RUN_META = {"format": 1, "encoder": "fake:mean"}


class Bench:
    """An input of files and an output; each `run` is one run's recorder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "in").mkdir()
        self.output = root / "out"
        config = make_config({"input": "in", "output": "out", "model": "tiny", "size": (32, 32)})
        self.resolved = resolve(
            config, SPEC, "float32", lambda height, width, layer=-1: (4, 4), is_plain=False
        )
        self.replaced = 0

    def image(self, key: str, content: str = "pixels", mtime_ns: int = 1_000) -> ImageRef:
        path = self.root / "in" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.utime(path, ns=(mtime_ns, mtime_ns))
        found = path.stat()
        return ImageRef(key, f"{key}.png", str(path), found.st_size, found.st_mtime_ns)

    @contextmanager
    def run(
        self, *, meta: bool = False, mask: bool = True, overwrite: bool = False
    ) -> Iterator[Recorder]:
        store = NpyTreeStore(str(self.output), mask=mask, meta=meta)
        identity = RunIdentity({"size": 32}, str(self.root / "in"))
        with Ledger(
            str(self.output), identity, LedgerOptions(), lambda count, keys, older: None
        ) as ledger:
            recorder = Recorder(store, ledger, RUN_META, self.resolved, overwrite=overwrite)
            recorder.on_replaced = self._count
            yield recorder

    def _count(self) -> None:
        self.replaced += 1

    def encode(self, *refs: ImageRef, **options: Any) -> None:
        """A whole run over these images."""
        with self.run(**options) as recorder:
            for ref in todo(recorder, *refs):
                assert isinstance(ref, ImageRef)
                recorder.write((prepared(ref), Features({0: MAP}), ()))
            recorder.flush()

    def lines(self, name: str = "results-all.jsonl") -> list[dict[str, Any]]:
        path = self.output / ".featprep" / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def record(self, key: str) -> dict[str, Any]:
        return [line for line in self.lines() if line["key"] == key][-1]

    def lose_records(self) -> None:
        """As if the run had been killed between its renames and the append."""
        (self.output / ".featprep/results-all.jsonl").unlink()

    def files(self) -> list[str]:
        found = [path for path in self.output.rglob("*") if path.is_file()]
        names = [str(path.relative_to(self.output)) for path in found]
        return sorted(name for name in names if not name.startswith(".featprep"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def prepared(ref: ImageRef, notes: tuple[str, ...] = ()) -> Prepared:
    sha256 = hashlib.sha256(Path(ref.path).read_bytes()).hexdigest()
    meta = {"source": ref.source, "sha256": sha256, "notes": list(notes)}
    return Prepared(ref, np.zeros((3, 32, 32), np.uint8), MASK, sha256, meta)


def todo(recorder: Recorder, *entries: Entry) -> list[Entry]:
    return list(recorder.todo([list(entries)]))


def save(path: Path, array: AnyArray) -> None:
    np.save(path, array)


# ---- what is written down


def test_a_writer_thread_records_what_it_wrote_itself(bench: Bench) -> None:
    refs = [bench.image("a"), bench.image("b")]
    with bench.run() as recorder, ThreadPoolExecutor(1) as other:
        recorder.write((prepared(refs[0]), Features({0: MAP}), ()))
        other.submit(recorder.write, (prepared(refs[1]), Features({0: MAP}), ())).result()
        other.submit(recorder.flush).result()
        assert [line["key"] for line in bench.lines()] == ["b"]
        recorder.flush()
    assert [line["key"] for line in bench.lines()] == ["b", "a"]


def test_a_finished_image_is_a_line_with_its_source_shape_and_digests(bench: Bench) -> None:
    ref = bench.image("a/b")
    with bench.run(meta=True) as recorder:
        recorder.write((prepared(ref, notes=("grey",)), Features({0: MAP}), ("again", "grey")))
        assert bench.lines() == []  # a batch at a time, after its renames
        recorder.flush()
        recorder.flush()
    (line,) = bench.lines()
    files = line.pop("files")
    assert line.pop("bytes") == {file: (bench.output / file).stat().st_size for file in files}
    assert line == {
        "key": "a/b",
        "source": "a/b.png",
        "size": 6,
        "mtime_ns": 1_000,
        "sha256": hashlib.sha256(b"pixels").hexdigest(),
        "shape": [3, 4, 4],
        "dtype": "float32",
        "notes": ["grey", "again"],
    }
    assert list(files) == ["a/b_mask.npy", "a/b.json", "a/b.npy"]
    meta = json.loads((bench.output / "a/b.json").read_text())
    assert meta == {
        "key": "a/b",
        "source": "a/b.png",
        "sha256": line["sha256"],
        **RUN_META,
        "shape": [3, 4, 4],
        "dtype": "float32",
        "hidden_dim": 3,
        "grid": [4, 4],
        "notes": ["grey", "again"],
    }


def test_what_is_done_is_skipped_and_what_is_new_is_left(bench: Bench) -> None:
    done, new = bench.image("a"), bench.image("b")
    broken = Failure("c", "c.png", "read", "link that leads nowhere")
    bench.encode(done)
    with bench.run() as recorder:
        assert todo(recorder, done, new, broken) == [new, broken]
        assert recorder.skipped == 1
    assert bench.replaced == 0


@pytest.mark.parametrize("change", [{"content": "another size"}, {"mtime_ns": 2_000}])
def test_a_changed_source_is_left_to_do_and_was_counted_as_done_before(
    bench: Bench, change: dict[str, Any]
) -> None:
    bench.encode(bench.image("a"))
    changed = bench.image("a", **change)
    with bench.run() as recorder:
        assert todo(recorder, changed) == [changed]
        assert recorder.skipped == 0
    assert bench.replaced == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "file"),
    [(cut, "a.npy"), (cut, "a_mask.npy"), (Path.unlink, "a_mask.npy")],
    ids=["a map cut short", "a mask cut short", "a mask that is gone"],
)
def test_a_result_that_is_not_as_long_as_it_was_written_is_left_to_do(
    bench: Bench, damage: Callable[[Path], None], file: str
) -> None:
    bench.encode(bench.image("a"), bench.image("b"))
    whole = {name: (bench.output / name).read_bytes() for name in bench.files()}
    damage(bench.output / file)
    refs = [bench.image("a"), bench.image("b")]
    with bench.run() as recorder:
        assert todo(recorder, *refs) == refs[:1]
        assert recorder.skipped == 1
    assert bench.replaced == 1
    bench.encode(*refs)
    assert {name: (bench.output / name).read_bytes() for name in bench.files()} == whole


def test_metadata_that_people_edit_or_remove_is_no_damage(bench: Bench) -> None:
    refs = [bench.image("a"), bench.image("b")]
    bench.encode(*refs, meta=True)
    cut(bench.output / "a.json")
    (bench.output / "b.json").unlink()
    with bench.run() as recorder:
        assert todo(recorder, *refs) == []


def test_a_record_of_an_older_version_without_lengths_counts_as_it_did(bench: Bench) -> None:
    ref = bench.image("a")
    bench.encode(ref)
    line = bench.record("a")
    del line["bytes"]
    path = bench.output / ".featprep/results-all.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with bench.run(meta=True) as recorder:
        assert todo(recorder, ref) == []
        recorder.write_meta(prepared(ref))
    assert "bytes" not in bench.record("a")
    assert list(bench.record("a")["files"]) == ["a_mask.npy", "a.npy", "a.json"]


def test_the_files_of_a_changed_source_go_before_new_ones_come_and_then_its_record(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any step, the next run finds it missing, unrecorded and new, or recorded."""
    bench.encode(bench.image("a"), meta=True)
    changed = bench.image("a", "changed", 2_000)
    steps: list[str] = []
    with bench.run(meta=True) as recorder:
        (ref,) = todo(recorder, changed)
        unlink, rename = os.unlink, os.rename
        monkeypatch.setattr(os, "unlink", lambda p: (unlink(p), steps.append("-" + Path(p).name)))
        monkeypatch.setattr(
            os, "rename", lambda a, b: (rename(a, b), steps.append("+" + Path(b).name))
        )
        forget, record = recorder.ledger.forget, recorder.ledger.record
        monkeypatch.setattr(
            recorder.ledger, "forget", lambda key: (forget(key), steps.append("forgotten"))
        )
        monkeypatch.setattr(
            recorder.ledger, "record", lambda lines: (record(lines), steps.append("recorded"))
        )
        assert isinstance(ref, ImageRef)
        recorder.write((prepared(ref), Features({0: MAP}), ()))
        recorder.flush()
        monkeypatch.undo()
    assert steps == [
        "-a.npy",
        "-a.json",
        "-a_mask.npy",
        "forgotten",
        "+a_mask.npy",
        "+a.json",
        "+a.npy",
        "recorded",
    ]


def test_a_changed_source_that_fails_loses_its_old_result(bench: Bench) -> None:
    bench.encode(bench.image("a"), bench.image("b"), meta=True)
    changed = bench.image("a", "broken", 2_000)
    with bench.run(meta=True) as recorder:
        todo(recorder, changed)
        recorder.fail(Failure("a", "a.png", "decode", "broken"))
        recorder.fail(Failure("b", "b.png", "encode", "no reason to take its result away"))
    assert bench.files() == ["b.json", "b.npy", "b_mask.npy"]
    with bench.run() as recorder:
        assert todo(recorder, changed) == [changed]


def test_a_changed_source_that_was_encoded_keeps_its_new_result(bench: Bench) -> None:
    bench.encode(bench.image("a"))
    changed = bench.image("a", "changed", 2_000)
    with bench.run() as recorder:
        todo(recorder, changed)
        recorder.write((prepared(changed), Features({0: MAP}), ()))
        recorder.flush()
        recorder.fail(Failure("a", "a.png", "store", "of its metadata, say"))
    assert bench.files() == ["a.npy", "a_mask.npy"]


def test_overwrite_leaves_everything_to_do_and_keeps_a_good_result_if_its_image_now_fails(
    bench: Bench,
) -> None:
    """Its map is of this very file; only maps of another, or of unknown ones, have to go."""
    same, changed = bench.image("a"), bench.image("b")
    bench.encode(same, changed)
    changed = bench.image("b", "changed", 2_000)
    with bench.run(overwrite=True) as recorder:
        assert todo(recorder, same, changed) == [same, changed]
        assert recorder.skipped == 0
        for key in "ab":
            recorder.fail(Failure(key, f"{key}.png", "encode", "the device is full"))
    assert bench.files() == ["a.npy", "a_mask.npy"]
    assert bench.replaced == 0


def test_overwrite_adopts_nothing_and_unknown_maps_of_images_that_fail_go(bench: Bench) -> None:
    ref = bench.image("a")
    bench.encode(ref)
    bench.lose_records()
    with bench.run(overwrite=True) as recorder:
        assert todo(recorder, ref) == [ref]
        assert bench.lines() == []
        recorder.fail(Failure("a", "a.png", "encode", "the device is full"))
    assert bench.files() == []


# ---- results whose line was lost


@pytest.mark.parametrize("meta", [False, True])
def test_a_result_without_a_line_is_read_and_recorded_as_it_was(bench: Bench, meta: bool) -> None:
    ref = bench.image("a/b")
    bench.encode(ref, meta=meta)
    before = bench.lines()
    bench.lose_records()
    with bench.run(meta=meta) as recorder:
        assert todo(recorder, ref) == []
        assert recorder.skipped == 1
    assert bench.lines() == before
    assert list(bench.lines()[0]["files"]) == list(before[0]["files"])


def test_a_run_without_masks_asks_for_none(bench: Bench) -> None:
    ref = bench.image("a")
    bench.encode(ref, mask=False)
    before = bench.lines()
    bench.lose_records()
    with bench.run(mask=False) as recorder:
        assert todo(recorder, ref) == []
    assert bench.lines() == before


@pytest.mark.parametrize(
    ("shape", "adopted"),
    [((3, 4, 4), True), ((3, 2, 5), True), ((2, 4, 4), False), ((4, 4), False)],
)
def test_where_grids_differ_from_image_to_image_any_grid_with_its_mask_is_ours(
    bench: Bench, shape: tuple[int, ...], adopted: bool
) -> None:
    geometry = dataclasses.replace(bench.resolved.geometry, grid=None)
    bench.resolved = dataclasses.replace(bench.resolved, geometry=geometry)
    ref = bench.image("a")
    bench.encode(ref)
    bench.lose_records()
    save(bench.output / "a.npy", np.zeros(shape, np.float32))
    save(bench.output / "a_mask.npy", np.zeros(shape[1:], np.uint8))
    with bench.run() as recorder:
        assert todo(recorder, ref) == ([] if adopted else [ref])


def test_notes_of_a_result_without_a_line_come_back_from_its_metadata(bench: Bench) -> None:
    ref = bench.image("a")
    with bench.run(meta=True) as recorder:
        recorder.write((prepared(ref), Features({0: MAP}), ("encoded again",)))
        recorder.flush()
    bench.lose_records()
    with bench.run(meta=True) as recorder:
        assert todo(recorder, ref) == []
    assert bench.record("a")["notes"] == ["encoded again"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: (out / "a.npy").write_bytes(b""),
        lambda out: (out / "a.npy").write_bytes((out / "a.npy").read_bytes()[:-1]),
        lambda out: (out / "a.npy").write_bytes(b"PK\x03\x04"),
        lambda out: save(out / "a.npy", MAP.astype(np.float16)),
        lambda out: save(out / "a.npy", MAP[:2]),
        lambda out: (save(out / "a.npy", MAP[:, :3]), save(out / "a_mask.npy", MASK[:3])),
        lambda out: save(out / "a.npy", MAP[0]),
        lambda out: (out / "a_mask.npy").unlink(),
        lambda out: (out / "a_mask.npy").write_bytes(b""),
        lambda out: save(out / "a_mask.npy", MASK[:2]),
        lambda out: os.utime(out / "a.npy", ns=(0, 0)),
    ],
    ids=[
        "empty",
        "truncated",
        "zip",
        "another type",
        "channels",
        "grid",
        "dimensions",
        "no mask",
        "empty mask",
        "mask of another grid",
        "older than the image",
    ],
)
def test_a_result_without_a_line_that_is_not_whole_or_not_ours_is_encoded_again(
    bench: Bench, damage: Any
) -> None:
    ref = bench.image("a")
    bench.encode(ref)
    bench.lose_records()
    damage(bench.output)
    with bench.run() as recorder:
        assert todo(recorder, ref) == [ref]
        assert bench.lines() == []
        recorder.write((prepared(ref), Features({0: MAP}), ()))
        recorder.flush()
    assert bench.replaced == 1
    assert np.array_equal(np.load(bench.output / "a.npy"), MAP)
    with bench.run() as recorder:
        assert todo(recorder, ref) == []


def test_a_corrupt_result_whose_image_fails_does_not_stay(bench: Bench) -> None:
    ref = bench.image("a")
    bench.encode(ref)
    bench.lose_records()
    (bench.output / "a.npy").write_bytes(b"corrupt")
    with bench.run() as recorder:
        assert todo(recorder, ref) == [ref]
        recorder.fail(Failure("a", "a.png", "decode", "broken"))
    assert bench.files() == []


def test_a_result_of_another_image_than_its_metadata_says_is_encoded_again(bench: Bench) -> None:
    bench.encode(bench.image("a"), meta=True)
    bench.lose_records()
    other = bench.image("a", "others", 1_000)  # put back with its old time
    with bench.run(meta=True) as recorder:
        assert todo(recorder, other) == [other]


def test_annotations_beside_a_result_are_none_of_its_files(bench: Bench) -> None:
    ref = bench.image("a")
    bench.encode(ref)
    bench.lose_records()
    (bench.output / "a.json").write_text('{"shapes": [], "notes": ["theirs"]}')
    with bench.run() as recorder:
        assert todo(recorder, ref) == []
    assert list(bench.record("a")["files"]) == ["a_mask.npy", "a.npy"]
    assert bench.record("a")["notes"] == []


def test_a_result_whose_image_vanished_before_it_was_recorded_is_left_to_fail(
    bench: Bench,
) -> None:
    ref = bench.image("a")
    bench.encode(ref)
    bench.lose_records()
    os.unlink(ref.path)
    with bench.run() as recorder:
        assert todo(recorder, ref) == [ref]


# ---- metadata on a later run


def test_missing_metadata_is_written_from_record_and_source(bench: Bench) -> None:
    refs = [bench.image("a"), bench.image("b"), bench.image("c")]
    bench.encode(refs[0], refs[2])
    bench.encode(refs[1], meta=True)
    os.unlink(bench.output / "c.npy")
    before = bench.record("a")
    with bench.run(meta=True) as recorder:
        assert list(recorder.without_meta([refs])) == [refs[0]]
        recorder.write_meta(prepared(refs[0]))
    after = bench.record("a")
    assert sorted(after["files"]) == ["a.json", "a.npy", "a_mask.npy"]
    assert after["bytes"].keys() == after["files"].keys()
    assert {**after, "files": before["files"], "bytes": before["bytes"]} == before
    text = (bench.output / "a.json").read_text()
    with bench.run(meta=True, overwrite=True) as recorder:
        recorder.write((prepared(refs[0]), Features({0: MAP}), ()))
        recorder.flush()
    assert (bench.output / "a.json").read_text() == text
    assert bench.record("a")["files"] == after["files"]


def test_metadata_of_an_image_that_changed_meanwhile_is_a_failure_of_that_image(
    bench: Bench,
) -> None:
    ref = bench.image("a")
    bench.encode(ref)
    with bench.run(meta=True) as recorder:
        bench.image("a", "others")
        recorder.write_meta(prepared(ref))
    assert bench.files() == ["a.npy", "a_mask.npy"]
    assert [f["reason"] for f in bench.lines("failures.jsonl")] == [
        "changed while the run went on; the next run encodes it again"
    ]


def test_metadata_of_a_result_without_a_record_is_a_failure_of_that_image(bench: Bench) -> None:
    with bench.run(meta=True) as recorder:
        recorder.write_meta(prepared(bench.image("a")))
    assert [f["key"] for f in bench.lines("failures.jsonl")] == ["a"]
    assert bench.files() == []


def test_metadata_that_cannot_be_written_is_a_failure_of_that_image(bench: Bench) -> None:
    ref = bench.image("x" * 251)  # .npy fits into 255 bytes, .json does not
    bench.encode(ref, mask=False)
    with bench.run(meta=True, mask=False) as recorder:
        assert list(recorder.without_meta([[ref]])) == [ref]
        recorder.write_meta(prepared(ref))
    (failure,) = bench.lines("failures.jsonl")
    assert failure["stage"] == "store"
    assert failure["reason"] == "x" * 251 + ".json cannot be written: File name too long"


# ---- what stands


@pytest.mark.parametrize("keys", [["s/a", "s/b", "s/c"], ["s/a", "s/b", "t/c"]])
def test_what_stands_is_counted_in_one_folder_and_in_many(bench: Bench, keys: list[str]) -> None:
    bench.encode(bench.image("s/a"), meta=True)
    store = NpyTreeStore(str(bench.output))
    assert count_done(store, keys) == (1, 1)
    (bench.output / "s/b_mask.npy").touch()
    assert count_done(store, keys) == (1, 2)
    assert count_done(NpyTreeStore(str(bench.root / "nowhere")), keys) == (0, 0)
    assert count_done(store, []) == (0, 0)
    standing = Standing(store, keys)
    assert standing.has("s/a.json")
    assert not standing.has("s/c.npy")


def test_only_a_run_that_holds_the_lock_sweeps_and_every_folder_it_comes_by(bench: Bench) -> None:
    refs = [bench.image("s/a"), bench.image("t/b"), bench.image("c")]
    bench.encode(*refs)
    temporary = [bench.output / f"{folder}/.fp-all-ab.tmp" for folder in ("s", "t", ".")]
    for path in temporary:
        path.touch()
    count_done(NpyTreeStore(str(bench.output)), [ref.key for ref in refs])
    count_done(NpyTreeStore(str(bench.output)), ["s/a"])
    assert all(path.exists() for path in temporary)
    with bench.run() as recorder:
        assert todo(recorder, *refs) == []
    assert not any(path.exists() for path in temporary)
