"""featprep.pipeline("image-feature-extraction"): against transformers' own models and pipeline, and
how images, batches, streams, failures and threads are dealt with."""

from __future__ import annotations

import asyncio
import base64
import io
import json
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
import transformers
from fakes import SPEC, FakeEncoder, fake_session, mean_colours
from featprep import images
from featprep.encoders import describe, hf_known
from featprep.encoders.huggingface import quiet_transformers
from featprep.encoders.tiny import write_folder, write_tiny
from featprep.errors import ImageError, UsageError
from featprep.tasks import models
from featprep.tasks.feature_extraction import DEFAULT_MODEL
from featprep.tasks.models import find_model
from PIL import Image
from test_huggingface import KINDS, SMALL

TASK = "image-feature-extraction"
PAIRED = {"clip": 1, "altclip": 1, "siglip": 0, "blip": 1}  # with texts → tokens before the cells
library: Any = transformers

# --- parity


def cropped(files: hf_known.Files) -> hf_known.Files:
    """The same with a recipe that ends at 64, the small models' own side; short side to 72 where
    the recipe crops."""
    config, processor = files
    square = {"height": 64, "width": 64}
    if "shortest_edge" in processor.get("size", {}):
        return config, {**processor, "size": {"shortest_edge": 72}, "crop_size": square}
    return config, {**processor, "size": square}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("small")
    return {kind: write_folder(cropped(SMALL[kind]), root / kind) for kind in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def extract(kind: str, folders: dict[str, Path]) -> Any:
    return featprep.pipeline(TASK, f"hf:test={folders[kind]}", device="cpu")


@pytest.fixture(scope="module")
def whole(kind: str, folders: dict[str, Path]) -> Any:
    """transformers' own model of a folder, the text tower drawn at random."""
    config = library.AutoConfig.from_pretrained(folders[kind])
    with quiet_transformers():
        return getattr(library, config.architectures[0]).from_pretrained(folders[kind]).eval()


def photo(width: int, height: int) -> Image.Image:
    """Smooth in places, noisy in others, so that every kernel and offset shows."""
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3))
    waves = 127 + 127 * np.sin(rows / 9 + columns / 13)[:, :, None]
    half = (columns < width // 2)[:, :, None]
    return Image.fromarray(np.where(half, noise, waves).astype(np.uint8))


def forward(whole: Any, folder: Path, pixels: np.ndarray[Any, Any]) -> Any:
    """The image tower's outputs of (3, H, W) uint8, by transformers and this file alone."""
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(processor[name]) for name in ("image_mean", "image_std"))
    normal = (torch.from_numpy(pixels) / 255 - mean[:, None, None]) / std[:, None, None]
    # A classifier keeps its trunk in a part, as models of images and texts do.
    tower = getattr(whole, "vision_model", getattr(whole, "vit", whole))
    with torch.inference_mode():
        return tower(pixel_values=normal[None])


def image_embedding(kind: str, whole: Any, out: Any) -> torch.Tensor:
    with torch.inference_mode():
        if kind == "siglip":
            return out.pooler_output
        if kind == "blip":
            return whole.vision_proj(out.last_hidden_state[:, 0])
        return whole.visual_projection(out.pooler_output)


def test_of_the_same_pixels_every_pool_equals_transformers_own_model(
    kind: str, whole: Any, folders: dict[str, Path]
) -> None:
    extract = featprep.pipeline(TASK, str(folders[kind]), resize="squash", size=64, device="cpu")
    pixels = np.asarray(photo(64, 64))
    out = forward(whole, folders[kind], pixels.transpose(2, 0, 1).copy())
    tokens, prefix = out.last_hidden_state, extract.spec.cls + extract.spec.registers
    expected = {False: tokens, "mean": tokens[:, prefix:].mean(1)}
    expected[None] = image_embedding(kind, whole, out) if kind in PAIRED else tokens
    if kind != "siglip":
        expected["cls"] = tokens[:, 0]
    if kind != "vit classifier":
        expected[True] = out.pooler_output
    for pool, features in expected.items():
        ours = extract(pixels, pool=pool, return_tensors="pt")
        assert features.std() > 0.01
        torch.testing.assert_close(ours, features, rtol=0, atol=1e-5, msg=str(pool))


