"""The certificate: what it asks, what it sees, what it says. Models are small and random."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
import transformers
from featprep import certify, cli, devices, published
from featprep.certify import Case, Verdict
from featprep.certify_cases import default_cases, generate_images
from featprep.commands import certify as command
from featprep.encoders import (
    FAMILIES,
    describe,
    huggingface,
    list_encoders,
    openai_clip,
    taps,
)
from featprep.encoders.base import LoadOptions, ModelName, Want
from featprep.encoders.hf_config import MODEL_TYPES
from featprep.encoders.hf_known import kind_of
from featprep.encoders.tiny import (
    TINY,
    write_folder,
    write_random,
    write_tiny,
)
from featprep.overhead import measure_overhead
from featprep.published import Published
from featprep.records import AnyArray, FeatureMaps, UInt8
from featprep.references import EXAMPLES, REFERENCES, open_reference
from featprep.references.base import normalised
from PIL import Image
from test_huggingface import SMALL

# One of every kind of module that is asked in its own way; test_openclip_taps has open_clip's.
KINDS = ["dinov2", "registers", "dinov3 convnext", "clip", "siglip", "blip", "vit"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelName]:
    """clip:'s tiny, and small ones of hf:, with weights on disk."""
    root = tmp_path_factory.mktemp("models")
    paths = {kind: write_folder(SMALL[kind], root / kind) for kind in KINDS}
    names = {kind: ModelName("hf", kind, str(path)) for kind, path in paths.items()}
    return {**names, "openai": ModelName("clip", "tiny", str(write_tiny("clip", root / "openai")))}


@pytest.fixture(scope="module")
def verdicts(models: dict[str, ModelName]) -> list[Verdict]:
    """Of clip:tiny: 130 comparisons."""
    return certify.certify(models["openai"])


@pytest.fixture
def certified(verdicts: list[Verdict], monkeypatch: pytest.MonkeyPatch) -> list[ModelName]:
    """Every model is what clip:tiny is; the names that were asked, whose weights were there."""
    asked: list[ModelName] = []

    def recall(name: ModelName, options: LoadOptions) -> list[Verdict]:
        assert name.path is None or Path(name.path).exists()
        asked.append(name)
        return verdicts

    monkeypatch.setattr(certify, "certify", recall)
    monkeypatch.setattr(certify, "certify_conversion", lambda name, _, load: recall(name, load))
    return asked


def maps(array: AnyArray) -> FeatureMaps:
    return FeatureMaps({0: array})


def broken(verdicts: list[Verdict]) -> set[str]:
    """What fails, without its sizes: 'query@1', 'prefix'."""
    found = (verdict.case.text(verdict.part) for verdict in verdicts if not verdict.is_within)
    return {text.partition(" ")[0] for text in found}


# --- what it asks


def test_every_kind_that_a_spec_says_it_has_is_asked_at_other_sizes_and_in_bfloat16() -> None:
    cases = default_cases(TINY["clip"])
    asked = {
        (case.height, case.width, case.compute): [
            other.want for other in cases
            if dataclasses.replace(other, want=case.want) == case
        ]
        for case in cases
    }  # fmt: skip
    every = [
        Want(),
        Want(layers=(0,)),
        Want(layers=(1,)),
        Want(layers=(2, 0, 1)),
        Want(norm="none"),
        Want(norm="final"),
        Want(layers=(0, 1), norm="final"),
        Want(feature="projected"),
        Want(feature="value"),
        Want(layers=(2, 0, 1), facet="query"),
        Want(layers=(2, 0, 1), facet="key"),
        Want(layers=(2, 0, 1), facet="value"),
        Want(prefix=True),
        Want(layers=(0, 1), prefix=True),
        Want(pooled=True),
    ]
    main = [Want(prefix=True, pooled=True), Want(feature="projected")]
    assert asked == {
        (224, 224, "float32"): main,
        (252, 252, "float32"): main,
        (112, 112, "float32"): every,
        (70, 42, "float32"): every,
        (42, 84, "float32"): every,
        (42, 84, "bfloat16"): every,
        (224, 224, "bfloat16"): main,
    }


