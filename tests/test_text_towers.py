"""Text towers: each equal to its library's own encode_text, loaded alone, strictly, on request."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import text_checkpoints
import torch
from featprep import encoders
from featprep.encoders import openclip_text
from featprep.encoders.base import LoadOptions, ModelName
from featprep.encoders.openai_clip import import_clip
from featprep.encoders.openclip import import_open_clip
from featprep.encoders.openclip_cards import Card
from featprep.encoders.tiny import write_openclip, write_tiny
from featprep.errors import UsageError, WeightsError
from safetensors.torch import load_file, save_file
from text_checkpoints import KINDS

TEXTS = ["a photo of a cat", "the red house.", "dog", "a dog " * 60]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Not to be changed."""
    root = tmp_path_factory.mktemp("two-towers")
    return {kind: text_checkpoints.write(kind, root / kind) for kind in KINDS}


def load(value: str, **options: Any) -> Any:
    return encoders.load_text(encoders.resolve(value, "any"), LoadOptions(**options))


def refusal(value: str, error: type[Exception] = WeightsError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        load(value, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reference(kind: str, folder: Path, texts: list[str]) -> torch.Tensor:
    """get_text_features of transformers' whole model; of BLIP, what its forward pass does."""
    model, tokenizer = text_checkpoints.whole(kind, folder), text_checkpoints.tokenizer_of(folder)
    is_siglip = kind in ("siglip", "siglip2", "naflex")
    tokens = tokenizer(
        texts,
        padding="max_length" if is_siglip else True,
        max_length=64 if is_siglip else 24,
        truncation=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        if kind != "blip":
            return model.get_text_features(**tokens).pooler_output
        out = model.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)
        return model.text_proj(out.last_hidden_state[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_tower_of_every_kind_equals_transformers_own(
    kind: str, folders: dict[str, Path]
) -> None:
    tower = load(f"hf:test={folders[kind]}")
    ours = tower.encode_text(TEXTS)
    theirs = reference(kind, folders[kind], TEXTS).numpy()
    assert ours.shape == (4, tower.dim)
    assert ours.dtype == np.float32
    assert np.abs(theirs[0] - theirs[1]).max() > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_scale_and_bias_are_the_checkpoints(folders: dict[str, Path]) -> None:
    """The file says 2; of BLIP's files for retrieval, the config says ln(1 / 0.07)."""
    found = {}
    for kind in KINDS:
        tower = load(f"hf:test={folders[kind]}")
        found[kind] = (round(tower.scale, 4), tower.bias, tower.context, tower.dim)
    assert found == {
        "clip": (7.3891, None, 24, 24),
        "altclip": (7.3891, None, 24, 24),
        "siglip": (7.3891, -1.5, 64, 32),
        "siglip2": (7.3891, -1.5, 64, 32),
        "naflex": (7.3891, -1.5, 64, 32),
        "blip": (14.2849, None, 24, 24),
    }


def test_clips_text_tower_equals_clip_itself(tmp_path: Path) -> None:
    clip = import_clip()
    room: Any = importlib.import_module("clip.model")
    file = write_tiny("clip", tmp_path)
    tensors = torch.load(file, weights_only=True)
    model = room.build_model(dict(tensors)).float()
    model.load_state_dict(tensors)
    tower = load(f"clip:mine={file}")
    with torch.inference_mode():
        theirs = model.encode_text(clip.tokenize(TEXTS, truncate=True)).numpy()
    np.testing.assert_allclose(tower.encode_text(TEXTS), theirs, rtol=0, atol=1e-6)
    assert tower.scale == pytest.approx(float(tensors["logit_scale"].exp()))
    assert (tower.bias, tower.context, tower.dim) == (None, 77, 32)


_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
_HUBS = {**_TEXT, "vocab_size": 400, "hf_tokenizer_name": "org/name"}
OPEN_CLIP = {
    "own": {"text_cfg": _TEXT},
    "siglip": {
        "text_cfg": {
            **_HUBS,
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
        },
        "custom_text": True,
        "init_logit_bias": -10,
    },
    "coca": {
        "text_cfg": {**_TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**_TEXT, "dim_head": 64},
        "custom_text": True,
    },
    "roberta": {
        "text_cfg": {**_HUBS, "hf_model_name": "org/roberta", "hf_pooler_type": "mean_pooler"}
    },
}


@pytest.fixture
def roberta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for org/roberta of the hub, for our code and for open_clip's."""
    folder = tmp_path / "roberta"
    text_checkpoints.write_roberta_config(folder)
    fetch = openclip_text.hub.fetch

    def fetched(name: ModelName, repo: str, choices: Any) -> Any:
        own = ([folder / "config.json"], "here")
        return own if repo == "org/roberta" else fetch(name, repo, choices)

    monkeypatch.setattr(openclip_text.hub, "fetch", fetched)
    return folder


def open_clips_own(folder: Path, roberta: Path) -> Any:
    """open_clip's whole model of a folder, loaded by itself."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    text = config["model_cfg"]["text_cfg"]
    if "hf_model_name" in text:
        text |= {"hf_model_name": str(roberta), "hf_model_pretrained": False}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    return import_open_clip().create_model(f"local-dir:{folder}").eval()


def add_captions(folder: Path) -> None:
    """CoCa's decoder, of captions, and the pooling of its image tower."""
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    more = {"attentional_pool": True, "attn_pooler_heads": 8, "output_tokens": True}
    config["model_cfg"]["vision_cfg"] |= more
    file.write_text(json.dumps(config))
    settings = {key: item for key, item in config["model_cfg"].items() if key != "custom_text"}
    own = import_open_clip().CoCa(**settings).state_dict()
    held = load_file(folder / "open_clip_model.safetensors")
    save_file(own | {key: item for key, item in held.items() if not key.startswith("visual.")},
              folder / "open_clip_model.safetensors")  # fmt: skip


@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_open_clips_text_towers_equal_open_clip_itself(
    kind: str, roberta: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 32, "layers": 1}
    card = Card({"embed_dim": 24, "vision_cfg": vision, **OPEN_CLIP[kind]}, {}, kind == "own")
    folder = write_openclip(card, tmp_path / "model", has_text=True)
    if kind == "coca":
        add_captions(folder)
    for file in folders["blip"].glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    tower = load(f"openclip:test={folder}")
    ours = tower.encode_text(TEXTS)
    model = open_clips_own(folder, roberta)
    tokens = import_open_clip().get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.inference_mode():
        theirs = model.encode_text(tokens, normalize=False).numpy()
    assert np.abs(theirs[0] - theirs[1]).max() > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert tower.scale == pytest.approx(model.logit_scale.exp().item())
    assert (tower.bias is not None) == (kind == "siglip")
    assert tower.too_long(TEXTS) == TEXTS[3:]


@pytest.mark.parametrize("value", ["clip:tiny", "openclip:tiny"])
def test_tiny_has_a_text_tower(value: str) -> None:
    tower = load(value)
    vectors = tower.encode_text(["a cat", "a dog"])
    assert (tower.name, tower.origin, vectors.shape) == (value, "made here", (2, 32))
    assert np.isfinite(vectors).all()
    assert np.abs(vectors[0] - vectors[1]).max() > 0.1


def test_texts_beyond_the_context_are_named(folders: dict[str, Path]) -> None:
    """clip's context is 77 with both ends."""
    fits, long = "a " * 75, "a " * 76
    assert load("clip:tiny").too_long([fits, long, "a"]) == [long]
    assert load(f"hf:test={folders['blip']}").too_long(["cat " * 22, "cat " * 23]) == ["cat " * 23]


def test_more_texts_than_a_batch_give_each_its_vector() -> None:
    tower = load("clip:tiny")
    texts = [f"number {number}" for number in range(70)]
    vectors = tower.encode_text(texts)
    assert vectors.shape == (70, 32)
    assert tower.encode_text([]).shape == (0, 32)
    np.testing.assert_allclose(vectors[69:], tower.encode_text(texts[69:]), rtol=0, atol=1e-5)


def test_a_model_without_texts_is_refused_with_some_that_have_them() -> None:
    for value in ("hf:tiny", "timm:tiny", "torchvision:resnet50"):
        assert refusal(value, UsageError) == (
            f"--model {value}: no text tower; models of images and texts have one, such as "
            "clip:ViT-B/32, openclip:ViT-B-32/laion2b_s34b_b79k or "
            "hf:google/siglip-base-patch16-224 (featprep models shows which, under text)"
        )


def test_a_lacking_tensor_of_the_text_tower_is_an_error(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    lacking = {
        "clip": ("text_model.final_layer_norm.weight", "final_layer_norm.weight"),
        "siglip": ("logit_bias", "logit_bias"),
        "blip": ("text_proj.weight", None),
    }
    for kind, (key, named) in lacking.items():
        folder = tmp_path / kind
        folder.mkdir()
        for file in folders[kind].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        tensors = load_file(folder / "model.safetensors")
        del tensors[key]
        save_file(tensors, folder / "model.safetensors")
        said = refusal(f"hf:test={folder}")
        if named is not None:
            what = "scores depend" if kind == "siglip" else "texts depend"
            assert said == (
                f"hf:test: {folder} lacks {named}, on which {what}; get a whole copy of the "
                "checkpoint"
            )
        else:
            assert said.startswith(f"hf:test: the projection in {folder} does not fit its config")


def test_a_folder_without_a_tokenizer_says_what_to_put_there(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """transformers would make one that knows no word."""
    for file in folders["siglip2"].iterdir():
        if "token" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert refusal(f"hf:test={tmp_path}") == (
        f"hf:test: {tmp_path} holds no tokenizer, which texts need; put tokenizer_config.json and "
        "tokenizer.json of the checkpoint there"
    )


def test_the_image_tower_is_not_looked_at(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["clip"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {key: item for key, item in tensors.items() if not key.startswith("vis")}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors")
    whole, alone = load(f"hf:test={folders['clip']}"), load(f"hf:test={tmp_path}")
    assert whole.digest == alone.digest
    np.testing.assert_array_equal(whole.encode_text(TEXTS), alone.encode_text(TEXTS))


def test_the_digest_tells_text_towers_apart(folders: dict[str, Path]) -> None:
    name = ModelName("hf", "test", str(folders["clip"]))
    digests = {load(f"hf:test={folders[kind]}").digest for kind in KINDS}
    assert len(digests) == len(KINDS)
    assert encoders.load_text(name, LoadOptions()).digest in digests
