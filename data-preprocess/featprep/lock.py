"""One run an output and shard: who holds it, whether the holder lives, and the lease that says so.

Same host: the holder lives if its pid runs and started when the lock says. Another host: the lock's
mtime is a lease, renewed every 30 s; five minutes without renewal, by the file system's own clock,
and the holder counts as dead. Knows nothing of what is locked.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from types import TracebackType
from typing import Any, Self

import psutil
from filelock import FileLock

from featprep.errors import LockError
from featprep.stores.base import EVERYTHING, output_error

RENEW_S, LEASE_S = 30.0, 300.0
_PREFIX = "lock-"


class RunLock:
    """Held from `__enter__` to `__exit__`. Raises LockError if a living run holds this shard, or
    one that overlaps it (everything, or a split into another number of shards)."""

    def __init__(self, folder: str, tag: str = EVERYTHING, *, break_lock: bool = False) -> None:
        self.folder, self.tag, self.break_lock = folder, tag, break_lock
        self.path = os.path.join(folder, _PREFIX + tag)
        self.guard = FileLock(os.path.join(folder, "guard"))  # serialises starts, held for moments
        self._me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
        self._released = threading.Event()

    def __enter__(self) -> Self:
        try:
            os.makedirs(self.folder, exist_ok=True)
            with self.guard:
                self._refuse_overlaps()
                self._claim()
        except OSError as error:
            raise output_error(self.folder, error) from error
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._released.set()
        try:
            with open(self.path, encoding="utf-8") as file:
                if json.load(file) == self._me:  # else our lease ran out and another has it
                    os.unlink(self.path)
        except FileNotFoundError:  # the output was deleted while we ran
            return

    def others(self) -> list[str]:
        """Tags of other shards that living runs hold now."""
        return [tag for tag in self._tags() if tag != self.tag and self._living(tag)]

    def _tags(self) -> list[str]:
        names = os.listdir(self.folder)
        return sorted(n[len(_PREFIX) :] for n in names if n.startswith(_PREFIX) and "." not in n)

    def _refuse_overlaps(self) -> None:
        for tag in self._tags():
            holder = self._living(tag) if _overlap(tag, self.tag) else None
            if holder is not None:
                raise LockError(_refusal(os.path.dirname(self.folder), tag, holder))

    def _living(self, tag: str) -> dict[str, Any] | None:
        path = os.path.join(self.folder, _PREFIX + tag)
        try:
            with open(path, encoding="utf-8") as file:
                holder: dict[str, Any] = json.load(file)
            age = self._now() - os.stat(path).st_mtime
        except FileNotFoundError:
            return None
        except ValueError:  # killed between creating and writing: nobody holds it
            return None
        if holder.get("host") == socket.gethostname():
            return holder if _runs(holder) else None
        return holder if age < LEASE_S and not self.break_lock else None

    def _now(self) -> float:
        """The file system's clock, which a skewed host's need not agree with."""
        probe = os.path.join(self.folder, f"clock.{secrets.token_hex(4)}")
        with open(probe, "w"):
            pass
        now = os.stat(probe).st_mtime
        os.unlink(probe)
        return now

    def _claim(self) -> None:
        temporary = f"{self.path}.{secrets.token_hex(4)}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(self._me, file)
        os.replace(temporary, self.path)

    def _renew(self) -> None:
        while not self._released.wait(RENEW_S):
            try:
                os.utime(self.path)
            except (
                OSError
            ):  # gone with its folder, or a moment's network: the next turn tries again
                continue


def _overlap(tag: str, other: str) -> bool:
    """Shards of one split are disjoint; everything else shares images."""
    same_split = tag.partition("-of-")[2] == other.partition("-of-")[2] != ""
    return tag == other or not same_split


def _runs(holder: dict[str, Any]) -> bool:
    started = _started(int(holder.get("pid", -1)))
    return started is not None and started == holder.get("started")


def _started(pid: int) -> float | None:
    try:
        return round(float(psutil.Process(pid).create_time()), 2)
    except (psutil.Error, ValueError):
        return None


def _refusal(output: str, tag: str, holder: dict[str, Any]) -> str:
    shard = "" if tag == EVERYTHING else f" shard {tag.replace('-of-', '/')} of"
    here = holder.get("host") == socket.gethostname()
    way_out = "" if here else "; if that run is known dead: --break_lock"
    return (
        f"another run works on{shard} {output}: pid {holder.get('pid')} on host "
        f"{holder.get('host')}. Wait for it or stop it{way_out}"
    )
