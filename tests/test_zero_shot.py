"""Zero-shot classification: scores equal to the libraries' own, label sets kept, clear refusals."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import featprep
import numpy as np
import pytest
import text_checkpoints
import torch
from featprep import certify
from featprep.encoders.openai_clip import import_clip
from featprep.encoders.openclip import import_open_clip
from featprep.encoders.tiny import write_tiny
from featprep.errors import ImageError, UsageError
from featprep.tasks import scores, urls
from featprep.tasks.zero_shot import KEPT_SETS, LabelVectors
from PIL import Image

TASK = "zero-shot-image-classification"
LABELS = ["cat", "dog", "red car", "house", "tree"]
TEMPLATE = "This is a photo of {}."
TEXTS = [TEMPLATE.format(label) for label in LABELS]
KINDS = [kind for kind in text_checkpoints.KINDS if kind != "naflex"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("two-towers")
    return {kind: text_checkpoints.write(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def tiny() -> Any:
    return featprep.pipeline(TASK, "clip:tiny", device="cpu")


def pictures(count: int, side: int) -> list[Image.Image]:
    """Of the network's own size: its recipe leaves their pixels alone."""
    arrays = certify.generate_images(count, side, side)
    return [Image.fromarray(array.transpose(1, 2, 0)) for array in arrays]


def by_label(ranking: list[dict[str, Any]], labels: list[str]) -> np.ndarray[Any, Any]:
    assert [row["score"] for row in ranking] == sorted((r["score"] for r in ranking), reverse=True)
    found = {row["label"]: row["score"] for row in ranking}
    return np.array([found[label] for label in labels])


def normal(images: list[Image.Image], mean: Any, std: Any) -> torch.Tensor:
    pixels = torch.tensor(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(item)[:, None, None] for item in (mean, std))
    return (pixels / 255 - mean) / std


def transformers_own(kind: str, folder: Path, images: list[Image.Image]) -> torch.Tensor:
    """(images, labels) by transformers' whole model, as its pipeline has it."""
    model, tokenizer = text_checkpoints.whole(kind, folder), text_checkpoints.tokenizer_of(folder)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    pixels = normal(images, processor["image_mean"], processor["image_std"])
    is_siglip = kind.startswith("siglip")
    settings: Any = {"padding": "max_length", "max_length": 64} if is_siglip else {"padding": True}
    tokens = tokenizer(TEXTS, truncation=True, return_tensors="pt", **settings)
    tokens.pop("token_type_ids", None)
    with torch.inference_mode():
        if kind == "blip":  # whose class for retrieval gives cosines alone
            scale = np.exp(model.config.logit_scale_init_value)
            out = model(pixel_values=pixels, use_itm_head=False, **tokens)
            return (scale * out.itm_score).softmax(-1)
        logits = model(pixel_values=pixels, **tokens).logits_per_image
        return logits.sigmoid() if is_siglip else logits.softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_transformers_own_model_on_the_same_pixels(
    kind: str, folders: dict[str, Path]
) -> None:
    images = pictures(3, 64)
    classify = featprep.pipeline(TASK, f"hf:test={folders[kind]}", device="cpu")
    ours = np.stack([by_label(each, LABELS) for each in classify(images, LABELS, TEMPLATE)])
    theirs = transformers_own(kind, folders[kind], images).numpy()
    assert theirs.std(axis=0).max() > 1e-3
    assert theirs.std(axis=1).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert np.allclose(ours.sum(axis=1), 1) == (not kind.startswith("siglip"))
    assert classify.kind_of_scores(1234) == (
        "a yes or no to each of 1,234 labels (sigmoid), which do not add up to 1"
        if kind.startswith("siglip")
        else "shares of 1 over 1,234 labels (softmax)"
    )


