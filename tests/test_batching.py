"""Queues per size, bounded; what the end-to-end tests cannot see of batches."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from fakes import FakeEncoder
from featprep.batching import BatchEncoder, SizeQueues, _is_finite
from featprep.encoders.base import Want
from featprep.records import ImageRef, Prepared


def _image(name: str, height: int = 16, width: int = 16) -> Prepared:
    pixels = np.full((3, height, width), ord(name), np.uint8)
    meta = {"geometry": {"grid": [height // 8, width // 8]}}
    return Prepared(ImageRef(name, name, name, 0, 0), pixels, None, "", meta)


def _names(batch: list[Prepared] | None) -> str | None:
    return None if batch is None else "".join(image.ref.key for image in batch)


def test_images_of_one_size_make_a_batch() -> None:
    queues = SizeQueues(2, most=100)
    given = [_image("a"), _image("b", 24), _image("c"), _image("d", 24), _image("e")]
    assert [_names(queues.add(image)) for image in given] == [None, None, "ac", "bd", None]
    assert [_names(batch) for batch in queues.rest()] == ["e"]


def test_when_too_many_wait_the_fullest_queue_goes() -> None:
    queues = SizeQueues(3, most=4)
    given = [_image("a", 8), _image("b", 16), _image("c", 16), _image("d", 24)]
    assert [_names(queues.add(image)) for image in given] == [None, None, None, "bc"]
    assert sorted(str(_names(batch)) for batch in queues.rest()) == ["a", "d"]


def test_a_grid_that_is_not_what_was_promised_is_never_stored() -> None:
    encoder = FakeEncoder()
    batch = BatchEncoder(encoder, Want(), 2, exact=lambda: encoder)
    image = _image("a")
    image.meta["geometry"]["grid"] = [9, 9]
    with pytest.raises(
        AssertionError, match=r"the encoder gave cells \(2, 2\), its grid\(\) \(9, 9\)"
    ):
        list(batch.encode([image]))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found(dtype: str, value: float) -> None:
    array = np.full((2, 3, 4), np.finfo(dtype).max, dtype)
    assert _is_finite(array)
    assert _is_finite(-array)
    array[1, 2, 3] = value
    assert not _is_finite(array)


def test_what_the_device_found_finite_is_not_looked_at_again() -> None:
    """And what it did not is looked at, named and encoded again."""
    encoder, exact = FakeEncoder(scale=1e30), FakeEncoder()
    encode = encoder.encode
    encoder.encode = lambda pixels, want: replace(  # type: ignore[method-assign]
        encode(pixels, want), finite=np.array([True, False])
    )
    batch = BatchEncoder(encoder, Want(dtype="float16"), 2, exact=lambda: exact)
    (_, _, first), (_, _, second) = batch.encode([_image("a"), _image("b")])  # type: ignore[misc]
    assert first == ()
    note = "encoded again in float32: not finite in float32 stored as float16"
    assert second == (note,)


def test_a_halved_batch_stays_halved() -> None:
    encoder, sizes = FakeEncoder(room=2), []
    batch = BatchEncoder(encoder, Want(), 8, exact=lambda: encoder, on_halved=sizes.append)
    for _ in range(2):
        assert len(list(batch.encode([_image(name) for name in "abc"]))) == 3
    assert sizes == [4, 2]
    assert [shape[0] for shape in encoder.calls] == [8, 4, 2, 2, 2, 2]


def test_threads_that_find_no_room_at_once_halve_it_once() -> None:
    encoder, sizes = FakeEncoder(room=4), []
    meet = threading.Barrier(2, timeout=20)
    encoder.before = lambda pixels: len(pixels) == 8 and meet.wait()
    batch = BatchEncoder(encoder, Want(), 8, exact=lambda: encoder, on_halved=sizes.append)
    with ThreadPoolExecutor(2) as threads:
        rows = threads.map(lambda name: list(batch.encode([_image(name)])), "ab")
        assert [len(row) for row in rows] == [1, 1]
    assert sizes == [4]
