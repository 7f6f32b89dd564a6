"""One run an output and shard: who is refused, who takes over, and that never two hold it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from featprep import lock as module
from featprep.errors import LockError, OutputError
from featprep.lock import LEASE_S, RunLock

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import os, signal, sys
from featprep.errors import LockError
from featprep.lock import RunLock
try:
    with RunLock(sys.argv[1], sys.argv[2]):
        print("held", flush=True)
        sys.stdin.read()
except LockError as error:
    print(error, flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out/.featprep"


def refusal(lock: RunLock) -> str:
    with pytest.raises(LockError) as caught, lock:
        pass
    return str(caught.value)


def start(folder: Path, tag: str = "all") -> subprocess.Popen[str]:
    """A process of its own that takes the lock and holds it until its stdin closes."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), tag],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "data-preprocess")},
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.communicate(timeout=20)


def leave(folder: Path, tag: str = "all", age_s: float = 0.0, **changes: Any) -> Path:
    """A lock as another run left it, `age_s` after its last renewal."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"lock-{tag}"
    with RunLock(str(folder), tag):
        holder = json.loads(path.read_text())
    path.write_text(json.dumps({**holder, **changes}))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


ELSEWHERE = {"host": "node7", "machine": "another boot", "pid": 4711}


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# ---- holding


def test_a_lock_says_who_holds_it_and_is_gone_afterwards(folder: Path) -> None:
    with RunLock(str(folder), "2-of-8", run="abc") as lock:
        holder = json.loads((folder / "lock-2-of-8").read_text())
        assert holder["host"] == socket.gethostname()
        assert holder["pid"] == os.getpid()
        assert holder["run"] == "abc"
        lock.check()
    assert os.listdir(folder) == ["guard"]


@pytest.mark.skipif(not Path("/proc/self/ns/pid").is_symlink(), reason="needs Linux's /proc")
def test_on_linux_a_lock_says_in_which_boot_and_pid_namespace_its_pid_is_one(folder: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with RunLock(str(folder)):
        holder = json.loads((folder / "lock-all").read_text())
    assert holder["machine"] == f"{boot} {os.readlink('/proc/self/ns/pid')}"


def test_where_there_is_no_proc_holders_are_still_told_from_the_dead(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_text = Path.read_text

    def without_proc(path: Path, *args: Any) -> str:
        if path.parts[1] == "proc":
            raise FileNotFoundError
        return read_text(path, *args)

    monkeypatch.setattr(Path, "read_text", without_proc)
    with RunLock(str(folder)):
        assert f"pid {os.getpid()} on host" in refusal(RunLock(str(folder)))
    leave(folder, pid=dead_pid())
    with RunLock(str(folder)):
        pass
    leave(folder, pid=2**80)
    with RunLock(str(folder)):
        pass


def test_nothing_runs_on_after_the_release(folder: Path) -> None:
    with RunLock(str(folder)):
        assert "lease" in {thread.name for thread in threading.enumerate()}
    wait_until(lambda: "lease" not in {thread.name for thread in threading.enumerate()})


def test_a_second_run_is_refused_with_host_and_pid_of_the_first(folder: Path) -> None:
    process = start(folder)
    assert said(process) == "held"
    assert refusal(RunLock(str(folder))) == (
        f"another run works on {folder.parent}: pid {process.pid} on host {socket.gethostname()}. "
        "Wait for it or stop it"
    )
    end(process)
    with RunLock(str(folder)):
        pass


def test_who_asks_is_refused_by_a_living_holder_alone_and_makes_nothing(folder: Path) -> None:
    RunLock(str(folder)).ask()
    assert not folder.parent.exists()
    process = start(folder)
    assert said(process) == "held"
    with pytest.raises(LockError, match=f"pid {process.pid} on host"):
        RunLock(str(folder)).ask()
    with pytest.raises(LockError, match=f"pid {process.pid} on host"):
        RunLock(str(folder), "1-of-2").ask()
    process.kill()
    process.communicate()
    RunLock(str(folder)).ask()
    assert json.loads((folder / "lock-all").read_text())["pid"] == process.pid


def test_one_process_cannot_hold_a_lock_twice(folder: Path) -> None:
    with RunLock(str(folder)):
        assert f"pid {os.getpid()} on host" in refusal(RunLock(str(folder)))
    assert not (folder / "lock-all").exists()


def test_break_lock_does_not_break_the_lock_of_a_run_that_is_seen_to_live(folder: Path) -> None:
    with RunLock(str(folder)):
        assert "another run works on" in refusal(RunLock(str(folder), break_lock=True))


def test_a_lock_is_released_on_an_error(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(str(folder)):
        raise ZeroDivisionError
    assert os.listdir(folder) == ["guard"]


def test_a_refused_run_leaves_the_holders_files_alone(folder: Path) -> None:
    with RunLock(str(folder)):
        (folder / ".fp-all-beef.tmp").touch()  # as the holder has it a moment before a rename
        before = (folder / "lock-all").read_bytes()
        refusal(RunLock(str(folder)))
        refusal(RunLock(str(folder), "1-of-2"))
        assert sorted(os.listdir(folder)) == [".fp-all-beef.tmp", "guard", "lock-all"]
        assert (folder / "lock-all").read_bytes() == before


def test_a_deleted_output_does_not_come_back_with_the_release(folder: Path) -> None:
    with RunLock(str(folder)):
        for name in os.listdir(folder):
            (folder / name).unlink()
        folder.rmdir()
    assert not folder.exists()


def test_a_lock_that_another_took_over_is_not_removed(folder: Path) -> None:
    with RunLock(str(folder)):
        (folder / "lock-all").write_text("taken")
    assert (folder / "lock-all").read_text() == "taken"


# ---- dead holders on this host


def test_the_lock_of_a_killed_run_is_taken_over(folder: Path) -> None:
    process = start(folder)
    assert said(process) == "held"
    process.kill()
    process.wait()
    assert (folder / "lock-all").exists()
    with RunLock(str(folder)):
        assert json.loads((folder / "lock-all").read_text())["pid"] == os.getpid()
    end(process)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells zombies by /proc")
def test_a_killed_run_that_its_parent_has_not_looked_after_is_dead(folder: Path) -> None:
    process = start(folder)
    assert said(process) == "held"
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table
    with RunLock(str(folder)):
        pass
    end(process)


def test_a_pid_that_another_process_has_by_now_is_dead(folder: Path) -> None:
    leave(folder, started="12")
    with RunLock(str(folder)):
        pass


def test_a_process_of_another_user_that_we_cannot_see_is_alive(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(pid: int, number: int) -> None:
        raise PermissionError

    leave(folder, pid=dead_pid())
    monkeypatch.setattr(os, "kill", hidden)
    assert "another run works on" in refusal(RunLock(str(folder)))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"host": 1}',
        '{"host": "h", "machine": "m", "pid": "1", "started": "1", "run": ""}',
        '{"host": "h", "machine": "m", "pid": -1, "started": "1", "run": ""}',
        "[" * 100_000,
    ],
)
def test_a_lock_that_says_nothing_is_held_by_nobody(folder: Path, content: str) -> None:
    folder.mkdir(parents=True)
    (folder / "lock-all").write_text(content)
    with RunLock(str(folder)):
        pass


# ---- holders elsewhere


def test_a_lease_on_another_host_is_honoured_while_it_is_fresh(folder: Path) -> None:
    leave(folder, age_s=LEASE_S - 20, **ELSEWHERE)
    assert refusal(RunLock(str(folder))) == (
        f"another run works on {folder.parent}: pid 4711 on host node7. Wait for it or stop it; if "
        "that run is known dead: --break_lock"
    )
    assert sorted(os.listdir(folder)) == ["guard", "lock-all"]


def test_a_lease_not_renewed_for_five_minutes_is_taken_over(folder: Path) -> None:
    leave(folder, age_s=LEASE_S + 1, **ELSEWHERE)
    with RunLock(str(folder)):
        assert json.loads((folder / "lock-all").read_text())["pid"] == os.getpid()


def test_break_lock_takes_over_a_fresh_lease(folder: Path) -> None:
    leave(folder, **ELSEWHERE)
    with RunLock(str(folder), break_lock=True):
        pass


def test_a_container_that_shares_the_host_name_is_elsewhere(folder: Path) -> None:
    """Its pids mean nothing here: a pid that does not run says nothing about its life."""
    leave(folder, machine="another pid namespace", pid=dead_pid())
    assert refusal(RunLock(str(folder))).endswith("if that run is known dead: --break_lock")


def test_a_host_name_with_escapes_is_shown_safely(folder: Path) -> None:
    leave(folder, **{**ELSEWHERE, "host": "\x1b[2J"})
    assert "on host \\x1b[2J." in refusal(RunLock(str(folder)))


def test_the_lease_is_renewed_while_the_run_lasts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.01)
    with RunLock(str(folder)):
        os.utime(folder / "lock-all", (0, 0))
        wait_until(lambda: (folder / "lock-all").stat().st_mtime > 1000)


def test_the_lease_of_whoever_took_over_is_not_renewed_for_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.01)
    with RunLock(str(folder)):
        (folder / "lock-all").write_text("taken")
        os.utime(folder / "lock-all", (0, 0))
        time.sleep(0.1)
        assert (folder / "lock-all").stat().st_mtime == 0


def wait_until(holds: Any, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_run_that_slept_through_its_lease_finds_out_before_it_writes(folder: Path) -> None:
    with RunLock(str(folder)) as lock:
        mine = (folder / "lock-all").read_bytes()
        (folder / "lock-all").write_text(json.dumps({**json.loads(mine), **ELSEWHERE}))
        lock.check()  # renewed a moment ago: nobody can have taken over
        lock._held_at -= 61
        with pytest.raises(LockError) as caught:
            lock.check()
        assert str(caught.value) == (
            f"this run was held up for longer than its lease and lost {folder.parent} to pid 4711 "
            "on host node7. Start it again when that has ended"
        )
        (folder / "lock-all").write_bytes(mine)
        lock.check()
        assert time.time() - lock._held_at < 5
        (folder / "lock-all").unlink()
        lock._held_at -= 61
        with pytest.raises(LockError, match=r"to another run\. Start it again"):
            lock.check()


# ---- shards


@pytest.mark.parametrize(("one", "other"), [("1-of-8", "2-of-8"), ("1-of-2", "2-of-2")])
def test_shards_of_one_split_work_side_by_side(folder: Path, one: str, other: str) -> None:
    with RunLock(str(folder), one, run="x") as first, RunLock(str(folder), other, run="x"):
        assert sorted(os.listdir(folder)) == ["guard", f"lock-{one}", f"lock-{other}"]
        assert first.others() == []


@pytest.mark.parametrize(
    ("one", "other", "shard"),
    [
        ("all", "1-of-8", ""),
        ("1-of-8", "all", " shard 1/8 of"),
        ("1-of-8", "1-of-4", " shard 1/8 of"),
        ("1-of-8", "2-of-4", " shard 1/8 of"),
        ("3-of-8", "3-of-8", " shard 3/8 of"),
    ],
)
def test_whatever_shares_images_is_refused(folder: Path, one: str, other: str, shard: str) -> None:
    with RunLock(str(folder), one) as held:
        assert held.overlaps(other)
        assert refusal(RunLock(str(folder), other)) == (
            f"another run works on{shard} {folder.parent}: pid {os.getpid()} on host "
            f"{socket.gethostname()}. Wait for it or stop it"
        )


def test_dead_shards_refuse_nobody(folder: Path) -> None:
    leave(folder, "1-of-4", started="12")
    leave(folder, "2-of-4", age_s=LEASE_S + 1, **ELSEWHERE)
    with RunLock(str(folder)):
        pass


def test_others_are_living_shards_that_work_at_something_else(folder: Path) -> None:
    leave(folder, "4-of-8", started="12", run="old")
    with (
        RunLock(str(folder), "1-of-8", run="new") as lock,
        RunLock(str(folder), "2-of-8", run="new"),
        RunLock(str(folder), "3-of-8", run="old"),
    ):
        assert lock.others() == ["3-of-8"]


# ---- starts, races, systems that fail


def test_what_killed_starts_left_is_swept(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("clock.12ab", ".fp-all-ab.tmp", ".fp-1-of-2-ab.tmp"):
        (folder / name).touch()
    with RunLock(str(folder), "1-of-2"):
        assert sorted(os.listdir(folder)) == [".fp-all-ab.tmp", "guard", "lock-1-of-2"]
    with RunLock(str(folder)):
        assert sorted(os.listdir(folder)) == ["guard", "lock-all"]


RACE = """
import os, sys
from featprep.errors import LockError
from featprep.lock import RunLock

