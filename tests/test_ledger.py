"""What a run is and has done: identity, resume, refusal, clearing, failures, kills between."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from featprep import ledger as module
from featprep.errors import LockError, OutputError, UsageError
from featprep.ledger import Ledger, LedgerOptions, RunIdentity, folder_of, read_run, tag_of
from featprep.naming import is_in_shard
from featprep.records import Failure, ImageRef

ROOT = Path(__file__).resolve().parent.parent
FINGERPRINT = {
    "format": 1,
    "encoder": "fake:mean",
    "weights": "a" * 64,
    "size": [32, 32],
    "mask_dir": None,
    "alpha_threshold": 0.0,
}


class Killed(BaseException):
    """Stands for SIGKILL at a chosen place: nothing of ours catches it and goes on."""


class Output:
    """One output folder and runs over it; `cleared` has the keys that --overwrite removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cleared: list[str] = []
        self.told: list[int] = []
        self.older: list[Mapping[str, Any]] = []
        self.die_after: int | None = None

    @property
    def folder(self) -> Path:
        return self.path / ".featprep"

    def clear(self, count: int, keys: Iterator[str], older: list[Mapping[str, Any]]) -> None:
        self.told.append(count)
        self.older = older
        assert self.run()["clearing"] == (older or True)  # run.json first, then the results
        for number, key in enumerate(keys):
            if number == self.die_after:
                raise Killed
            self.cleared.append(key)

    def open(
        self, fingerprint: Mapping[str, Any] = FINGERPRINT, input: str = "/in", **options: Any
    ) -> Ledger:
        identity = RunIdentity(fingerprint, input, {"device": "cpu", "batch_size": 4})
        return Ledger(str(self.path), identity, LedgerOptions(**options), self.clear)

    def refusal(self, *args: Any, **options: Any) -> str:
        with pytest.raises(UsageError) as caught, self.open(*args, **options):
            pass
        return str(caught.value)

    def run(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text())

    def lines(self, name: str) -> list[str]:
        """Keys in a file of the ledger, in order."""
        path = self.folder / name
        return [json.loads(line)["key"] for line in path.read_text().splitlines()]

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def tree(self) -> dict[str, tuple[bytes, int]]:
        files = [path for path in self.path.rglob("*") if path.is_file()]
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "out")


def ref(key: str, size: int = 7, mtime_ns: int = 9) -> ImageRef:
    return ImageRef(key, f"{key}.png", f"/in/{key}.png", size, mtime_ns)


def line(key: str, **changes: Any) -> dict[str, Any]:
    whole = {
        "key": key,
        "source": f"{key}.png",
        "size": 7,
        "mtime_ns": 9,
        "sha256": "0" * 64,
        "shape": [3, 4, 4],
        "dtype": "float32",
        "files": {f"{key}.npy": "0" * 32},
        "notes": [],
    }
    return {**whole, **changes}


def failure(key: str, reason: str = "broken") -> Failure:
    return Failure(key, f"{key}.png", "decode", reason)


# ---- identity


def test_a_run_writes_what_it_is_before_anything_else(output: Output) -> None:
    with output.open():
        assert output.names() == ["guard", "lock-all", "run.json"]
        assert output.run() == {
            "fingerprint": FINGERPRINT,
            "input": "/in",
            "about": {"device": "cpu", "batch_size": 4},
        }
    assert output.names() == ["guard", "run.json"]


def test_the_same_fingerprint_resumes(output: Output) -> None:
    with output.open() as ledger:
        ledger.record([line("a"), line("é\udcff")])
    with output.open() as ledger:
        assert ledger.state(ref("a"), has_feature=True) == "done"
        assert ledger.state(ref("é\udcff"), has_feature=True) == "done"
        assert ledger.line("a") == line("a")
    assert output.cleared == []


