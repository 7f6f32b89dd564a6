"""How a task deals with images of any kind, batches, streams, failures and threads: by the mean
colours of a fake encoder, as featprep.pipeline gives them."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import featprep
import numpy as np
import pytest
import torch
from fakes import SPEC, FakeEncoder, fake_session, mean_colours
from featprep import images
from featprep.errors import ImageError, UsageError
from featprep.tasks import models, urls
from PIL import Image

TASK = "image-feature-extraction"


@pytest.fixture
def fake() -> FakeEncoder:
    encoder = FakeEncoder()
    encoder.spec = replace(SPEC, cls=False)  # its tokens are its cells
    return encoder


@pytest.fixture
def means(fake: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pipeline whose result is the mean colour of each cell, in batches of four."""
    make = fake_session(fake)
    monkeypatch.setattr(models, "open_session", lambda config, name, **_: make(config, name))
    return featprep.pipeline(TASK, "clip:tiny", resize="crop", size=32)


def grey(value: int, side: int = 32) -> Image.Image:
    return Image.new("RGB", (side, side), (value, value, value))


def values(results: Any) -> list[float]:
    return [float(result.mean()) for result in results]


def test_every_kind_of_image_gives_the_same_tokens(means: Any, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    tensor = torch.from_numpy(array.copy())
    with (tmp_path / "a.png").open("rb") as file:
        kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), data, uri, file, io.BytesIO(data)]
        kinds += [Image.fromarray(array), array, tensor, tensor.movedim(2, 0)]
        results = means(kinds)
    expected = mean_colours(array.transpose(2, 0, 1)[None]).reshape(1, 3, 16).swapaxes(1, 2)
    for kind_, result in zip(kinds, results, strict=True):
        assert np.array_equal(result, expected), kind_


def test_the_time_limit_is_of_each_address(means: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file, asked = io.BytesIO(), []
    grey(3).save(file, "PNG")

    def fetch(url: str, limits: urls.UrlLimits) -> bytes:
        asked.append((url, limits.timeout_s))
        return file.getvalue()

    monkeypatch.setattr(urls, "fetch", fetch)
    assert values(means(["http://a/x", "HTTPS://b/y"], timeout=2)) == [3, 3]
    means("http://c/z")
    assert sorted(asked) == [("HTTPS://b/y", 2), ("http://a/x", 2), ("http://c/z", 30)]


def test_one_image_gives_one_result_and_costs_a_batch_of_one(means: Any, fake: FakeEncoder) -> None:
    result = means(grey(7), pool="mean")
    assert (result.shape, values([result])) == ((1, 3), [7])
    assert fake.calls == [(1, 3, 32, 32)]


def test_a_list_gives_a_list_in_order_in_padded_batches(means: Any, fake: FakeEncoder) -> None:
    results = means([grey(value) for value in range(10)], pool="mean")
    assert isinstance(results, list)
    assert values(results) == list(range(10))
    assert fake.calls == [(4, 3, 32, 32)] * 3
    fake.calls.clear()
    assert values(means([grey(1), grey(2), grey(3)], batch_size=2)) == [1, 2, 3]
    assert fake.calls == [(2, 3, 32, 32)] * 2
    assert means([]) == []


def test_a_stream_is_read_a_batch_ahead_and_no_further(means: Any) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Image.Image]:
        for value in range(10**9):
            taken.append(value)
            yield grey(value)

    results = means(endless(), pool="mean")
    assert taken == []
    assert values([next(results)]) == [0]
    assert taken == [0, 1, 2, 3]
    assert values(next(results) for _ in range(4)) == [1, 2, 3, 4]
    assert len(taken) == 8
    results.close()


