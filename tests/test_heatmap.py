"""Texts in stored maps: cosines by hand, what is written where, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import featprep
import numpy as np
import pytest
from featprep import encoders
from featprep.cli import main
from featprep.encoders.base import LoadOptions
from featprep.encoders.tiny import write_tiny
from featprep.tasks.heatmap import Tally, cosines, segments
from featprep.tasks.heatmap_pictures import colour, heat, labels, picture
from PIL import Image

DARK, LIGHT = [0, 0, 4, 255], [252, 255, 164, 255]


def test_cosines_of_a_map_by_hand() -> None:
    feature = np.array([[[3, 0, 0]], [[4, 0, -2]]], np.float16)  # (2, 1, 3)
    texts = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = cosines(feature, texts)
    assert (found.shape, found.dtype) == ((2, 1, 3), np.float32)
    np.testing.assert_allclose(found[:, 0], [[0.6, 0, 0], [0.8, 0, -1]], rtol=1e-7)


def test_a_cell_belongs_to_its_highest_text_the_first_of_equals_and_none_outside_the_mask() -> None:
    found = np.array([[[0.1, 0.5], [0.2, 0.9]], [[0.3, 0.5], [0.1, 0.1]]], np.float32)
    assert segments(found, None).tolist() == [[1, 0], [0, 0]]
    mask = np.array([[0.0, 0.2], [1.0, 0.0]], np.float32)  # coverage
    assert segments(found, mask).tolist() == [[-1, 0], [0, -1]]


def test_a_tally_is_of_the_cells_that_count() -> None:
    tally = Tally.of_none(2)
    found = np.array([[[0.1, 0.9]], [[0.2, -0.5]]], np.float32)
    tally.add(found, np.array([[0, 0]], np.uint8))
    assert (tally.cells, tally.highest.tolist()) == (0, [0, 0])
    tally.add(found, np.array([[1, 0]], np.uint8))
    tally.add(found / 2, None)
    assert (tally.cells, tally.highest.tolist()) == (3, [1, 2])
    np.testing.assert_allclose((tally.least, tally.greatest), [[0.05, -0.25], [0.45, 0.2]])


def test_colours_run_between_the_cells_that_count() -> None:
    found = np.array([[0.2, 0.4, 9.0]], np.float32)
    mask = np.array([[1, 1, 0]], np.uint8)
    cells = heat(found, mask, None)
    assert cells[0, :2].tolist() == [DARK, LIGHT]
    assert cells[0, 2, 3] == 0
    assert heat(found, None, (0.4, 1.0))[0].tolist() == [DARK, DARK, LIGHT]
    assert heat(found, np.zeros((1, 3)), None)[..., 3].max() == 0


def test_segments_have_a_colour_each_and_none_outside() -> None:
    cells = labels(np.array([[1, -1, 0]], np.int16))
    assert cells[0].tolist()[::2] == [[*colour(1), 255], [*colour(0), 255]]
    assert cells[0, 1, 3] == 0


def test_over_an_image_the_cells_outside_the_mask_show_it_alone() -> None:
    pixels = np.full((3, 4, 8), 100, np.uint8)
    cells = np.array([[[255, 255, 255, 255], [255, 255, 255, 0]]], np.uint8)
    drawn = picture(cells, pixels)
    assert (drawn.size, drawn.mode) == ((672, 336), "RGB")
    assert drawn.getpixel((10, 10)) == (193, 193, 193)
    assert drawn.getpixel((660, 10)) == (100, 100, 100)


# --- the command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos: an opaque cat and, in a folder, one in a corner; features: their projected maps;
    mine: value maps of clip:mine=mine.pt; patch and dino: as runs of others say. Not to be changed.
    """
    root = tmp_path_factory.mktemp("heatmap")
    (root / "photos" / "sub").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 4), np.uint8)
    Image.fromarray(pixels[..., :3]).save(root / "photos" / "cat.png")
    pixels[..., 3] = 0
    pixels[40:, 60:, 3] = 255
    Image.fromarray(pixels).save(root / "photos" / "sub" / "corner.png")
    write_tiny("clip", root).rename(root / "mine.pt")
    encode(root, "clip:tiny", "features", "--feature", "projected", "--fp16")
    encode(root, f"clip:mine={root}/mine.pt", "mine", "--feature", "value")
    for output, said in (("patch", {}), ("dino", {"encoder": "hf:tiny"})):
        shutil.copytree(root / "features", root / output)
        file = root / output / ".featprep/run.json"
        run = json.loads(file.read_text())
        run["fingerprint"] |= {"feature": "patch", **said}
        file.write_text(json.dumps(run))
    return root