def test_scores_equal_clips_own_forward(tmp_path: Path) -> None:
    file, images = write_tiny("clip", tmp_path), pictures(2, 224)
    clip = import_clip()
    room: Any = importlib.import_module("clip.model")
    tensors = torch.load(file, weights_only=True)
    model = room.build_model(dict(tensors)).float()
    model.load_state_dict(tensors)
    classify = featprep.pipeline(TASK, f"clip:mine={file}", device="cpu")
    pixels = normal(images, classify.spec.mean, classify.spec.std)
    with torch.inference_mode():
        logits, _ = model(pixels, clip.tokenize(TEXTS))
    ours = np.stack([by_label(each, LABELS) for each in classify(images, LABELS, TEMPLATE)])
    np.testing.assert_allclose(ours, logits.softmax(-1).numpy(), rtol=0, atol=1e-5)


def test_scores_equal_open_clips_own(tmp_path: Path) -> None:
    folder, images = write_tiny("openclip", tmp_path), pictures(2, 224)
    model = import_open_clip().create_model(f"local-dir:{folder}").eval()
    tokens = import_open_clip().get_tokenizer(f"local-dir:{folder}")(TEXTS)
    classify = featprep.pipeline(TASK, f"openclip:mine={folder}", device="cpu")
    pixels = normal(images, classify.spec.mean, classify.spec.std)
    with torch.inference_mode():
        logits, _ = model.get_logits(pixels, tokens)
    ours = np.stack([by_label(each, LABELS) for each in classify(images, LABELS, TEMPLATE)])
    np.testing.assert_allclose(ours, logits.softmax(-1).numpy(), rtol=0, atol=1e-5)


# --- scores


def test_a_softmax_and_a_sigmoid_of_known_cosines() -> None:
    image, labels = np.array([3.0, 4.0]), np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    powers = np.exp([6.0, 8.0, 0.0])
    np.testing.assert_allclose(
        scores.probabilities(image, labels, 10.0, None), powers / powers.sum(), rtol=1e-12
    )
    np.testing.assert_allclose(
        scores.probabilities(image, labels, 10.0, -7.0),
        1 / (1 + np.exp([1.0, -1.0, 7.0])),
        rtol=1e-12,
    )
    assert scores.probabilities(image, labels, 1000.0, -5000.0).tolist()[2] == 0.0


def test_equal_scores_keep_the_order_of_the_labels() -> None:
    assert scores.ranked(np.array([0.1, 0.4, 0.4, 0.0, 0.4])) == [1, 2, 4, 0, 3]


def test_several_templates_are_averaged_and_renormalised() -> None:
    vectors = np.array([[[3.0, 0.0], [0.0, 2.0]], [[0.0, 5.0], [0.0, 1.0]]])  # templates, labels
    half = np.sqrt(0.5)
    np.testing.assert_allclose(scores.ensemble(vectors), [[half, half], [0, 1]], rtol=1e-12)


def test_the_vectors_of_a_label_are_those_of_its_sentences(tiny: Any) -> None:
    vectors = tiny._labels.of(("cat", "dog"), ("a {}", "the {} here"))
    texts = tiny._tower.encode_text(["a cat", "a dog", "the cat here", "the dog here"])
    expected = scores.ensemble(texts.reshape(2, 2, -1))
    np.testing.assert_allclose(vectors, expected, rtol=1e-6)


# --- calls


def test_one_gives_a_ranking_a_list_a_list_a_stream_an_iterator(tiny: Any) -> None:
    images = pictures(3, 80)
    one = tiny(images[0], LABELS)
    several = tiny(images, LABELS, batch_size=2)
    stream = tiny((image for image in images), LABELS, batch_size=2)
    assert {row["label"] for row in one} == set(LABELS)
    assert (len(several), next(stream)) == (3, several[0])
    assert list(stream) == several[1:]
    np.testing.assert_allclose(by_label(one, LABELS), by_label(several[0], LABELS), rtol=1e-4)


def test_a_broken_image_is_named_by_its_position(tiny: Any) -> None:
    with pytest.raises(ImageError) as caught:
        tiny([pictures(1, 80)[0], b"no image"], LABELS)
    assert str(caught.value).startswith("image 1 (8 bytes): ")