def test_images_of_different_sizes_keep_their_order(
    fake: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = fake_session(fake)
    monkeypatch.setattr(models, "open_session", lambda config, name, **_: make(config, name))
    keep = featprep.pipeline(TASK, "clip:tiny", resize="keep", batch_size=4)
    results = keep([grey(1), grey(2), grey(3, 40), grey(4)])
    assert values(results) == [1, 2, 3, 4]
    assert [result.shape for result in results] == [(1, 16, 3)] * 2 + [(1, 25, 3), (1, 16, 3)]
    assert [shape[2] for shape in fake.calls] == [32, 40, 32]


def test_patches_alone_never_pass_for_all_tokens(means: Any, fake: FakeEncoder) -> None:
    """Of an encoder that has no CLS after all: its spec says so, its output does not."""
    encode = fake.encode
    fake.spec = means.spec = replace(SPEC, cls=True)
    lacking = np.zeros((1, 0, 3), np.float32)
    fake.encode = lambda pixels, want: replace(encode(pixels, want), prefix=lacking)  # type: ignore[method-assign]
    for pool in (False, "cls"):
        with pytest.raises(UsageError) as caught:
            means(grey(1), pool=pool)
        assert str(caught.value) == "fake:mean gives its patches alone; there is pool='mean'"


def test_results_come_as_arrays_tensors_or_lists(means: Any) -> None:
    array, tensor, nested = (means(grey(5), return_tensors=kind_) for kind_ in ("np", "pt", "list"))
    assert (array.dtype, array.shape) == (np.float32, (1, 16, 3))
    assert torch.equal(tensor, torch.from_numpy(array))
    assert nested == array.tolist()


def test_half_precision_is_of_the_result_too(
    fake: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = fake_session(fake, exact=fake)
    monkeypatch.setattr(models, "open_session", lambda config, name, **_: make(config, name))
    half = featprep.pipeline(TASK, "clip:tiny", fp16=True)
    assert half(grey(5)).dtype == half(grey(5), pool="mean").dtype == np.float16
    fake.scale = 1000
    with pytest.raises(ImageError) as caught:
        half([grey(5), grey(200)])
    assert str(caught.value) == (
        "image 1 (a PIL image, 32×32 RGB): its map reaches 2e+05 and does not fit float16; run "
        "without --fp16"
    )


def test_values_that_had_to_be_guessed_at_are_told_once_a_call(means: Any) -> None:
    normalised = torch.linspace(-2, 2, 3 * 32 * 32).reshape(3, 32, 32)
    with pytest.warns(UserWarning, match="float") as said:
        means([normalised] * 6)
    assert [str(one.message) for one in said] == [
        "image 0 (a tensor of shape (3, 32, 32)): float values -2 to 2 stretched to black and white"
    ]
    assert said[0].filename == __file__  # the caller's line, not one of ours


# --- failures


def test_the_image_that_fails_is_named_by_position_and_source(means: Any, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("<html>")
    with pytest.raises(ImageError) as caught:
        means([grey(1), tmp_path / "text.png"])
    assert str(caught.value) == (
        f"image 1 ({tmp_path}/text.png): its bytes are HTML or XML; read are PNG, JPEG, WebP, BMP, "
        "TIFF, AVIF, GIF"
    )
    with pytest.raises(ImageError) as caught:
        means(np.zeros((3, 5, 5, 3), np.uint8))
    assert str(caught.value) == (
        "image 0 (an array of shape (3, 5, 5, 3)): four axes are a batch; pass it as a list, "
        "list(images)"
    )


def test_a_stream_gives_what_stands_before_the_image_that_fails(means: Any) -> None:
    results = means(iter([grey(value) for value in range(6)] + ["no/such.png", grey(9)]))
    given: list[float] = []
    with pytest.raises(ImageError, match=r"^image 6 \(no/such\.png\): No such file or directory$"):
        given.extend(float(result.mean()) for result in results)
    assert given == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"batch_size": 0}, "batch_size=0: allowed is a whole number from 1 up"),
        ({"batch_size": True}, "batch_size=True: allowed is a whole number from 1 up"),
        ({"return_tensors": "tf"}, "return_tensors='tf': allowed is 'np', 'pt' or 'list'."),
        ({"timeout": 0}, "timeout=0: allowed is a number of seconds, up to 86400"),
        ({"timeout": "5"}, "timeout='5': allowed is a number of seconds, up to 86400"),
        ({"batch_size": "8"}, "batch_size='8': allowed is a whole number from 1 up"),
    ],
)
def test_a_bad_setting_is_refused_before_a_stream_is_touched(
    means: Any, settings: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(UsageError) as caught:
        means(iter(["no/such.png"]), **settings)
    assert str(caught.value) == refusal


def test_a_full_device_halves_the_batch_and_goes_on(means: Any, fake: FakeEncoder) -> None:
    fake.room = 2
    assert values(means([grey(value) for value in range(7)])) == list(range(7))
    assert [shape[0] for shape in fake.calls] == [4, 2, 2, 2, 2]
    fake.room = 0
    with pytest.raises(ImageError) as caught:
        means([grey(1), grey(2)])
    assert str(caught.value) == (
        "image 0 (a PIL image, 32×32 RGB): the device has no memory for it, even alone in a batch"
    )


# --- threads


def test_two_calls_at_once_take_turns_on_the_device(means: Any, fake: FakeEncoder) -> None:
    inside, most = [0], [0]

    def watch(_: Any) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1

    fake.before = watch
    found: dict[int, list[float]] = {}

    def call(start: int) -> None:
        found[start] = values(means([grey(start + value) for value in range(12)]))

    threads = [threading.Thread(target=call, args=(start,)) for start in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {start: [start + value for value in range(12)] for start in (0, 100)}
    assert most == [1]


def test_one_picture_given_twice_is_read_once_at_a_time(
    means: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A PIL image reads its file when it is first used, from whatever thread."""
    inside, most = [0], [0]
    picture_of = images.picture_of

    def watched(image: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.005)
        try:
            return picture_of(image)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(images, "picture_of", watched)
    grey(5).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as lazy:
        assert values(means([lazy] * 8)) == [5] * 8
    assert most == [1]


def test_an_event_loop_goes_on_while_a_thread_extracts(means: Any, fake: FakeEncoder) -> None:
    fake.before = lambda _: time.sleep(0.05)

    async def main() -> tuple[list[Any], int]:
        work = asyncio.gather(*(asyncio.to_thread(means, grey(value)) for value in (1, 2)))
        ticks = 0
        while not work.done():
            await asyncio.sleep(0.005)
            ticks += 1
        return await work, ticks

    results, ticks = asyncio.run(main())
    assert values(results) == [1, 2]
    assert ticks > 3