def encode(root: Path, model: str, output: str, *words: str) -> None:
    given = ["--input", f"{root}/photos", "--output", f"{root}/{output}", "--device", "cpu"]
    assert main(["encode", "--model", model, *given, "--quiet", *words]) == 0


def heatmap(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], list[str]]:
    capsys.readouterr()
    code = main(["heatmap", *words, "--quiet"])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err.splitlines()


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_several_texts_give_cosines_pictures_and_segments(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "where"
    texts = ["--text", "a red car", "--text", "sky / see"]
    code, lines, errors = heatmap(capsys, f"{made}/features", *texts, "--to", str(to))
    assert (code, errors) == (0, [])
    names = ["cat", "sub/corner"]
    assert files(to) == sorted(
        [
            "heatmap.json",
            *(f"{folder}/{name}.png" for folder in ("1_a_red_car", "2_sky_see") for name in names),
            *(f"segments/{name}.{end}" for end in ("npy", "png") for name in names),
            *(f"cosines/{name}.npy" for name in names),
        ]
    )
    tower = encoders.load_text(encoders.resolve("clip:tiny", "any"), LoadOptions())
    vectors = tower.encode_text(["a red car", "sky / see"])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with featprep.open(made / "features") as run:
        feature, mask, _ = run["sub/corner"]
    cells = feature.reshape(32, -1).astype(np.float32)
    expected = vectors @ (cells / np.linalg.norm(cells, axis=0))
    found = np.load(to / "cosines/sub/corner.npy")
    np.testing.assert_allclose(found, expected.reshape(2, 16, 16), atol=1e-5)
    nearest = np.load(to / "segments/sub/corner.npy")
    assert mask is not None
    assert (nearest[mask == 0] == -1).all()
    assert np.array_equal(nearest[mask > 0], found.argmax(0)[mask > 0])
    with Image.open(to / "1_a_red_car/sub/corner.png") as drawn:
        assert (drawn.size, drawn.mode) == ((336, 336), "RGBA")
        alpha = np.asarray(drawn)[10::21, 10::21, 3]
    assert np.array_equal(alpha > 0, mask > 0)
    cat = np.load(to / "cosines/cat.npy").reshape(2, -1)  # opaque
    cells = np.concatenate([cat, found[:, mask > 0]], axis=1)
    low, high, share = cells[0].min(), cells[0].max(), (cells[0] >= cells[1]).mean()
    assert lines[0] == (
        f"a red car  cosines {low:.3f} to {high:.3f}, highest in {share:.0%} of cells (#f23d3d)  "
        f"{to}/1_a_red_car"
    )


def test_over_draws_on_what_the_network_saw_and_goes_on_without_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "features", tmp_path / "features")
    about = tmp_path / "features/.featprep/run.json"
    (tmp_path / "photos").mkdir()
    shutil.copy(made / "photos/cat.png", tmp_path / "photos/cat.png")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"input": f"{tmp_path}/photos"}))
    code, _, errors = heatmap(capsys, f"{tmp_path}/features", "--text", "a", "--over")
    assert (code, errors) == (
        0,
        [
            f"note     sub/corner: without the image, {tmp_path}/photos/sub/corner.png: No such "
            "file or directory"
        ],
    )
    with Image.open(tmp_path / "features_heatmap/1_a/cat.png") as drawn:
        assert (drawn.size, drawn.mode) == ((448, 448), "RGB")
    with Image.open(tmp_path / "features_heatmap/1_a/sub/corner.png") as drawn:
        assert drawn.mode == "RGBA"


def test_a_damaged_map_is_named_and_the_rest_goes_on(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "features", tmp_path / "features")
    (tmp_path / "features/cat.npy").write_bytes(b"cut short")
    code, _, errors = heatmap(capsys, f"{tmp_path}/features", "--text", "a")
    assert code == 3
    assert errors[0].startswith("failed   cat: its result is damaged (")
    assert files(tmp_path / "features_heatmap/cosines") == ["sub/corner.npy"]