def test_each_reduced_precision_of_a_device_is_asked_for_the_same() -> None:
    cases = default_cases(TINY["clip"], ["bfloat16", "float16"])
    halves = {
        compute: [case for case in cases if case.compute == compute]
        for compute in ("bfloat16", "float16")
    }
    assert len(halves["bfloat16"]) == 17
    assert halves["float16"] == [
        dataclasses.replace(case, compute="float16") for case in halves["bfloat16"]
    ]


def test_an_encoder_of_one_size_is_asked_at_no_other() -> None:
    spec = dataclasses.replace(TINY["hf"], fixed_size=True)
    sizes = {(case.height, case.width, case.pos_embed) for case in default_cases(spec)}
    assert sizes == {(518, 518, "transformers")}


def test_the_hubs_positions_are_asked_for_where_there_are_some() -> None:
    hub = [case for case in default_cases(TINY["hf"]) if case.pos_embed == "hub"]
    assert [(case.height, case.width) for case in hub] == [
        (518, 518),
        (266, 266),
        (70, 42),
        (42, 84),
    ]
    assert not any(case.pos_embed == "hub" for case in default_cases(TINY["clip"]))


def test_generated_images_are_the_same_every_time_and_unlike_each_other() -> None:
    images = generate_images(3, 14, 28)
    assert (images.shape, images.dtype) == ((3, 3, 14, 28), np.uint8)
    assert np.array_equal(images, generate_images(3, 14, 28))
    assert np.abs(images[0].astype(int) - images[1]).mean() > 10


def test_all_is_one_model_of_every_architecture_there_is() -> None:
    names = [f"{family}:{id}" for family, ids in EXAMPLES.items() for id in ids]
    assert set(names) <= set(list_encoders())
    assert EXAMPLES.keys() == REFERENCES.keys() == FAMILIES.keys()
    kinds = {kind_of(id) for id in EXAMPLES["hf"]}
    assert kinds == {kind for kind in MODEL_TYPES if not kind.endswith("vision_model")}


# --- what it finds


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_feature_equals_upstreams(kind: str, models: dict[str, ModelName]) -> None:
    check(certify.certify(models[kind]))


def test_every_kind_of_feature_equals_clips(verdicts: list[Verdict]) -> None:
    check(verdicts)


def check(verdicts: list[Verdict]) -> None:
    assert [verdict for verdict in verdicts if not verdict.is_within] == []
    own = [verdict.part for verdict in verdicts if verdict.is_own]
    assert own == ["neighbours", "order", "alone"] * 2  # in float32 and in bfloat16
    exact = [verdict for verdict in verdicts if not verdict.is_own and verdict.rule == "close"]
    assert max(verdict.difference.max_abs for verdict in exact) < 5e-6
    assert min(verdict.difference.rms for verdict in exact) > 1e-2


Break = Callable[[pytest.MonkeyPatch], None]


def swap_query_and_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(taps, "_FACETS", ("key", "query", "value"))


def drop_the_offset(patch: pytest.MonkeyPatch) -> None:
    kind = dataclasses.replace(MODEL_TYPES["dinov2"], hub_offset=0.0)
    patch.setitem(huggingface.MODEL_TYPES, "dinov2", kind)


def forget_the_norm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(huggingface.HuggingFaceEncoder, "_norm", lambda self, tokens: tokens)


def shift_positions(patch: pytest.MonkeyPatch) -> None:
    resample = openai_clip.of_square
    shift: Callable[..., Any] = lambda table, grid: resample(table, grid) * 1.001  # noqa: E731
    patch.setattr(openai_clip, "of_square", shift)


def take_the_block_before(patch: pytest.MonkeyPatch) -> None:
    blocks = huggingface.HuggingFaceEncoder.blocks.fget  # type: ignore[attr-defined]
    earlier = property(lambda self: [blocks(self)[0], *list(blocks(self))[:-1]])
    patch.setattr(huggingface.HuggingFaceEncoder, "blocks", earlier)


