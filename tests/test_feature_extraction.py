"""featprep.pipeline("image-feature-extraction") against transformers' own models and pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import featprep
import numpy as np
import pytest
import torch
import transformers
from featprep.encoders import hf_known
from featprep.encoders.hf_building import quiet_transformers
from featprep.encoders.tiny import write_folder, write_tiny
from featprep.errors import UsageError
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


@pytest.mark.parametrize(
    ("keyword", "refusal"),
    [
        (
            "pol",
            "a call of image-feature-extraction takes no 'pol'. Did you mean pool? There are: "
            "pool, batch_size, return_tensors, timeout",
        ),
        (
            "size",
            "size is a setting of the pipeline, not of a call: give it to featprep.pipeline",
        ),
    ],
)
def test_a_call_says_which_keywords_it_takes(
    keyword: str, refusal: str, some: dict[str, Any]
) -> None:
    with pytest.raises(UsageError) as caught:
        some["siglip"]("no/such/file.png", **{keyword: 1})
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
