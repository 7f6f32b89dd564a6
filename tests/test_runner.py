"""Several hands: what they do at once, how their errors end a run, what a stop leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from featprep.records import Features, ImageRef, Prepared
from featprep.runner import Events, Lane, Runner


class Encoder:
    """`size` images a batch; `meet`: how many hands must be at work before any goes on."""

    def __init__(self, meet: int = 1, before: Any = lambda names: None) -> None:
        self.size, self.before = 2, before
        self.barrier = threading.Barrier(meet, timeout=20)
        self.threads: set[str] = set()

    def encode(self, images: list[Prepared]) -> Iterator[Any]:
        self.threads.add(threading.current_thread().name)
        self.barrier.wait()
        self.before("".join(image.ref.key for image in images))
        for image in images:
            yield image, Features({0: image.pixels}), ()


class Sink:
    def __init__(self) -> None:
        self.keys: list[str] = []

    def write(self, row: Any) -> None:
        self.keys.append(row[0].ref.key)

    def flush(self) -> None: ...
    def fail(self, failure: Any) -> None: ...


def _image(name: str) -> Prepared:
    return Prepared(ImageRef(name, name, name, 0, 0), np.zeros((3, 2, 2), np.uint8), None, "", {})


def _decode(jobs: Iterable[Any], ahead: int) -> Iterator[dict[int, Prepared]]:
    for ref, _ in jobs:
        yield {0: _image(ref.key)}


def _runner(encoder: Encoder, sink: Sink, hands: int, **more: Any) -> Runner:
    lane = Lane(encoder, sink, Events())  # type: ignore[arg-type]
    return Runner(_decode, [lane], hands=hands, **more)


def _entries(names: str) -> list[Any]:
    return [(_image(name).ref, (0,)) for name in names]


def test_hands_encode_at_once_and_every_image_once() -> None:
    encoder, sink, told = Encoder(meet=3), Sink(), list[int]()
    runner = _runner(encoder, sink, 3, on_hand=lambda: told.append(1))
    totals = runner.run(_entries("abcdefghijkl"))
    assert sorted(sink.keys) == list("abcdefghijkl")
    assert (totals.encoded, totals.failed, totals.hands, len(told)) == (12, 0, 3, 3)
    assert encoder.threads == {"hand 0", "hand 1", "hand 2"}


def test_writers_store_at_once_and_each_flushes_its_own_batch() -> None:
    barrier, written, flushed = threading.Barrier(3, timeout=20), Written(), list[list[str]]()

    class Meeting(Sink):
        def write(self, row: Any) -> None:
            if row[0].ref.key in "ace":  # the first of each batch
                barrier.wait()
            written.keys.append(row[0].ref.key)

        def flush(self) -> None:
            flushed.append(written.keys)
            written.keys = []

    totals = _runner(Encoder(), Meeting(), 1, writers=3).run(_entries("abcdef"))
    assert sorted(flushed) == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert (totals.encoded, totals.writers) == (6, 3)


class Written(threading.local):
    """Of each thread."""

    def __init__(self) -> None:
        self.keys: list[str] = []


def test_one_hand_is_the_thread_that_runs() -> None:
    encoder, sink = Encoder(), Sink()
    _runner(encoder, sink, 1).run(_entries("abc"))
    assert encoder.threads == {threading.current_thread().name}
    assert sink.keys == list("abc")


@pytest.mark.parametrize("hands", [1, 2])
def test_an_error_of_a_hand_ends_the_run_and_what_was_encoded_is_kept(hands: int) -> None:
    sink, failed = Sink(), threading.Event()

    def before(names: str) -> None:
        if names == "xx":
            failed.wait(20)
        if names == "cd":
            while len(sink.keys) < 2:  # the other hand's, which may be the slower one
                time.sleep(0.001)
            failed.set()
            raise ZeroDivisionError(names)

    with pytest.raises(ZeroDivisionError, match="cd"):
        _runner(Encoder(before=before), sink, hands).run(_entries("abcd" + "x" * 100))
    assert sink.keys[:2] == ["a", "b"]
    assert len(sink.keys) < 50
    assert [t.name for t in threading.enumerate() if t.name.startswith(("hand", "wri"))] == []


def test_a_hand_that_cannot_start_ends_the_run() -> None:
    def on_hand() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        _runner(Encoder(), Sink(), 2, on_hand=on_hand).run(_entries("abcd" * 10))


@pytest.mark.parametrize("hands", [1, 2])
def test_a_stop_keeps_what_is_being_encoded_and_leaves_what_waits(hands: int) -> None:
    stop, sink = threading.Event(), Sink()
    encoder = Encoder(meet=hands, before=lambda names: stop.set())
    totals = _runner(encoder, sink, hands, stop=stop).run(_entries("abcdefghijkl"))
    assert totals.stopped
    assert sorted(sink.keys) == list("abcd"[: 2 * hands])