def racer(go, told, over):
    os.read(go, 1)
    try:
        with RunLock(sys.argv[1]):
            os.write(told, b"W")
            os.read(over, 1)  # holds until the others have lost
    except LockError:
        os.write(told, b"L")

for _ in range(30):
    with open(sys.argv[1] + "/lock-all", "w") as file:
        file.write(sys.argv[2])
    (go, start), (heard, told), (over, finish) = os.pipe(), os.pipe(), os.pipe()
    pids = []
    for _ in range(3):
        pids.append(os.fork())
        if pids[-1] == 0:
            os.close(start)
            os.close(finish)
            try:
                racer(go, told, over)
            finally:
                os._exit(0)
    os.close(told)
    os.close(start)  # closed everywhere: they are off
    outcomes = sorted(os.read(heard, 1) for _ in pids)
    os.close(finish)
    for pid in pids:
        os.waitpid(pid, 0)
    print(b"".join(outcomes).decode(), sorted(os.listdir(sys.argv[1])))
"""


def test_of_processes_that_race_for_a_dead_lock_exactly_one_wins(folder: Path) -> None:
    dead = leave(folder, started="12").read_text()
    done = subprocess.run(
        [sys.executable, "-c", RACE, str(folder), dead],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(ROOT / "data-preprocess")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["LLW ['guard']"] * 30


def test_an_output_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught, RunLock(str(tmp_path / "file/.featprep")):
        pass
    assert str(caught.value) == (
        f"cannot write {tmp_path}/file/.featprep: Not a directory. Free space or mend the folder's "
        "permissions; the same command goes on from here"
    )
    assert caught.value.exit_code == 4