# DINOv3 has no Pillow-backed processor; BLIP's captions and the gated DINOv3 have nothing new.
PILLOW = {"dinov2": "Bit", "registers": "Bit", "clip": "CLIP", "altclip": "CLIP",
          "siglip": "Siglip", "blip": "Blip", "vit": "ViT"}  # fmt: skip


@pytest.mark.parametrize("kind", PILLOW, indirect=True)
@pytest.mark.parametrize("size", [(131, 79), (79, 131), (47, 300), (64, 64), (20, 31)])
def test_from_a_file_it_equals_transformers_pipeline_with_the_pillow_backed_processor(
    kind: str, size: tuple[int, int], extract: Any, whole: Any, folders: dict[str, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    """PITFALLS 5, 28: 131 × 79 to 119 × 72, cropped at 27.5; 20 × 31 is made larger."""
    photo(*size).save(tmp_path / "a.png")
    pillow_backed = getattr(library, f"{PILLOW[kind]}ImageProcessorPil")
    theirs = library.pipeline(
        TASK,
        model=getattr(whole, "vision_model", whole),
        image_processor=pillow_backed.from_pretrained(folders[kind]),
        device="cpu",
    )
    for pool in (False, True):
        expected = theirs(str(tmp_path / "a.png"), pool=pool, return_tensors=True)
        ours = extract(tmp_path / "a.png", pool=pool, return_tensors="pt")
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["Bit", "CLIP", "Siglip", "ViT"])
def test_of_real_photos_the_network_sees_what_the_pillow_backed_processor_makes(
    family: str, test_data: Path, folders: dict[str, Path]
) -> None:
    name = {"Bit": "dinov2", "CLIP": "clip", "Siglip": "siglip", "ViT": "vit"}[family]
    processor = getattr(library, f"{family}ImageProcessorPil").from_pretrained(folders[name])
    extract = featprep.pipeline(TASK, f"hf:test={folders[name]}", device="cpu")
    for path in sorted((test_data / "photos").glob("picture[16].jpg")):
        given = processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
        seen: list[Any] = []
        handle = extract._encoder.session.encoder.model.register_forward_pre_hook(
            lambda _m, _a, named, seen=seen: seen.append(named["pixel_values"]), with_kwargs=True
        )
        extract(path, pool="mean")
        handle.remove()
        torch.testing.assert_close(seen[0], given, rtol=0, atol=1e-6)


def test_of_openais_clip_it_gives_encode_image_and_what_that_projects(tmp_path: Path) -> None:
    path = write_tiny("clip", tmp_path)
    extract = featprep.pipeline(TASK, f"clip:test={path}", device="cpu")
    image = photo(300, 200)
    embedding, pooler, tokens, cls = (
        extract(image, pool=pool) for pool in (None, True, False, "cls")
    )
    visual = extract._encoder.session.encoder.visual
    with torch.inference_mode():
        normed = visual.ln_post(torch.from_numpy(tokens[:, 0]))
        projected = torch.from_numpy(pooler) @ visual.proj
    np.testing.assert_allclose(pooler, normed.numpy(), atol=1e-5)
    np.testing.assert_allclose(embedding, projected.numpy(), atol=1e-5)
    assert np.array_equal(cls, tokens[:, 0])
    assert (embedding.shape, pooler.shape, tokens.shape) == ((1, 32), (1, 64), (1, 257, 64))


# --- what a model has


@pytest.fixture(scope="module")
def some(folders: dict[str, Path]) -> dict[str, Any]:
    kinds = ("siglip", "vit classifier")
    return {
        kind: featprep.pipeline(TASK, f"hf:test={folders[kind]}", device="cpu") for kind in kinds
    }


@pytest.mark.parametrize(
    ("kind_", "pool", "refusal"),
    [
        (
            "vit classifier",
            True,
            "pool=True: hf:test has no pooler output; there is None (all tokens), False (all "
            "tokens), 'mean' (the mean of its patches), 'cls' (its CLS token)",
        ),
        (
            "siglip",
            "cls",
            "pool='cls': hf:test has no CLS token; there is None (the image embedding), False (all "
            "tokens), True (the pooler output), 'mean' (the mean of its patches)",
        ),
        ("siglip", "max", "pool='max': allowed is None, False, True, 'mean' or 'cls'"),
        ("siglip", ["cls"], "pool=['cls']: allowed is None, False, True, 'mean' or 'cls'"),
    ],
)
def test_what_a_model_lacks_is_refused_with_what_it_has(
    kind_: str, pool: Any, refusal: str, some: dict[str, Any]
) -> None:
    with pytest.raises(UsageError) as caught:
        some[kind_]("no/such/file.png", pool=pool)  # before any image is read
    assert str(caught.value) == refusal


def test_a_siglip_published_without_its_head_has_tokens_and_no_embedding(tmp_path: Path) -> None:
    config, processor = cropped(SMALL["siglip"])
    tower = {**config["vision_config"], "vision_use_head": False}
    folder = write_folder(({**config, "vision_config": tower}, processor), tmp_path / "x")
    extract = featprep.pipeline(TASK, str(folder), device="cpu")
    assert extract(photo(64, 64), pool=False).shape == (1, 16, 64)
    with pytest.raises(UsageError) as caught:
        extract(photo(64, 64))
    assert str(caught.value) == (
        "pool=None: hf:x gives no image embedding; there is False (all tokens), 'mean' (the mean "
        "of its patches)"
    )


# --- the model's name


def test_the_default_model_is_known_and_has_a_pooler(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    make = fake_session(FakeEncoder())
    monkeypatch.setattr(
        models,
        "open_session",
        lambda config, name, **_: (asked.append(name), make(config, name))[1],
    )
    featprep.pipeline(TASK)
    assert str(asked[0]) == DEFAULT_MODEL == "hf:google/vit-base-patch16-224-in21k"
    spec = describe(asked[0])
    assert spec is not None
    assert (spec.pooled, spec.text) == (True, False)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("facebook/dinov2-base", "hf:facebook/dinov2-base"),
        ("someone/some.model-1", "hf:someone/some.model-1"),
        ("ViT-L/14", "clip:ViT-L/14"),  # a known name before an id of the hub
        ("openai_clip_vit_b32", "clip:ViT-B/32"),
        ("hf:tiny", "hf:tiny"),
    ],
)
def test_a_bare_id_is_of_the_hub_unless_it_is_known(typed: str, name: str) -> None:
    assert str(find_model(typed)) == name


