"""How a task's model may be named, and which settings it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import featprep
import pytest
from fakes import FakeEncoder, fake_session
from featprep.encoders import describe, hf_known
from featprep.errors import UsageError
from featprep.tasks import models
from featprep.tasks.feature_extraction import DEFAULT_MODEL
from featprep.tasks.models import find_model

TASK = "image-feature-extraction"


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
    is_unknown = id.endswith("-multilingual") or id.startswith("dino-")
    assert (origin.id in hf_known.KNOWN) != is_unknown


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
        "model='hf:Xenova/dinov2-bas': an ONNX copy for JavaScript, whose origin is not known "
        "here; name the model that it was made of. Did you mean Xenova/dinov2-base?"
    )


def test_a_task_or_setting_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        featprep.pipeline("feature-extraction")
    assert str(caught.value) == (
        "featprep.pipeline has no task 'feature-extraction'. Did you mean "
        "image-feature-extraction? There is: image-feature-extraction, "
        "zero-shot-image-classification"
    )
    with pytest.raises(UsageError) as caught:
        featprep.pipeline(TASK, "hf:tiny", devise="cpu")
    assert str(caught.value) == (
        "image-feature-extraction has no setting 'devise'. Did you mean device? There are: size, "
        "resize, max_tokens, background, pos_embed, device, fp16, precision, batch_size, "
        "max_pixels, allow_truncated, trust_weights, quick_gelu"
    )
