"""`featprep classify`: every image in order, broken ones named; one pass over images and texts."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import featprep
import numpy as np
import pytest
from featprep.cli import main
from featprep.encoders.text_tower import TextTower
from featprep.encoders.torch_encoder import TorchEncoder
from PIL import Image

WORDS = ["--model", "clip:tiny", "--labels", "cat, dog ,red car", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a, b/c and d are images, broken and not.png are none."""
    random = np.random.default_rng(0)
    (tmp_path / "in" / "b").mkdir(parents=True)
    for name in ("a.png", "b/c.png", "d.png"):
        pixels = random.integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_bytes(b"no")
    (tmp_path / "in" / "a.jpg").write_bytes((tmp_path / "in" / "a.png").read_bytes())
    return tmp_path / "in"


def classify(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], list[str]]:
    code = main(["classify", *words])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err.splitlines()


def test_a_folder_is_answered_in_order_and_a_broken_image_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, errors = classify(capsys, str(folder), *WORDS, "--top", "2", "--quiet")
    assert code == 3
    assert lines[::3] == ["a.jpg", "a.png", "d.png", "b/c.png"]
    assert {line.split("  ")[2] for line in lines if line.startswith("  ")} <= {
        "cat",
        "dog",
        "red car",
    }
    assert errors == [
        "failed   broken.png: decode: its bytes are of no known image (they begin 6e 6f); read are "
        "PNG, JPEG, WebP, BMP, TIFF, AVIF, GIF"
    ]


def test_json_has_what_the_pipeline_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = ["--template", "a {}", "--template", "one {} here"]
    code, lines, _ = classify(capsys, str(folder), *WORDS, "--json", *template)
    rows = [json.loads(line) for line in lines]
    assert (code, [row["image"] for row in rows]) == (
        3,
        ["a.jpg", "a.png", "broken.png", "d.png", "b/c.png"],
    )
    call = featprep.pipeline("zero-shot-image-classification", "clip:tiny", device="cpu")
    labels = ["cat", "dog", "red car"]
    expected = call([folder / "d.png"], labels, ["a {}", "one {} here"])[0]
    assert [row["label"] for row in rows[3]["labels"]] == [row["label"] for row in expected]
    np.testing.assert_allclose(
        [row["score"] for row in rows[3]["labels"]], [row["score"] for row in expected], rtol=1e-4
    )
    assert rows[2]["error"].startswith("its bytes are of no known image")


def test_one_pass_over_the_images_and_one_over_the_labels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    (folder / "broken.png").unlink()
    (tmp_path / "labels.txt").write_text("\ufeffone label\n\n" + "two label\n" + "long " * 90)
    texts, images = [], []
    encode_text, encode = TextTower.encode_text, TorchEncoder.encode
    monkeypatch.setattr(
        TextTower,
        "encode_text",
        lambda self, given: texts.extend(given) or encode_text(self, given),
    )
    monkeypatch.setattr(
        TorchEncoder,
        "encode",
        lambda self, pixels, want: images.append(len(pixels)) or encode(self, pixels, want),
    )
    words = [*WORDS, "--labels_file", str(tmp_path / "labels.txt"), "--batch_size", "2"]
    code, lines, errors = classify(capsys, str(folder), *words)
    assert (code, len(lines), images) == (0, 4 * 6, [2, 2])
    assert texts[:2] + texts[3:] == [
        f"This is a photo of {label}."
        for label in ("one label", "two label", "cat", "dog", "red car")
    ]
    assert re.fullmatch(
        r"done     4 images scored, 0 failed; [\d.]+ s, [\d.]+ images/s", errors.pop()
    )
    assert errors == [
        "scores   shares of 1 over 6 labels (softmax), clip:tiny",
        "note     clip:tiny has random weights: its scores carry no meaning",
        "note     1 text is longer than the 77 tokens of clip:tiny, and truncated: This is a photo "
        "of long long long long long long long long …",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--labels", "cat"],
            "--model is required: a model of images and texts, for example --model clip:ViT-B/32",
        ),
        (
            ["--model", "clip:tiny"],
            'labels: there are none; give --labels "cat,dog", or --labels_file FILE',
        ),
        (
            ["--model", "clip:tiny", "--labels", "cat,cat"],
            "labels: 'cat' stands there twice; give it once",
        ),
        (
            [*WORDS, "--top", "no"],
            "--top no: allowed is a whole number from 1 up; for example --top 5",
        ),
        (
            [*WORDS, "--labels_file", "/no/file"],
            "--labels_file /no/file: No such file or directory; give a text file, one label a line",
        ),
        (
            [*WORDS, "--template", "a photo"],
            "template 'a photo': {} must stand where the label goes; for example "
            "'This is a photo of {}.'",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert classify(capsys, str(folder), *words) == (2, [], [f"featprep: {said}"])


def test_a_model_without_texts_is_refused_with_what_there_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, errors = classify(capsys, str(folder), "--labels", "a", "--model", "timm:tiny")
    assert (code, lines) == (2, [])
    assert errors[0].startswith("featprep: --model timm:tiny: no text tower; models of images")


def test_the_commands_and_the_python_of_the_page_run_as_they_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "zero_shot.md").read_text()
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), (90, 60, 30)).save(tmp_path / "photos" / "cat.png")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    monkeypatch.chdir(tmp_path)
    (commands,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for line in commands.splitlines():
        code, lines, _ = classify(capsys, *shlex.split(line)[2:])
        assert (code, lines[0].startswith(("cat.png", '{"image": "cat.png"'))) == (0, True)
    (python,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(python, names)
    assert (len(names["rankings"]), len(names["ranking"])) == (2, 2)
