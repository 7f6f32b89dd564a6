"""One run an output and shard: who holds it, whether the holder lives, and the lease that says so.

Where pids mean the same (one host, one boot, one pid namespace) the holder lives if its pid runs
and started when the lock says. Elsewhere the lock's mtime is a lease, renewed every 30 s; five
minutes without renewal, by the file system's own clock, and the holder counts as dead. Knows
nothing of what is locked.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from filelock import FileLock

from featprep.errors import LockError
from featprep.naming import printable
from featprep.stores.base import EVERYTHING, output_error, put_whole, sweep

RENEW_S, LEASE_S = 30.0, 300.0
_PREFIX, _PROBE = "lock-", "clock."

Holder = dict[str, Any]


class RunLock:
    """Held from `__enter__` to `__exit__`. Raises LockError if a living run holds this shard, or
    one that overlaps it (everything, or a split into another number of shards)."""

    def __init__(
        self, folder: str, tag: str = EVERYTHING, *, break_lock: bool = False, run: str = ""
    ) -> None:
        """`run` names what the holder works at: shards of one array have it in common."""
        self.folder, self.tag, self.break_lock = folder, tag, break_lock
        self.path = os.path.join(folder, _PREFIX + tag)
        self.guard = FileLock(os.path.join(folder, "guard"))  # serialises starts, held for moments
        self._me = {**_place(), "pid": os.getpid(), "started": _started(os.getpid()), "run": run}
        self._released = threading.Event()
        self._held_at = 0.0

    def __enter__(self) -> Self:
        try:
            os.makedirs(self.folder, exist_ok=True)
            with self.guard:
                self._refuse_overlaps()
                self._sweep()
                put_whole(self.path, [json.dumps(self._me).encode()], self.tag)
        except OSError as error:
            raise output_error(self.folder, error) from error
        self._held_at = time.time()
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._released.set()
        try:
            if os.path.isdir(self.folder):  # the output may have been deleted while we ran
                with self.guard:
                    self._release()
        except OSError:  # nobody is kept out: whoever comes next finds our pid or our lease dead
            return

    def ask(self) -> None:
        """Raise LockError if a living run holds it now, and make nothing: for who will hold it
        once the weights are loaded, and would have loaded them for nothing."""
        try:
            self._refuse_overlaps()
        except OSError:  # no such folder yet, or trouble that `__enter__` tells
            return

    def holders(self) -> list[tuple[str, Holder, bool]]:
        """(tag, holder, whether it is taken to live) of every lock that stands here."""
        tags = self._tags() if os.path.isdir(self.folder) else []
        found = [(tag, _read(os.path.join(self.folder, _PREFIX + tag))) for tag in tags]
        return [(tag, one, self._seems_alive(tag)) for tag, one in found if one is not None]

    def check(self) -> None:
        """Raise LockError if another run took over. One that was suspended, or cut off from its
        file system, for longer than the lease finds out here, before it writes beside the other."""
        if time.time() - self._held_at < 2 * RENEW_S:
            return
        holder = _read(self.path)
        if holder != self._me:
            output = printable(os.path.dirname(self.folder))
            other = title_of(holder) if holder else "another run"
            raise LockError(
                f"this run was held up for longer than its lease and lost {output} to {other}. "
                "Start it again when that has ended"
            )
        self._held_at = time.time()

    def others(self) -> list[str]:
        """Tags of other shards that living runs hold now for another `run`."""
        holders = {tag: self._living(tag) for tag in self._tags() if tag != self.tag}
        return [
            tag for tag, holder in holders.items() if holder and holder["run"] != self._me["run"]
        ]

    def overlaps(self, tag: str) -> bool:
        """Shards of one split are disjoint; everything else shares images."""
        split, other = self.tag.partition("-of-")[2], tag.partition("-of-")[2]
        return tag == self.tag or not split == other != ""

    def _tags(self) -> list[str]:
        names = os.listdir(self.folder)
        return sorted(n[len(_PREFIX) :] for n in names if n.startswith(_PREFIX))

    def _refuse_overlaps(self) -> None:
        for tag in filter(self.overlaps, self._tags()):
            holder = self._living(tag)
            if holder is not None:
                raise LockError(_refusal(os.path.dirname(self.folder), tag, holder))

    def _living(self, tag: str) -> Holder | None:
        path = os.path.join(self.folder, _PREFIX + tag)
        holder = _read(path)
        if holder is None or _is_here(holder):
            return holder if holder and _runs(holder) else None
        try:
            age = self._now() - os.stat(path).st_mtime
        except FileNotFoundError:  # it ended this moment
            return None
        return holder if age < LEASE_S and not self.break_lock else None

    def _seems_alive(self, tag: str) -> bool:
        try:
            return self._living(tag) is not None
        except OSError:  # the folder's clock cannot be asked: nobody may write here
            return True

    def _now(self) -> float:
        """The file system's clock, which a skewed host's need not agree with."""
        probe = Path(self.folder, _PROBE + secrets.token_hex(4))
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now

    def _sweep(self) -> None:
        sweep(self.folder, self.tag)
        for probe in Path(self.folder).glob(_PROBE + "*"):  # made under the guard: no one's now
            probe.unlink()

    def _release(self) -> None:
        if _read(self.path) == self._me:  # else our lease ran out and another has it
            os.unlink(self.path)

    def _renew(self) -> None:
        while not self._released.wait(RENEW_S):
            try:
                if _read(self.path) == self._me:
                    os.utime(self.path)
                    self._held_at = time.time()
            except OSError:  # a moment's network: the next turn tries again, and check() decides
                continue


def _read(path: str) -> Holder | None:
    """Who holds a lock, or None: no file, or none of ours, which nobody can hold."""
    try:
        holder = json.loads(Path(path).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    ours = isinstance(holder, dict) and {"host", "machine", "pid", "started", "run"} <= set(holder)
    return (
        holder if ours and isinstance(holder["pid"], int) and 0 < holder["pid"] < 1 << 32 else None
    )


def _place() -> Holder:
    """Where a pid means the same process. Containers and cloned machines share host names, so
    Linux is also asked for its boot and its pid namespace."""
    parts = []
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if os.path.islink(path) else Path(path).read_text())
        except OSError:
            continue
    return {"host": socket.gethostname(), "machine": " ".join("".join(parts).split())}


def _is_here(holder: Holder) -> bool:
    return {"host": holder["host"], "machine": holder["machine"]} == _place()


def _runs(holder: Holder) -> bool:
    started = _started(holder["pid"])
    return _is_hidden(holder["pid"]) if started is None else started == holder["started"]


def _started(pid: int) -> str | None:
    """When a process started, as a token to compare; None if there is none or it is hidden.

    Linux tells it in ticks since boot. What psutil makes of that moves when the clock is set, and
    a living holder would seem to be another process.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return "dead" if state[0] == "Z" else state[19]  # Z: killed, and its parent has not looked
    except (OSError, IndexError):
        pass
    try:
        return str(round(psutil.Process(pid).create_time(), 2))
    except (psutil.Error, ValueError, OverflowError):
        return None


def _is_hidden(pid: int) -> bool:
    """Does a process of another user run there, on a system that shows each user only their own?"""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def title_of(holder: Holder) -> str:
    return f"pid {holder['pid']} on host {printable(str(holder['host'])[:255])}"


def _refusal(output: str, tag: str, holder: Holder) -> str:
    shard = "" if tag == EVERYTHING else f" shard {printable(tag.replace('-of-', '/'))} of"
    way_out = "" if _is_here(holder) else "; if that run is known dead: --break_lock"
    return (
        f"another run works on{shard} {printable(output)}: {title_of(holder)}. "
        f"Wait for it or stop it{way_out}"
    )
