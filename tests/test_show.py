"""One result as a picture: panels in order, components of the masked cells only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from featprep.cli import main
from featprep.show import GAP, GROUND, panels, principal_components
from PIL import Image


def test_the_first_component_is_the_direction_of_most_variance() -> None:
    feature = np.zeros((5, 2, 8), np.float32)
    feature[3] = np.arange(16).reshape(2, 8)  # one channel varies: red rises with it
    feature[1, 0, 0] = 0.1
    red = principal_components(feature, None)[:, :, 0].reshape(-1)
    assert red[0] == 0
    assert red[-1] == 255
    assert (np.diff(red.astype(int)) >= 0).all()


def test_cells_outside_the_mask_are_white_and_do_not_count() -> None:
    feature = np.random.default_rng(0).normal(size=(6, 4, 4)).astype(np.float32)
    mask = np.ones((4, 4), np.uint8)
    mask[0, 0] = 0
    plain = principal_components(feature, mask)
    feature[:, 0, 0] = 1e6
    spoilt = principal_components(feature, mask)
    assert (plain[0, 0] == 255).all()
    assert np.array_equal(plain, spoilt)


@pytest.mark.parametrize("cells", [0, 1, 2])
def test_few_or_no_masked_cells_still_give_a_picture(cells: int) -> None:
    mask = np.zeros((3, 3), np.uint8)
    mask.flat[:cells] = 1
    feature = np.random.default_rng(1).normal(size=(2, 3, 3)).astype(np.float16)
    assert principal_components(feature, mask).shape == (3, 3, 3)


def test_the_sheet_is_image_mask_and_map_side_by_side() -> None:
    pixels = np.zeros((3, 28, 56), np.uint8)
    pixels[0] = 255
    mask = np.array([[1, 0, 0, 0], [0, 0, 0, 1]], np.uint8)
    sheet = panels(pixels, mask, np.random.default_rng(0).normal(size=(4, 2, 4)))
    assert sheet.size == (3 * 672 + 2 * GAP, 336)
    assert sheet.getpixel((5, 5)) == (255, 0, 0)
    assert sheet.getpixel((672 + GAP + 5, 5)) == (255, 255, 255)
    assert sheet.getpixel((672 + GAP + 300, 5)) == (0, 0, 0)


def test_the_command_draws_a_result_and_refuses_an_unknown_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (output / ".featprep").mkdir(parents=True)
    Image.new("RGB", (16, 16), (0, 255, 0)).save(source / "cat.png")
    fingerprint = {
        "resize": "squash", "size": [16, 16], "patch": 8, "grid": [2, 2], "kernel": "bicubic",
        "rounding": "torchvision", "scale_to": None, "max_tokens": 9, "background": [0, 0, 0],
        "mask": "any", "alpha_threshold": 0.0,
    }  # fmt: skip
    run = {"fingerprint": fingerprint, "input": str(source)}
    (output / ".featprep" / "run.json").write_text(json.dumps(run))
    np.save(output / "cat.npy", np.random.default_rng(0).normal(size=(3, 2, 2)))
    line = json.dumps({"key": "cat", "source": "cat.png"})
    (output / ".featprep" / "results-all.jsonl").write_text(line + "\n")
    assert main(["show", str(output), "cat", "--out", str(tmp_path / "p.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/p.png  680×336\n"
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.getpixel((5, 5)) == (0, 255, 0)
    assert main(["show", str(output), "cap"]) == 2
    assert capsys.readouterr().err == (
        f"featprep: {output}: no result of key 'cap'. Did you mean cat? `ls {output}` shows what "
        "is there\n"
    )
    (output / "cat.npy").write_bytes(b"cut short")
    assert main(["show", str(output), "cat", "--out", str(tmp_path / "q.png")]) == 2
    assert capsys.readouterr().err == (
        f"featprep: {output}: the result of cat is damaged: remove cat.npy there, and the command "
        "that made it makes it again\n"
    )
    assert main(["show", str(output), "cat", "--out", str(tmp_path / "no" / "q.png")]) == 2
    assert capsys.readouterr().err == (
        f"featprep: --out {tmp_path}/no/q.png: no folder {tmp_path}/no; make it first\n"
    )
    assert main(["show", str(output), "cat", "--out", "cat.jpg"]) == 2
    assert capsys.readouterr().err == (
        "featprep: --out cat.jpg: the picture is a PNG; name it cat.png\n"
    )
    assert main(["show", str(source), "cat"]) == 2
    assert capsys.readouterr().err == (
        f"featprep: {source}: no featprep run here (no .featprep/run.json in it)\n"
    )


def test_the_mask_of_an_opaque_photo_has_a_frame() -> None:
    sheet = panels(None, np.ones((2, 2), np.uint8), np.zeros((3, 2, 2), np.float32))
    mask = np.asarray(sheet)[:, :336]
    assert (mask[1:-1, 1:-1] == 255).all()
    for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
        assert (edge == GROUND).all()