def test_local_weights_are_named_again_and_held_against_the_runs(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [f"{made}/mine", "cat", "--text", "a", "--to", str(tmp_path / "to")]
    assert heatmap(capsys, *asked)[::2] == (
        2,
        [
            f"featprep: {made}/mine: was made with clip:mine, local weights; name them: --model "
            "clip:mine=PATH"
        ],
    )
    other = tmp_path / "other.pt"
    change(made / "mine.pt", other)
    assert heatmap(capsys, *asked, "--model", f"clip:mine={other}")[::2] == (
        2,
        [
            f"featprep: --model clip:mine={other}: not the weights that made {made}/mine; give "
            "those, as --model clip:mine=PATH, or encode again"
        ],
    )
    assert not (tmp_path / "to").exists()
    assert heatmap(capsys, *asked, "--model", f"clip:mine={made}/mine.pt")[0] == 0
    assert files(tmp_path / "to/cosines") == ["cat.npy"]


def change(file: Path, to: Path) -> None:
    import torch

    tensors = torch.load(file, weights_only=True)
    tensors["visual.proj"] += 1
    torch.save(tensors, to)


@pytest.mark.parametrize(
    ("output", "words", "said"),
    [
        (
            "patch",
            ["--text", "a"],
            "{made}/patch: holds --feature patch maps of clip:tiny, which are not in the space of "
            "texts; encode into another folder with --model clip:tiny --feature projected or value",
        ),
        (
            "dino",
            ["--text", "a"],
            "{made}/dino: holds --feature patch maps of hf:tiny, which are not in the space of "
            "texts; that model has no text tower: encode with one that has, such as clip:ViT-B/16",
        ),
        ("features", [], 'texts: there are none; give --text "a red car"'),
        (
            "features",
            ["--text", "a", "--range", "0.3,0.1"],
            "--range 0.3,0.1: allowed are two cosines from -1 to 1, the lower first; for example "
            "--range 0.1,0.3",
        ),
        (
            "features",
            ["cap", "--text", "a"],
            "{made}/features: no result of key 'cap'. Did you mean cat? `ls {made}/features` shows "
            "what is there",
        ),
        (
            "features",
            ["--text", "a", "--model", "clip:ViT-B/32"],
            "--model clip:ViT-B/32: {made}/features was made with clip:tiny; drop --model, or name "
            "its weights, clip:tiny=PATH",
        ),
        (
            "features",
            ["--text", "a", "--to", "{made}/features/sub"],
            "--to {made}/features/sub: lies among the maps of {made}/features; name another",
        ),
        (
            "features",
            ["--text", "a", "--to", "{made}"],
            "--to {made}: holds other files; name a folder that is new or empty",
        ),
        (
            "features",
            ["--text", "a", "--to", "{made}/mine.pt"],
            "--to {made}/mine.pt: not a folder; name another",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    made: Path,
    capsys: pytest.CaptureFixture[str],
    output: str,
    words: list[str],
    said: str,
) -> None:
    given = [word.format(made=made) for word in words]
    code, lines, errors = heatmap(capsys, f"{made}/{output}", *given)
    assert (code, lines, errors) == (2, [], [f"featprep: {said.format(made=made)}"])


def test_the_same_again_writes_the_same_and_other_texts_want_another_folder(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    asked = [f"{made}/features", "--to", str(to)]
    assert heatmap(capsys, *asked, "--text", "a", "--text", "b")[0] == 0
    before = {file: (to / file).read_bytes() for file in files(to)}
    assert heatmap(capsys, *asked, "--text", "a", "--text", "b")[0] == 0
    assert {file: (to / file).read_bytes() for file in files(to)} == before
    assert heatmap(capsys, *asked, "--text", "b")[::2] == (
        2,
        [
            f"featprep: --to {to}: holds heatmaps of other texts, colours or maps; name another "
            "folder, or remove it first"
        ],
    )


def test_the_commands_and_the_python_of_the_page_run_as_they_stand(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "heatmap.md").read_text()
    shutil.copytree(made / "photos", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    (commands,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for line in commands.splitlines():
        assert main(shlex.split(line)[1:]) == 0
    (python,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(python, names)
    assert (names["cosines"].shape, names["segments"].shape) == ((3, 32, 32), (32, 32))