def test_a_tuple_is_no_other_setting_than_the_list_that_json_made_of_it(output: Output) -> None:
    with output.open({**FINGERPRINT, "size": (32, 32)}):
        pass
    with output.open({**FINGERPRINT, "size": (32, 32)}):
        pass


def test_another_fingerprint_is_refused_with_the_flags_that_differ_and_nothing_touched(
    output: Output,
) -> None:
    with output.open({**FINGERPRINT, "dropped": True}) as ledger:
        ledger.record([line("a")])
        ledger.fail(failure("b"))
    before = output.tree()
    other = {
        **FINGERPRINT,
        "encoder": "fake:\x1b[2J",
        "weights": "b" * 64,
        "size": [64, 64],
        "mask_dir": "/masks",
        "added": 1.5,
    }
    assert output.refusal(other) == (
        f"{output.path} holds features of other settings: --model fake:mean there, --model "
        "fake:\\x1b[2J asked; no --mask_dir there, --mask_dir /masks asked. Nothing was touched: "
        "to go on with what is there give --model fake:mean and no --mask_dir, else use another "
        "--output, or --overwrite to replace them"
    )
    assert output.tree() == before


def test_other_images_are_refused_and_nothing_touched(output: Output) -> None:
    with output.open():
        pass
    before = output.tree()
    assert output.refusal(input="/elsewhere") == (
        f"{output.path} holds features of the images in /in, not of /elsewhere: use another "
        "--output, --moved if the images moved, or --overwrite to replace them"
    )
    assert output.tree() == before


def test_images_that_moved_are_accepted_and_remembered(output: Output) -> None:
    with output.open() as ledger:
        ledger.record([line("a")])
    with output.open(input="/elsewhere", moved=True) as ledger:
        assert ledger.state(ref("a"), has_feature=True) == "done"
    assert output.run()["input"] == "/elsewhere"
    with output.open(input="/elsewhere"):
        pass
    assert output.cleared == []


def test_files_without_a_record_of_the_run_that_made_them_are_refused_untouched(
    output: Output,
) -> None:
    output.path.mkdir()
    assert output.refusal(taken=1200) == (
        f"{output.path} holds files where 1,200 results would go, and no record of the run that "
        "made them (.featprep/run.json). Nothing was touched: use another --output, or --overwrite "
        "to replace them"
    )
    assert os.listdir(output.path) == []


def test_overwrite_clears_files_without_a_record_at_once_and_not_one_by_one(
    output: Output,
) -> None:
    """Else a run killed half way would find the others under its own run.json and adopt them."""
    with output.open(taken=1200, overwrite=True):
        pass
    assert output.told == [1200]
    assert "clearing" not in output.run()