def test_a_folder_is_transformers_own(tmp_path: Path) -> None:
    name = find_model(str(tmp_path))
    assert (str(name), name.path) == (f"hf:{tmp_path.name}", str(tmp_path))


@pytest.mark.parametrize("id", models._XENOVA)
def test_every_origin_of_an_onnx_copy_is_a_published_id(
    id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_told", set())
    with pytest.warns(UserWarning, match=f"^Xenova/{id} is an ONNX copy of hf:"):
        origin = find_model(f"Xenova/{id}")
    assert origin.id in hf_known.KNOWN or id.endswith("-multilingual")


def test_an_onnx_copy_is_read_as_its_origin_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "_told", set())
    with pytest.warns(UserWarning, match="ONNX") as said:
        names = [str(find_model("Xenova/clip-vit-base-patch32")) for _ in range(2)]
    assert names == ["hf:openai/clip-vit-base-patch32"] * 2
    assert [str(one.message) for one in said] == [
        "Xenova/clip-vit-base-patch32 is an ONNX copy of hf:openai/clip-vit-base-patch32, which is "
        "loaded in its place"
    ]


def test_an_onnx_copy_of_unknown_origin_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        featprep.pipeline(TASK, "hf:Xenova/dinov2-bas")
    assert str(caught.value) == (
        "--model hf:Xenova/dinov2-bas: an ONNX copy for JavaScript, whose origin is not known "
        "here; name the model that it was made of. Did you mean Xenova/dinov2-base?"
    )


def test_a_task_or_setting_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        featprep.pipeline("feature-extraction")
    assert str(caught.value) == (
        "featprep.pipeline has no task 'feature-extraction'. Did you mean "
        "image-feature-extraction? There is: image-feature-extraction"
    )
    with pytest.raises(UsageError) as caught:
        featprep.pipeline(TASK, "hf:tiny", devise="cpu")
    assert str(caught.value) == (
        "image-feature-extraction has no setting 'devise'. Did you mean device? There are: size, "
        "resize, max_tokens, background, pos_embed, device, fp16, precision, batch_size, "
        "max_pixels, trust_weights, quick_gelu"
    )


# --- images, batches, streams


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
    array = np.asarray(photo(32, 32))
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
    assert str(caught.value).startswith("image 0 (an array of shape (3, 5, 5, 3)): an array of")


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