@pytest.mark.parametrize(
    ("kind", "breaking", "failing"),
    [
        ("dinov2", swap_query_and_key, {"query@0", "query@1", "key@0", "key@1"}),
        ("dinov2", drop_the_offset, {"patch@1"}),
        ("dinov2", forget_the_norm, {"patch@0", "patch@1", "prefix"}),
        ("siglip", take_the_block_before, {"patch@1", "query@1", "key@1", "value@1"}),
        ("openai", shift_positions, {"patch@0", "patch@1", "patch@2", "prefix", "pooled"}),
    ],
    ids=["facets", "hub positions", "norm", "layer", "positions"],
)
def test_a_wrong_map_is_seen_and_named(
    kind: str,
    breaking: Break,
    failing: set[str],
    models: dict[str, ModelName],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = describe(models[kind]) or TINY["clip"]
    small = [case for case in default_cases(spec) if case.height == 3 * spec.patch]
    cases = [case for case in small if not case.is_reduced]
    breaking(monkeypatch)
    assert failing <= broken(certify.certify(models[kind], cases))


def test_float32_allows_a_ten_thousandth_of_the_rms_or_of_one() -> None:
    reference = generate_images(1, 14, 28).astype(np.float32) / 255
    ours = reference.copy()
    ours[0, 0, 0, 0] += 2e-4
    (outside,) = certify.compare(Case(14, 28), maps(ours), maps(reference))
    (inside,) = certify.compare(Case(14, 28), maps(reference + 5e-5), maps(reference))
    (loud,) = certify.compare(Case(14, 28), maps(1000 * ours), maps(1000 * reference))
    assert (outside.is_within, inside.is_within, loud.is_within) == (False, True, False)
    assert outside.share == pytest.approx(2, rel=1e-2)
    assert loud.share == pytest.approx(2 / loud.difference.rms * 1000, rel=1e-2)


def test_reduced_precision_allows_a_cosine_of_999_thousandths() -> None:
    case = Case(14, 28, compute="bfloat16")
    reference = np.zeros((1, 2, 1, 1))
    reference[0, 0] = 1.0
    for sine, is_within in ((0.04, True), (0.05, False)):
        ours = np.asarray([(1 - sine**2) ** 0.5, sine]).reshape(1, 2, 1, 1)
        (verdict,) = certify.compare(case, maps(ours), maps(reference))
        assert verdict.is_within == is_within
        assert verdict.difference.cosine == pytest.approx((1 - sine**2) ** 0.5)


def test_of_an_unstable_network_ten_times_what_rounding_its_weights_does_is_allowed(
    models: dict[str, ModelName], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certify, "LEAST_COSINE", 1 - 1e-9)
    case = Case(48, 96, want=Want(prefix=True), compute="bfloat16")
    first, second = certify.certify(models["dinov2"], [case])
    for verdict in (first, second):
        assert 1e-6 < verdict.movement < 1e-3
        assert verdict.share == (1 - verdict.difference.cosine) / (10 * verdict.movement)
    assert first.movement != second.movement
    exact = Case(48, 96, want=Want(prefix=True))
    assert {verdict.movement for verdict in certify.certify(models["dinov2"], [exact])} == {0.0}


def test_the_worst_cells_count_apart_from_the_whole_map() -> None:
    reference = np.random.default_rng(0).normal(size=(1, 8, 10, 10))
    ours = reference.copy()
    ours[0, :, 0, :2] *= -1  # two cells of a hundred
    found = certify.measure(ours, reference)
    assert found.low_cosine == pytest.approx(-1)
    assert found.cosine > 0.9


def test_other_shapes_missing_parts_and_what_is_not_finite_are_never_within() -> None:
    reference = np.ones((2, 3, 4, 4))
    (verdict,) = certify.compare(Case(14, 28), maps(reference[:1]), maps(reference))
    assert not verdict.is_within
    assert verdict.part == "map@0 is (1, 3, 4, 4), not (2, 3, 4, 4)"
    pooled = FeatureMaps({0: reference}, pooled=np.ones((2, 3)))
    lacking = certify.compare(Case(14, 28), maps(reference), pooled)
    assert [item.part for item in lacking if not item.is_within] == ["pooled is (0,), not (2, 3)"]
    for compute in ("float32", "bfloat16"):
        case = Case(14, 28, compute=compute)  # type: ignore[arg-type]
        (verdict,) = certify.compare(case, maps(reference * np.nan), maps(reference))
        assert not verdict.is_within


def test_an_encoder_that_looks_at_its_neighbours_or_at_places_is_found() -> None:
    class Nosy(fakes.FakeEncoder):
        def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
            found = super().encode(pixels, want).map
            return FeatureMaps({0: found + found.mean(0, keepdims=True)})

    class Placed(fakes.FakeEncoder):
        def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
            found = super().encode(pixels, want).map
            return FeatureMaps({0: found + 1e-3 * np.arange(len(found)).reshape(-1, 1, 1, 1)})

    case = Case(16, 24)
    assert [v.part for v in certify.invariance(fakes.FakeEncoder(), case) if not v.is_within] == []
    nosy = certify.invariance(Nosy(), case)
    assert [v.part for v in nosy if not v.is_within] == ["neighbours", "alone"]
    placed = certify.invariance(Placed(scale=1e-3), case)
    assert [v.part for v in placed if not v.is_within] == ["order"]


def test_one_set_of_weights_gives_one_map_through_transformers_too(
    models: dict[str, ModelName],
) -> None:
    verdicts = certify.certify_conversion(models["openai"], "hf")
    assert broken(verdicts) == set()
    assert {"value", "query@0", "prefix", "pooled", "projected"} <= {
        verdict.case.text(verdict.part).partition(" ")[0] for verdict in verdicts
    }


# --- published figures


def test_published_tokens_are_those_of_the_checkpoints_own_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers' tests have them: its processor, its model, CLS and the first two cells."""
    folder = write_tiny("hf", tmp_path / "model")
    image = Image.fromarray(np.moveaxis(generate_images(1, 480, 640)[0], 0, -1))
    image.save(tmp_path / "cats.png")
    library: Any = transformers
    processor = library.BitImageProcessorPil.from_pretrained(folder)
    model = library.Dinov2Model.from_pretrained(folder)
    with torch.inference_mode():
        seen = model(processor(image, return_tensors="pt")["pixel_values"]).last_hidden_state
    values = seen[0, :3, :3].tolist()
    name = ModelName("hf", "test", str(folder))
    monkeypatch.setitem(published.PUBLISHED, "hf:test", Published(values, "here"))
    assert published.difference(name, str(tmp_path / "cats.png")) < 1e-5
    wrong = Published([values[0], values[2], values[1]], "here")
    monkeypatch.setitem(published.PUBLISHED, "hf:test", wrong)
    assert published.difference(name, str(tmp_path / "cats.png")) > 1e-2


def test_published_names_are_in_the_catalogue() -> None:
    assert set(published.PUBLISHED) <= set(list_encoders())


# --- overhead


@pytest.mark.parametrize("family", list(REFERENCES))
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_overhead_is_measured_in_pairs_against_a_module_that_runs(
    family: str, compute: Any, tmp_path: Path
) -> None:
    if family in TINY:
        name = ModelName(family, "tiny", str(write_tiny(family, tmp_path)))
    else:
        name = ModelName(family, "resnet18", str(write_random(f"{family}:resnet18", tmp_path)))
    found = measure_overhead(name, LoadOptions(compute=compute), batch=1, rounds=3)
    assert min(*found.ours.wall, *found.bare.wall, *found.ours.cpu, *found.bare.cpu) > 0
    assert found.added == [
        ours / bare - 1 for ours, bare in zip(found.ours.wall, found.bare.wall, strict=True)
    ]
    assert len(found.added) == len(found.added_cpu) == 3
    reference = open_reference(name)
    pixels = normalised(generate_images(1, *found.size), reference.mean, reference.std)
    with torch.inference_mode():
        out = reference.bare(compute)(pixels.to(getattr(torch, compute)))
    first = out[0] if isinstance(out, tuple) else getattr(out, "last_hidden_state", out)
    assert first.dtype == getattr(torch, compute)
    assert torch.isfinite(first).all()


# --- what it says


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("certified")
def test_the_table_has_a_line_a_model_and_the_json_every_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "certificate.json"
    assert cli.main(["certify", "clip:tiny", "--across", "--json", str(file)]) == 0
    out = lines(capsys)
    assert out[0].split() == ["model", "fp32", "max", "bf16", "1st", "pct", "neighb.",
                              "nearest", "to", "its", "bound"]  # fmt: skip
    assert out[1].split()[:2] == ["ok", "clip:tiny"]
    assert out[1].split()[5] == "same"
    assert out[2].split()[:4] == ["ok", "clip:tiny", "as", "hf:"]
    assert max(map(len, out)) <= 100
    assert out[-2:-1] == [
        "bounds: float32 within 1e-04 × max(1, rms of upstream's); bfloat16 cosine of a map at "
        "least 0.999"
    ]
    assert "comparisons in" in out[-1]
    read = json.loads(file.read_text())
    head = {key: read[key] for key in ("random", "layers", "device", "complete")}
    assert head == {"random": False, "layers": None, "device": "cpu", "complete": True}
    assert read["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert [model["model"] for model in read["models"]][:2] == ["clip:tiny", "clip:tiny as hf:"]
    whats = {row["what"] for row in read["models"][0]["comparisons"]}
    assert {"value 42×84 bf16", "pooled 224×224", "query@0 70×42", "order 70×42"} <= whats
    row = read["models"][0]["comparisons"][0]
    assert row.keys() == {
        "what", "batch", "rule", "within", "movement", "max_abs", "rms", "relative", "cosine",
        "low_cosine",
    }  # fmt: skip


@pytest.mark.usefixtures("certified")
def test_one_outside_tolerance_exits_with_one_and_names_what_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(certify, "LEAST_COSINE", 0.9999999)
    assert cli.main(["certify", "clip:tiny"]) == 1
    out = lines(capsys)
    assert out[1].split()[:2] == ["FAIL", "clip:tiny"]
    assert [line.split()[0] for line in out[2:-2]] == ["FAIL"] * 5
    assert out[-1].startswith("0 of 1 certified, 1 failed; ")
    assert cli.main(["certify", "clip:tiny", "--verbose"]) == 1
    assert len(lines(capsys)) == 4 + 130


def test_a_model_that_breaks_hides_no_later_one(
    verdicts: list[Verdict], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaking(name: ModelName, options: LoadOptions) -> list[Verdict]:
        if name.family == "hf":
            raise ValueError("no such\nthing")
        return verdicts

    monkeypatch.setattr(certify, "certify", breaking)
    assert cli.main(["certify", "hf:tiny", "clip:tiny"]) == 1
    out = lines(capsys)
    assert out[1].split(maxsplit=2) == ["FAIL", "hf:tiny", "ValueError: no such thing"]
    assert out[2].split()[:2] == ["ok", "clip:tiny"]


def test_what_is_done_stands_in_the_json_of_one_that_was_interrupted(
    verdicts: list[Verdict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: ModelName, options: LoadOptions) -> list[Verdict]:
        if name.family == "hf":
            raise KeyboardInterrupt
        return verdicts

    monkeypatch.setattr(certify, "certify", interrupted)
    file = tmp_path / "certificate.json"
    assert cli.main(["certify", "clip:tiny", "hf:tiny", "--json", str(file)]) == 130
    read = json.loads(file.read_text())
    assert [model["model"] for model in read["models"]] == ["clip:tiny"]
    assert read["complete"] is False


def test_on_a_gpu_both_halves_are_asked_and_its_name_reaches_the_encoder(
    verdicts: list[Verdict], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def recall(name: ModelName, options: LoadOptions) -> list[Verdict]:
        asked.append(options.device)
        return verdicts

    monkeypatch.setattr(certify, "certify", recall)
    monkeypatch.setattr(devices, "available_devices", lambda: ["cuda:0", "cpu"])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert cli.main(["certify", "clip:tiny", "--device", "gpu"]) == 0
    out = lines(capsys)
    assert asked == ["cuda:0"]
    assert out[0].split()[3] == "bf16/fp16"
    assert out[-2].endswith("bfloat16 and float16 cosine of a map at least 0.999")


def test_without_weights_nothing_is_certified_and_the_exit_code_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openai_clip, "CACHE", tmp_path)
    assert cli.main(["certify", "clip:ViT-B/32"]) == 2
    _, row, closing = lines(capsys)
    assert row == "none clip:ViT-B/32 no weights"
    assert closing.startswith(
        "0 of 1 certified, 0 failed, 1 without weights (see --random); 0 comparisons in "
    )
    assert cli.main(["certify", "clip:ViT-B/32", "--verbose"]) == 2
    assert "HF_HUB_OFFLINE closes downloads" in lines(capsys)[1]


def test_why_local_weights_are_refused_is_said_and_the_flag_it_names_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.pt"
    file.touch()
    assert cli.main(["certify", f"openclip:ViT-B-32={file}"]) == 2
    assert "a checkpoint does not say its activation; add --quick_gelu" in lines(capsys)[1]
    assert cli.main(["certify", f"openclip:ViT-B-32={file}", "--no_quick_gelu"]) == 2
    assert f"openclip:ViT-B-32: {file} is cut off at 0 bytes" in lines(capsys)[1]


def test_random_weights_certify_the_architecture_alone_and_are_removed(
    certified: list[ModelName], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["certify", "hf:facebook/dinov2-small", "--random", "--layers", "1"]
    assert cli.main(words) == 0
    first, _, row, _, _ = lines(capsys)
    assert first == "random weights: the architectures are certified, and no published checkpoint"
    assert row.split()[:2] == ["ok", "hf:facebook/dinov2-small"]
    (name,) = certified
    assert name.path is not None
    assert not Path(name.path).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "featprep certify: name models, or say --all; `featprep models` lists the names"),
        (
            ["--all", "clip:tiny"],
            "featprep certify: name models, or say --all; `featprep models` lists the names",
        ),
        (
            ["tiny"],
            "tiny: of which family? type hf:tiny; allowed is clip:tiny, hf:tiny, openclip:tiny, "
            "timm:tiny",
        ),
        (["clip:tiny", "--every"], "--every: it is for --all; add --all, or drop it"),
        (["clip:tiny", "--layers", "2"], "--layers 2: allowed is 1 or more, with --random"),
        (
            ["hf:org/name", "--random"],
            "--random: hf:org/name is no published architecture; allowed are the names that "
            "`featprep models` lists",
        ),
        (
            ["clip:ViT-B/32", "--random", "--image", "x"],
            "--image: its figures are of published weights; drop it, or --random",
        ),
        (
            ["clip:tiny", "--json", "/nowhere/x.json"],
            "--json /nowhere/x.json: no folder /nowhere; make it",
        ),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["certify", *words]) == 2
    assert capsys.readouterr().err == f"featprep: {message}\n"


def test_every_with_random_weights_takes_one_tag_of_each_architecture() -> None:
    every = [str(name) for name in command._names(command._read(["--all", "--every"]))]
    once = command._names(command._read(["--all", "--every", "--random"]))
    assert every == [name for name in list_encoders() if not name.endswith(":tiny")]
    assert [name.id for name in once if name.id.startswith("ViT-B-32/")] == ["ViT-B-32/openai"]
    assert {name.family for name in once} == set(FAMILIES)
