"""Several encoders in one pass: images decoded once, results as if each encoder were alone."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import featprep
import numpy as np
import pytest
from fakes import DEEP, SPEC, FakeEncoder
from featprep import decoding
from featprep.config import make_config, parse_value
from featprep.errors import InputError, UsageError
from featprep.ledger import Ledger, LedgerOptions, RunIdentity
from featprep.naming import folder_of_encoder
from test_encode_run import Bench, bench  # noqa: F401 (a fixture)

BOTH = ("--model", "clip:tiny,hf:tiny", "--size", "32")
COARSE = replace(SPEC, name="fake:coarse", patch=16)


@pytest.fixture
def two(bench: Bench) -> Bench:  # noqa: F811
    """clip:tiny has cells of 8 pixels and four layers, hf:tiny one layer of 16."""
    bench.encoder = FakeEncoder(spec=DEEP)
    bench.others = {"hf": FakeEncoder(spec=COARSE, digest="e" * 64)}
    return bench


def _decoded(two: Bench) -> list[str]:
    """Names of the images that are decoded from here on."""
    names: list[str] = []
    real = decoding._read

    def read(ref, most):  # noqa: ANN001, ANN202
        names.append(ref.key)
        return real(ref, most)

    two.monkeypatch.setattr(decoding, "_read", read)
    return names


def test_each_encoder_writes_what_it_would_write_alone_and_images_are_decoded_once(
    two: Bench,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 4), dtype=np.uint8)
    (two.input / "sub").mkdir()
    from PIL import Image

    Image.fromarray(pixels).save(two.input / "sub" / "a.png")
    two.image("b.png", (10, 20, 30, 40))
    decoded = _decoded(two)
    assert two.run(*BOTH, "--save_meta") == 0
    assert sorted(decoded) == ["b", "sub/a"]
    together = two.tree()
    assert {name.split("/")[0] for name in together} == {"clip_tiny", "hf_tiny"}
    alone = {}
    for model in ("clip:tiny", "hf:tiny"):
        flags = ("--model", model, "--size", "32", "--save_meta")
        folder = two.root / "alone" / folder_of_encoder(model)
        assert two.run(*flags, "--output", str(folder)) == 0
        alone |= {
            f"{folder.name}/{path.relative_to(folder)}": path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and ".featprep" not in path.parts
        }
        mine = json.loads((two.output / folder.name / ".featprep/run.json").read_text())
        other = json.loads((folder / ".featprep/run.json").read_text())
        assert mine == other
    assert together == alone
    assert two.load("clip_tiny/b_mask.npy").shape == (4, 4)
    assert two.load("hf_tiny/b_mask.npy").shape == (2, 2)
    with featprep.open(two.output / "hf_tiny") as run:
        assert list(run) == ["b", "sub/a"]
    with pytest.raises(InputError) as error:
        featprep.open(two.output)
    assert str(error.value) == (
        f"{two.output}: no featprep run here (no .featprep/run.json in it); give one encoder's "
        "folder in it: clip_tiny, hf_tiny"
    )


def test_what_is_done_for_one_is_decoded_for_the_other_alone(two: Bench) -> None:
    for name in "abc":
        two.image(f"{name}.png", (ord(name), 0, 0))
    two.run(*BOTH)
    os.unlink(two.output / "hf_tiny/b.npy")
    os.unlink(two.output / "hf_tiny/c.npy")
    os.unlink(two.output / "clip_tiny/c.npy")
    two.encoder.calls.clear()
    two.others["hf"].calls.clear()
    decoded = _decoded(two)
    assert two.run(*BOTH, "--batch_size", "1") == 0
    assert sorted(decoded) == ["b", "c"]
    assert (len(two.encoder.calls), len(two.others["hf"].calls)) == (1, 2)
    assert "done     clip_tiny: 1 encoded, 2 skipped, 0 failed\n" in two.said
    assert "done     hf_tiny: 2 encoded, 1 skipped, 0 failed\n" in two.said
    assert "in all   3 encoded, 3 skipped, 0 failed, of 2 encoders\n" in two.said
    assert two.load("hf_tiny/c.npy")[0, 0, 0] == ord("c")


def test_images_of_other_sizes_go_down_the_queues_of_both(two: Bench) -> None:
    sizes = {"a": (32, 48), "b": (48, 32), "c": (32, 48), "d": (64, 64)}
    for name, size in sizes.items():
        two.image(f"{name}.png", (ord(name), 0, 0), size)
    flags = ("--model", "clip:tiny,hf:tiny", "--resize", "keep", "--batch_size", "2")
    assert two.run(*flags) == 0
    for name, (width, height) in sizes.items():
        for folder, patch in (("clip_tiny", 8), ("hf_tiny", 16)):
            found = two.load(f"{folder}/{name}.npy")
            assert found.shape == (3, height // patch, width // patch)
            assert (found[0] == ord(name)).all()
    assert len(two.encoder.calls) == len(two.others["hf"].calls) == 3


def test_an_image_that_does_not_decode_fails_in_each_and_the_code_is_three(two: Bench) -> None:
    two.image("a.png")
    (two.input / "b.png").write_bytes(b"broken")
    assert two.run(*BOTH, "--summary", str(two.root / "figures.json")) == 3
    for folder in ("clip_tiny", "hf_tiny"):
        text = (two.output / folder / ".featprep/failures.jsonl").read_text()
        assert [json.loads(line)["key"] for line in text.splitlines()] == ["b"]
        failures = two.output / folder / ".featprep/failures.jsonl"
        assert f"done     {folder}: 1 encoded, 0 skipped, 1 failed: {failures}\n" in two.said
    figures = json.loads((two.root / "figures.json").read_text())
    assert (figures["images"], figures["encoded"], figures["failed"]) == (2, 2, 2)
    assert figures["results_per_s"] > 0
    assert " results/s; busy: " in two.said
    assert figures["encoders"]["hf_tiny"] == {
        "encoder": "fake:coarse", "images": 2, "encoded": 1, "skipped": 0, "failed": 1,
        "batch_size": 4, "size": [32, 32], "notes": {},
    }  # fmt: skip
    assert "encoder" not in figures


def test_what_one_encoder_cannot_encode_fails_in_its_own_results_alone(two: Bench) -> None:
    two.image("a.png", (255, 255, 255))
    two.others["hf"].scale = 1000.0
    assert two.run(*BOTH, "--fp16") == 3
    assert sorted(two.tree()) == ["clip_tiny/a.npy", "clip_tiny/a_mask.npy"]
    assert not (two.output / "clip_tiny/.featprep/failures.jsonl").exists()


def test_out_of_memory_of_one_halves_its_own_batches_alone(two: Bench) -> None:
    for name in "abcd":
        two.image(f"{name}.png", (ord(name), 0, 0))
    two.others["hf"].room = 2
    assert two.run(*BOTH) == 0
    assert "memory   hf_tiny: the device is full: going on with batches of 2" in two.said
    assert [shape[0] for shape in two.encoder.calls] == [4]
    assert [shape[0] for shape in two.others["hf"].calls] == [4, 2, 2]


def test_a_setting_that_one_encoder_lacks_is_refused_by_its_name_before_any_work(
    two: Bench,
) -> None:
    two.image("a.png")
    two.opener = lambda *_, **__: pytest.fail("the weights were loaded")
    assert two.run(*BOTH, "--pooled") == 2
    assert two.said == (
        "featprep: --pooled: fake:coarse has no pooled vector; there is --prefix or --masked_pool\n"
    )
    assert not two.output.exists()


def test_other_settings_in_one_folder_are_refused_and_the_other_is_not_touched(two: Bench) -> None:
    two.image("a.png")
    two.run("--model", "hf:tiny", "--size", "64", "--output", str(two.output / "hf_tiny"))
    before = two.tree()
    assert two.run(*BOTH) == 2
    assert f"{two.output}/hf_tiny holds features of other settings: --size 64 there" in two.said
    assert two.tree() == before
    assert not (two.output / "clip_tiny").exists()


def test_a_run_at_work_in_one_folder_stops_all_before_overwrite_removes_anything(
    two: Bench,
) -> None:
    two.image("a.png")
    two.run(*BOTH)
    before = two.tree()
    run = json.loads((two.output / "hf_tiny/.featprep/run.json").read_text())
    identity = RunIdentity(run["fingerprint"], run["input"])
    output = str(two.output / "hf_tiny")
    with Ledger(output, identity, LedgerOptions(), lambda count, keys, older: None):
        assert two.run(*BOTH, "--background", "white", "--overwrite") == 2
    assert f"pid {os.getpid()}" in two.said
    assert str(two.output / "hf_tiny") in two.said
    assert "remove" not in two.said
    assert two.tree() == before
    assert two.run(*BOTH) == 0
    assert "in all   0 encoded, 2 skipped, 0 failed, of 2 encoders" in two.said


def test_overwrite_replaces_the_results_of_both(two: Bench) -> None:
    two.image("a.png", (100, 100, 100, 0))
    two.run(*BOTH)
    assert two.run(*BOTH, "--background", "white", "--overwrite") == 0
    assert two.said.count("remove   1 results of other settings in") == 2
    assert two.load("clip_tiny/a.npy")[0, 0, 0] == 255
    assert two.load("hf_tiny/a.npy")[0, 0, 0] == 255


def test_the_lines_name_each_encoder_and_its_folder(two: Bench) -> None:
    two.image("a.png")
    assert two.run(*BOTH) == 0
    lines = two.said.splitlines()
    assert lines[0] == (
        "encoder  fake:deep  (3, 4, 4) at 32×32  weights ffffffff (made here)  in clip_tiny/"
    )
    assert lines[2] == (
        "encoder  fake:coarse  (3, 2, 2) at 32×32  weights eeeeeeee (made here)  in hf_tiny/"
    )
    assert lines[4] == (
        f"input    {two.input}  1 image for 2 encoders, 0 done before, 772 B to write"
    )
    assert lines[5].startswith("shapes   clip_tiny: pixels (4,3,32,32), 1 image and padding → ")
    assert lines[6].startswith("shapes   hf_tiny: pixels (4,3,32,32), 1 image and padding → ")


def test_the_plan_has_lines_for_each_and_a_sum(two: Bench) -> None:
    two.image("a.png")
    two.image("b.png")
    two.run("--model", "hf:tiny", "--size", "32", "--limit", "1",
            "--output", str(two.output / "hf_tiny"))  # fmt: skip
    assert two.run(*BOTH, "--plan") == 0
    assert two.said.splitlines() == [
        f"input       {two.input}  2 images",
        "encoder     clip_tiny",
        "there       0 results; 2 missing",
        "to write    928 B: 2 × (3,4,4) float32, 464 B each",
        "encoder     hf_tiny",
        "there       1 results; 1 missing",
        "to write    308 B: 1 × (3,2,2) float32, 308 B each",
        f"in all      1.2 kB in 2 folders of {two.output}",
        "collisions  none",
    ]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "clip:tiny,clip:tiny",
            "--model clip:tiny,clip:tiny: two of them would write to the folder clip_tiny; name "
            "each once",
        ),
        (
            "clip:tiny,hf:a/b,hf:A/b",
            "--model clip:tiny,hf:a/b,hf:A/b: two of them would write to the folder hf_a_b; name "
            "each once",
        ),
        ("clip:tiny,", "--model clip:tiny,: a name is empty; drop the comma too many"),
        ("a, ,b", "--model a, ,b: a name is empty; drop the comma too many"),
    ],
)  # fmt: skip
def test_lists_of_models_that_cannot_be_are_refused(two: Bench, model: str, message: str) -> None:
    two.image("a.png")
    assert two.run("--model", model, "--size", "32") == 2
    assert two.said == f"featprep: {message}\n"


def test_a_name_that_is_not_known_says_how_a_comma_is_written(two: Bench) -> None:
    two.image("a.png")
    assert two.run("--model", "clip:tiny,tony", "--size", "32") == 2
    assert two.said.endswith(
        "(one of --model clip:tiny,tony; what has a comma of its own stands in a YAML list, "
        "model: [A, B])\n"
    )


def test_the_results_of_one_encoder_are_no_place_for_several(two: Bench) -> None:
    two.image("a.png")
    two.run("--size", "32")
    assert two.run(*BOTH) == 2
    assert two.said.splitlines()[-1] == (
        f"featprep: --output {two.output}: holds the results of one encoder, and of several each "
        "gets a folder in the output; use another --output"
    )


def test_a_folder_that_holds_runs_or_lies_in_one_is_no_place_for_another_run(two: Bench) -> None:
    two.image("a.png")
    assert two.run(*BOTH) == 0
    before, one = two.tree(), f"{two.output}/clip_tiny"
    assert two.run("--size", "32") == 2
    assert two.said == (
        f"featprep: --output {two.output}: holds folders with the results of other runs: "
        f"clip_tiny, hf_tiny; use another --output, or --output {one} to go on with that one\n"
    )
    assert two.run("--size", "32", "--output", f"{one}/sub") == 2
    assert two.said == (
        f"featprep: --output {one}/sub: lies in {one}, which holds the results of another run; "
        "use an --output outside it\n"
    )
    assert two.run("--size", "32", "--output", one) == 0
    assert two.run(*BOTH) == 0
    assert two.tree() == before


def test_a_path_with_a_comma_is_one_model_and_in_a_yaml_list_one_of_several(
    tmp_path: Path,
) -> None:
    weights = tmp_path / "a,b.pt"
    weights.touch()
    assert parse_value("model", f"clip:x={weights}") == f"clip:x={weights}"
    assert parse_value("model", "a, b") == ("a", "b")
    config = tmp_path / "run.yaml"
    config.write_text(f"input: i\noutput: o\nmodel: [hf:tiny, 'clip:x={weights}']\n")
    assert make_config({}, str(config)).model == ("hf:tiny", f"clip:x={weights}")


def test_folder_names_are_readable_and_safe() -> None:
    names = {
        "hf:facebook/dinov2-base": "hf_facebook_dinov2-base",
        "clip:ViT-L/14@336px": "clip_ViT-L_14@336px",
        "openclip:ViT-B-32/laion2b_s34b_b79k": "openclip_ViT-B-32_laion2b_s34b_b79k",
        "hf:../../x y\n": "hf_.._.._x_y_",
    }
    assert {name: folder_of_encoder(name) for name in names} == names


def test_from_python_several_are_refused_with_what_to_do() -> None:
    asked: list[Any] = [["hf:tiny", "clip:tiny"], "hf:tiny,clip:tiny"]
    for models in asked:
        with pytest.raises(UsageError) as error:
            featprep.encode(b"", model=models)
        assert str(error.value) == (
            f"featprep.encode takes one encoder, and not model={models!r}: give "
            "model='FAMILY:NAME', and call it for each in turn"
        )
    with pytest.raises(UsageError) as error:
        featprep.pipeline("image-feature-extraction", "hf:tiny,clip:tiny")
    assert str(error.value) == (
        "image-feature-extraction takes one encoder, and not model='hf:tiny,clip:tiny': make a "
        "pipeline of each"
    )