def test_files_that_stand_are_no_matter_once_there_is_a_record(output: Output) -> None:
    with output.open():
        pass
    with output.open(taken=1200):
        pass
    assert output.told == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"fingerprint": []}',
        '{"fingerprint": {}, "about": []}',
        '{"fingerprint": {}, "input": 3}',
        "\ud800",
        "[" * 100_000,
    ],
)
def test_a_damaged_run_json_is_refused_and_never_guessed(output: Output, content: str) -> None:
    output.folder.mkdir(parents=True)
    (output.folder / "run.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    for overwrite in (False, True):
        assert output.refusal(overwrite=overwrite) == (
            f"{output.folder}/run.json is damaged: use another --output, or remove that file "
            "together with the results"
        )
    assert output.names() == ["run.json"]


def test_an_output_that_is_a_file_is_a_usage_error(output: Output) -> None:
    output.path.touch()
    assert output.refusal() == f"--output {output.path}: not a folder; give a folder"
    assert read_run(str(output.path.parent)) is None


def test_a_run_json_that_cannot_be_read_is_an_output_error(output: Output) -> None:
    (output.folder / "run.json").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot read .*/run\.json: Is a directory"):
        read_run(str(output.path))


@pytest.mark.parametrize(("shard", "tag"), [(None, "all"), ((3, 8), "3-of-8")])
def test_files_of_a_shard_bear_its_tag(
    output: Output, shard: tuple[int, int] | None, tag: str
) -> None:
    assert tag_of(shard) == tag
    assert folder_of("out") == os.path.join("out", ".featprep")
    ledger = output.open(shard=shard)
    assert os.path.basename(ledger.results_path) == f"results-{tag}.jsonl"
    expected = "failures.jsonl" if shard is None else f"failures-{tag}.jsonl"
    assert os.path.basename(ledger.failures_path) == expected


# ---- states


@pytest.mark.parametrize(
    ("recorded", "has_feature", "state"),
    [
        (None, False, "missing"),
        (line("a"), False, "missing"),
        (None, True, "unrecorded"),
        (line("a"), True, "done"),
        (line("a", size=8), True, "changed"),
        (line("a", mtime_ns=10), True, "changed"),
        (line("a", source="a.jpg"), True, "changed"),
        (line("a", files=None), True, "unrecorded"),
        (line("a", shape="x"), True, "unrecorded"),
        (line("a", notes=None), True, "unrecorded"),
        (line("a", sha256=1), True, "unrecorded"),
        (line("a", dtype=None), True, "unrecorded"),
        ({"key": "a"}, True, "unrecorded"),
        (line("b"), True, "unrecorded"),
    ],
)
def test_what_is_known_of_an_image(
    output: Output, recorded: dict[str, Any] | None, has_feature: bool, state: str
) -> None:
    with output.open() as ledger:
        ledger.record([recorded] if recorded else [])
        assert ledger.state(ref("a"), has_feature) == state
    with output.open() as ledger:
        assert ledger.state(ref("a"), has_feature) == state


def test_the_latest_record_counts_also_when_whole_runs_and_shards_take_turns(
    output: Output,
) -> None:
    """`all` records a, a shard records it again, `all` records b: its file is then the newest."""
    hour = iter(range(1, 9))

    def record(shard: tuple[int, int] | None, *lines: dict[str, Any]) -> None:
        with output.open(shard=shard) as ledger:
            ledger.record(lines)
        os.utime(ledger.results_path, (next(hour) * 3600,) * 2)

    shard = (1 if is_in_shard("a", (1, 2)) else 2, 2)
    record(None, line("a", notes=["first"]), line("c"))
    record(shard, line("a", notes=["second"]))
    record(None, line("b"))
    for again in (None, shard, None):
        with output.open(shard=again) as ledger:
            assert ledger.line("a") == line("a", notes=["second"])
    assert output.lines("results-all.jsonl") == ["a", "c", "a", "b"]


def test_a_record_that_was_taken_back_holds_no_more_until_the_next(output: Output) -> None:
    with output.open() as ledger:
        ledger.record([line("a")])
        ledger.forget("a")
        assert ledger.state(ref("a"), has_feature=True) == "unrecorded"
        assert ledger.line("a") is None
    with output.open() as ledger:
        assert ledger.state(ref("a"), has_feature=True) == "unrecorded"
        ledger.record([line("a", size=8)])
        assert ledger.line("a") == line("a", size=8)


def test_results_of_another_split_count_and_those_of_sister_shards_are_not_read(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard, key in ((None, "a"), ((1, 2), "b"), ((1, 3), "c"), ((2, 3), "d")):
        with output.open(shard=shard) as ledger:
            ledger.record([line(key)])
    read: list[str] = []
    parsed = module.LineIndex._put
    monkeypatch.setattr(
        module.LineIndex,
        "_put",
        lambda self, rows: parsed(self, (read.append(row[0]) or row for row in rows)),
    )
    with output.open(shard=(2, 3)):
        assert sorted(set(read)) == ["a", "b", "d"]
    read.clear()
    with output.open():
        assert sorted(set(read)) == ["a", "b", "c", "d"]


def test_two_threads_record_and_fail_without_tearing_lines(output: Output) -> None:
    def record(ledger: Ledger, name: str) -> None:
        for number in range(100):
            ledger.record([line(f"{name}{number}")])
            ledger.fail(failure(f"{name}-{number}"))

    with output.open() as ledger:
        threads = [threading.Thread(target=record, args=(ledger, name)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = sorted(f"{name}{number}" for name in "ab" for number in range(100))
    assert sorted(output.lines("results-all.jsonl")) == expected
    assert len(output.lines("failures.jsonl")) == 200


# ---- overwrite


OTHER = {**FINGERPRINT, "size": [64, 64]}


def test_overwrite_with_other_settings_tells_the_count_and_removes_what_is_recorded(
    output: Output,
) -> None:
    with output.open() as ledger:
        ledger.record([line("b"), line("a")])
        ledger.fail(failure("c"))
    with output.open(shard=(1, 2)) as ledger:
        ledger.record([line("s")])
        ledger.fail(failure("t"))
    with output.open(OTHER, overwrite=True) as ledger:
        assert output.names() == ["guard", "lock-all", "run.json"]
        assert ledger.failures == 0
    assert (output.told, output.cleared) == ([3], ["a", "b", "s"])
    assert output.run()["fingerprint"] == OTHER
    with output.open(OTHER):  # from then on without --overwrite
        pass
    assert output.told == [3]


def test_overwrite_with_the_same_settings_clears_nothing(output: Output) -> None:
    with output.open() as ledger:
        ledger.record([line("a")])
    with output.open(overwrite=True) as ledger:
        assert ledger.line("a") == line("a")
    assert output.told == []


def test_overwrite_with_other_images_clears(output: Output) -> None:
    with output.open() as ledger:
        ledger.record([line("a")])
    with output.open(input="/elsewhere", overwrite=True):
        pass
    assert output.cleared == ["a"]


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_a_run_killed_while_it_clears_is_taken_up_without_overwrite(
    output: Output, survived: int
) -> None:
    with output.open() as ledger:
        ledger.record([line("a"), line("b"), line("c")])
    output.die_after = survived
    with pytest.raises(Killed), output.open(OTHER, overwrite=True):
        pass
    assert output.run()["clearing"] == [FINGERPRINT]  # whose files are to go
    assert output.run()["fingerprint"] == OTHER
    assert "holds features of other settings" in output.refusal()  # the old ones go no more
    output.die_after, output.cleared = None, []
    with output.open(OTHER):
        assert output.names() == ["guard", "lock-all", "run.json"]
    assert output.cleared == ["a", "b", "c"]
    assert output.older == [OTHER, FINGERPRINT]
    assert "clearing" not in output.run()
    with output.open(OTHER):
        pass
    assert output.told == [3, 3, 3][:2]


def test_a_run_killed_before_it_clears_has_removed_nothing(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    with output.open() as ledger:
        ledger.record([line("a")])

    def killed(*args: object) -> None:
        raise Killed

    monkeypatch.setattr(module, "write_whole", killed)
    with pytest.raises(Killed), output.open(OTHER, overwrite=True):
        pass
    monkeypatch.undo()
    with output.open() as ledger:
        assert ledger.line("a") == line("a")
    assert output.told == []


def test_overwrite_is_refused_while_a_shard_of_the_older_run_works(output: Output) -> None:
    with output.open(shard=(1, 2)), pytest.raises(LockError) as caught:
        output.open(OTHER, shard=(2, 2), overwrite=True).__enter__()
    assert str(caught.value) == (
        f"shard 1/2 of the older run still works on {output.path}: stop it before --overwrite "
        "replaces its results"
    )
    assert output.run()["fingerprint"] == FINGERPRINT


SHARD = """
import sys, time
from featprep.ledger import Ledger, LedgerOptions, RunIdentity
shard = (int(sys.argv[2]), int(sys.argv[3]))
told = []
identity = RunIdentity({"size": int(sys.argv[4])}, "/in")
options = LedgerOptions(shard, overwrite=True)
ledger = Ledger(sys.argv[1], identity, options, lambda count, keys, _: told.append(len(list(keys))))
sys.stdin.read()
with ledger:
    time.sleep(0.2)  # all hold their locks together
print(told)
"""


def test_of_shards_that_overwrite_together_one_clears_and_the_others_find_it_done(
    output: Output,
) -> None:
    """As a job array starts: every shard with --overwrite, all at one moment."""
    with output.open({"size": 1}) as ledger:
        ledger.record([line("a"), line("b")])
    shards = [
        subprocess.Popen(
            [sys.executable, "-c", SHARD, str(output.path), str(number), "3", "2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "data-preprocess")},
        )
        for number in (1, 2, 3)
    ]
    for shard in shards:
        assert shard.stdin is not None
        shard.stdin.close()
        shard.stdin = None
    said = [shard.communicate(timeout=30) for shard in shards]
    assert sorted(out for out, _ in said) == ["[2]\n", "[]\n", "[]\n"], said
    assert output.run()["fingerprint"] == {"size": 2}
    assert output.names() == ["guard", "run.json"]


# ---- failures


def test_a_failure_is_written_at_once(output: Output) -> None:
    with output.open() as ledger:
        ledger.fail(failure("b", "broken\n\x1b"))
        text = (output.folder / "failures.jsonl").read_text()
        assert text == (
            '{"key": "b", "source": "b.png", "stage": "decode", "reason": "broken\\n\\u001b"}\n'
        )
        assert ledger.failures == 1


def test_a_success_takes_the_failure_back(output: Output) -> None:
    with output.open() as ledger:
        ledger.fail(failure("a"))
        ledger.fail(failure("b"))
        ledger.is_complete = True
    with output.open() as ledger:
        assert ledger.failures == 2
        ledger.record([line("a")])
        assert ledger.failures == 1
    assert output.lines("failures.jsonl") == ["b"]


def test_a_failure_and_a_success_of_one_run_leave_no_failure(output: Output) -> None:
    with output.open() as ledger:
        ledger.fail(failure("a"))
        ledger.record([line("a")])
        ledger.is_complete = True
    assert output.names() == ["guard", "results-all.jsonl", "run.json"]


def test_a_complete_run_leaves_only_its_own_failures(output: Output) -> None:
    with output.open() as ledger:
        for key in "abc":
            ledger.fail(failure(key))
    with output.open() as ledger:
        ledger.fail(failure("b", "still"))
        ledger.is_complete = True
    assert output.lines("failures.jsonl") == ["b"]
    assert '"reason": "still"' in (output.folder / "failures.jsonl").read_text()


def test_an_incomplete_run_keeps_the_older_failures_each_once(output: Output) -> None:
    for _ in range(2):
        with output.open() as ledger:
            ledger.fail(failure("c"))
            ledger.fail(failure("a"))
    with output.open() as ledger:
        ledger.fail(failure("b"))
    assert output.lines("failures.jsonl") == ["a", "b", "c"]


def test_a_run_that_ends_in_an_error_keeps_every_line_it_wrote(output: Output) -> None:
    def run() -> None:
        with output.open() as ledger:
            ledger.is_complete = True
            ledger.fail(failure("a"))
            raise ZeroDivisionError

    with output.open() as ledger:
        ledger.fail(failure("z"))
    with pytest.raises(ZeroDivisionError):
        run()
    assert output.lines("failures.jsonl") == ["z", "a"]
    assert "lock-all" not in output.names()


def test_a_run_over_everything_gathers_the_failures_of_shards(output: Output) -> None:
    for number in (1, 2):
        with output.open(shard=(number, 2)) as ledger:
            ledger.fail(failure(f"x{number}"))
            ledger.is_complete = True
    assert output.lines("failures-1-of-2.jsonl") == ["x1"]
    with output.open() as ledger:
        ledger.fail(failure("x2"))
        ledger.is_complete = True
    assert [name for name in output.names() if "failures" in name] == ["failures.jsonl"]
    assert output.lines("failures.jsonl") == ["x2"]


def test_a_complete_shard_takes_its_own_out_of_the_files_of_other_splits(output: Output) -> None:
    keys = [str(number) for number in range(20)]
    with output.open() as ledger:
        for key in keys:
            ledger.fail(failure(key))
    with output.open(shard=(1, 2)) as ledger:
        ledger.is_complete = True
    left = [key for key in keys if not module.is_in_shard(key, (1, 2))]
    assert 0 < len(left) < 20
    assert output.lines("failures.jsonl") == sorted(left)


def test_a_shard_leaves_the_file_of_a_living_sister_alone(output: Output) -> None:
    """Rewriting it would lose what she appends meanwhile."""
    with output.open(shard=(1, 2)) as sister:
        sister.fail(failure("a"))
        path = output.folder / "failures-1-of-2.jsonl"
        before = path.stat()
        with output.open(shard=(2, 2)) as ledger:
            ledger.is_complete = True
        assert path.stat() == before


def test_an_incomplete_run_leaves_the_files_of_shards_alone(output: Output) -> None:
    with output.open(shard=(1, 2)) as ledger:
        ledger.fail(failure("a"))
    with output.open():
        pass
    assert output.lines("failures-1-of-2.jsonl") == ["a"]


# ---- ends


def test_the_lock_is_released_when_the_start_is_refused_or_fails(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    with output.open():
        pass
    read, answers = module.read_run, iter([None])
    # Another run wrote its run.json between our look before the lock and our look under it.
    monkeypatch.setattr(module, "read_run", lambda path: next(answers, read(path)))
    assert "other settings" in output.refusal(OTHER)
    assert output.names() == ["guard", "run.json"]


def test_a_second_run_is_refused_before_it_touches_run_json(output: Output) -> None:
    with output.open():
        before = (output.folder / "run.json").stat()
        assert output.refusal() == (
            f"another run works on {output.path}: pid {os.getpid()} on host "
            f"{socket.gethostname()}. Wait for it or stop it"
        )
        assert (output.folder / "run.json").stat() == before


def test_a_run_that_lost_its_lock_records_nothing_more_and_leaves_the_lock(output: Output) -> None:
    ledger = output.open().__enter__()
    ledger.record([line("a")])
    lock = output.folder / "lock-all"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "host": "node7"}))
    ledger.lock._held_at -= 61
    before = output.tree()
    with pytest.raises(LockError, match="held up for longer than its lease"):
        ledger.fail(failure("c"))
    with pytest.raises(LockError) as caught:
        ledger.record([line("d")])
    ledger.__exit__(LockError, caught.value, None)
    assert output.tree() == before


def test_an_output_deleted_while_the_run_goes_on_is_an_output_error_and_stays_deleted(
    output: Output,
) -> None:
    ledger = output.open().__enter__()
    ledger.fail(failure("b"))
    shutil.rmtree(output.path)
    with pytest.raises(OutputError, match=r"results-all\.jsonl: No such file or directory"):
        ledger.record([line("a")])
    ledger.__exit__(None, None, None)
    assert not output.path.exists()


def test_temporary_files_of_killed_runs_are_swept_from_the_ledger(output: Output) -> None:
    output.folder.mkdir(parents=True)
    (output.folder / ".fp-all-0123456789ab.tmp").touch()
    with output.open():
        pass
    assert output.names() == ["guard", "run.json"]


def test_every_file_of_the_ledger_is_made_under_the_tag_of_its_shard(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (seen.append(Path(a).name), rename(a, b)))
    with output.open(shard=(1, 2)) as ledger:
        ledger.fail(failure("a"))
    assert len(seen) == 3  # lock, run.json, failures
    assert all(name.startswith(".fp-1-of-2-") for name in seen)