def test_the_time_limit_is_of_each_address(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, float]] = []

    def fetch(url: str, limits: Any) -> bytes:
        asked.append((url, limits.timeout_s))
        raise ImageError("as the test has it", "read")

    monkeypatch.setattr(urls, "fetch", fetch)
    with pytest.raises(ImageError) as caught:
        tiny("http://host/a.png", LABELS, timeout=7.5)
    assert str(caught.value) == "image 0 (http://host/a.png): as the test has it"
    with pytest.raises(UsageError) as refused:
        tiny("http://host/a.png", LABELS, timeout=0)
    assert str(refused.value) == "timeout=0: allowed is a number of seconds, up to 86400"
    assert asked == [("http://host/a.png", 7.5)]


class CountingTower:
    """Vectors without a model: the length of a text, and one."""

    name, dim, context, scale, bias, digest, origin = "fake", 2, 5, 1.0, None, "", ""

    def __init__(self) -> None:
        self.weights_files: dict[str, str] = {}
        self.asked: list[list[str]] = []

    def encode_text(self, texts: Any) -> Any:
        self.asked.append(list(texts))
        return np.array([[len(text), 1] for text in texts], np.float32)

    def too_long(self, texts: Any) -> list[str]:
        return [text for text in texts if len(text) > self.context]


def test_the_texts_of_a_label_set_are_encoded_once_and_the_last_few_sets_are_kept() -> None:
    tower = CountingTower()
    kept = LabelVectors(tower)
    kept.of(("a", "b"), ("{}",))
    kept.of(("a", "b"), ("{}",))
    assert tower.asked == [["a", "b"]]
    kept.of(("a", "b"), ("x {}", "{}"))
    assert tower.asked[1:] == [["x a", "x b", "a", "b"]]
    for number in range(KEPT_SETS):
        kept.of((str(number),), ("{}",))
    kept.of(("a", "b"), ("{}",))
    assert len(tower.asked) == 3 + KEPT_SETS


def test_long_labels_are_truncated_with_one_warning() -> None:
    kept = LabelVectors(CountingTower())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        kept.of(("short", "longer one", "longer two"), ("{}",))
        kept.of(("short", "longer one", "longer two"), ("{}",))
        kept.of(("longer",), ("{}",))
    assert [str(each.message) for each in told] == [
        "2 texts are longer than the 5 tokens of fake, and truncated: longer one",
        "1 text is longer than the 5 tokens of fake, and truncated: longer",
    ]


@pytest.mark.parametrize(
    ("labels", "template", "said"),
    [
        ([], "{}", "labels: there are none; give candidate_labels=[…]"),
        ("cat,dog", "{}", "labels: str is no list of texts; give candidate_labels=[…]"),
        (["a", " "], "{}", "labels: number 2 is ' '; allowed are texts, such as 'cat'"),
        ([3], "{}", "labels: number 1 is 3; allowed are texts, such as 'cat'"),
        (["a", "b", "a"], "{}", "labels: 'a' stands there twice; give it once"),
        (
            ["a"],
            "a photo",
            "template 'a photo': {} must stand where the label goes; for example "
            "'This is a photo of {}.'",
        ),
        (["a"], [], "templates: there are none; for example 'This is a photo of {}.'"),
    ],
)
def test_bad_labels_and_templates_are_refused_before_any_image_is_read(
    tiny: Any, labels: Any, template: Any, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        tiny("/no/such/image.png", labels, template)
    assert str(caught.value) == said


def test_a_model_without_texts_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        featprep.pipeline(TASK, "hf:tiny")
    assert str(caught.value).startswith("model='hf:tiny': no text tower; models of images and")


def test_a_keyword_that_there_is_not_is_refused(tiny: Any) -> None:
    with pytest.raises(UsageError) as caught:
        tiny("/no/such/image.png", LABELS, hypothesis_templates="{}")
    assert str(caught.value) == (
        "a call of zero-shot-image-classification takes no 'hypothesis_templates'. Did you mean "
        "hypothesis_template? There are: candidate_labels, hypothesis_template, batch_size, timeout"
    )
