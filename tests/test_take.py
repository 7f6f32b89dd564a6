"""What to take from an encoder, end to end with one that can be computed by hand: layers, vectors,
their files, values, names and order."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import featprep
import numpy as np
import pytest
from fakes import DEEP, FakeEncoder, mean_colours
from featprep.encoders.base import Stage
from featprep.errors import UsageError
from PIL import Image
from test_encode_run import Bench, bench  # noqa: F401 (a fixture)

ALL = ("--size", "32", "--layer", "-1,2,0", "--prefix", "--pooled", "--masked_pool")


@pytest.fixture
def deep(bench: Bench) -> Bench:  # noqa: F811
    bench.encoder = FakeEncoder(spec=DEEP)
    return bench


def _picture(deep: Bench, name: str = "a.png") -> np.ndarray:
    """32×32 of random colours, its left half transparent; (3, 32, 32) as the network sees it."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    pixels[:, :16, 3], pixels[:, 16:, 3] = 0, 255
    Image.fromarray(pixels).save(deep.input / name)
    return (pixels[:, :, :3] * (pixels[:, :, 3:] > 0)).transpose(2, 0, 1)


def test_layers_and_vectors_stand_beside_the_map_with_the_values_of_a_hand_count(
    deep: Bench,
) -> None:
    pixels = _picture(deep)
    assert deep.run(*ALL, "--save_meta") == 0
    assert list(deep.tree()) == [
        "a.json", "a.npy", "a@0.npy", "a@2.npy", "a_mask.npy", "a_vec.npz",
    ]  # fmt: skip
    colours = mean_colours(pixels[None])[0]
    assert np.array_equal(deep.load("a.npy"), colours)
    assert np.array_equal(deep.load("a@0.npy"), colours)
    assert np.array_equal(deep.load("a@2.npy"), colours * 3)
    vectors = dict(deep.load("a_vec.npz"))
    assert list(vectors) == ["prefix", "pooled", "masked", "masked@0", "masked@2", "empty"]
    assert {array.dtype.name for array in vectors.values()} == {"float32", "bool"}
    cls = pixels.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
    assert np.array_equal(vectors["prefix"], [cls, [7.0, 7.0, 7.0]])
    assert np.array_equal(vectors["pooled"], pixels[:, 0, 0])
    inside = pixels[:, :, 16:].mean(axis=(1, 2), dtype=np.float64)
    assert vectors["masked"] == pytest.approx(inside, rel=1e-6)
    assert vectors["masked@2"] == pytest.approx(3 * inside, rel=1e-6)
    assert vectors["empty"].shape == ()
    assert not vectors["empty"]
    meta = json.loads((deep.output / "a.json").read_text())
    assert (meta["layer"], meta["norm"]) == ([3, 0, 2], ["final", "none", "none"])
    assert (meta["prefix"], meta["pooled"], meta["masked_pool"]) == (True, True, True)
    assert "facet" not in meta


def test_only_the_arrays_that_were_asked_for_are_written(deep: Bench) -> None:
    _picture(deep)
    assert deep.run("--size", "32", "--pooled", "--fp16") == 0
    assert list(deep.tree()) == ["a.npy", "a_mask.npy", "a_vec.npz"]
    vectors = deep.load("a_vec.npz")
    assert vectors.files == ["pooled"]
    assert vectors["pooled"].dtype == np.float16


def test_the_mean_of_no_cell_is_zeros_and_says_so(deep: Bench) -> None:
    deep.image("a.png", (200, 100, 50, 0))
    assert deep.run("--size", "32", "--masked_pool") == 0
    vectors = deep.load("a_vec.npz")
    assert vectors["masked"].tolist() == [0.0, 0.0, 0.0]
    assert vectors["empty"]


def test_coverage_weights_the_mean(deep: Bench) -> None:
    pixels = np.zeros((8, 16, 4), np.uint8)
    pixels[:, :8] = (100, 0, 0, 255)
    pixels[:, 8:] = (255, 0, 0, 51)  # a fifth of 255: seen as 51 on black, with weight 0.2
    Image.fromarray(pixels).save(deep.input / "a.png")
    assert deep.run("--size", "8,16", "--masked_pool", "--mask", "coverage") == 0
    expected = (100 + 0.2 * 51) / 1.2
    assert deep.load("a_vec.npz")["masked"] == pytest.approx([expected, 0, 0], rel=1e-6)


def test_the_map_comes_last_and_what_a_full_disk_cut_goes_on(
    deep: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    _picture(deep)
    order: list[str] = []
    real = os.rename

    def rename(source: str, target: str) -> None:
        order.append(os.path.basename(target))
        if order[-1] == "a_vec.npz" and order.count("a_vec.npz") == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    assert deep.run(*ALL) == 4
    assert list(deep.tree()) == ["a@0.npy", "a@2.npy", "a_mask.npy"]
    with featprep.open(deep.output) as run:
        assert list(run) == []  # a layer alone is no result
    assert deep.run(*ALL) == 0
    results = [name for name in order if name.startswith("a")]
    assert results[-5:] == ["a_mask.npy", "a@0.npy", "a@2.npy", "a_vec.npz", "a.npy"]
    (line,) = deep.lines("results-all.jsonl")
    assert list(line["files"]) == results[-5:]


def test_a_layer_named_from_either_end_is_the_same_run(deep: Bench) -> None:
    _picture(deep)
    assert deep.run("--size", "32", "--layer", "-1,2,0") == 0
    assert deep.run("--size", "32", "--layer", "3,0,-2") == 0
    assert "0 encoded, 1 skipped" in deep.said
    assert deep.run("--size", "32", "--layer", "3,0") == 2
    assert "--layer 3,0,2 there, --layer 3,0 asked. Nothing" in deep.said
    assert deep.run("--size", "32", "--layer", "-1,2,0", "--prefix") == 2
    assert "--no_prefix there, --prefix asked. Nothing was touched" in deep.said


def test_overwrite_removes_the_layers_and_vectors_of_older_settings(deep: Bench) -> None:
    _picture(deep)
    deep.run(*ALL)
    assert deep.run("--size", "32", "--layer", "1", "--overwrite") == 0
    assert list(deep.tree()) == ["a.npy", "a_mask.npy"]
    assert np.array_equal(deep.load("a.npy"), 2 * mean_colours(_picture(deep)[None])[0])


def test_an_image_that_is_no_more_loses_all_its_files(deep: Bench) -> None:
    _picture(deep)
    deep.run(*ALL)
    (deep.input / "a.png").write_bytes(b"broken now")
    assert deep.run(*ALL) == 3
    assert deep.tree() == {}


def test_images_named_as_a_layer_of_another_are_refused_before_any_work(deep: Bench) -> None:
    _picture(deep)
    deep.image("a@2.png")
    deep.image("a@1.png")
    deep.image("a_vec.png")  # its map is a_vec.npy: no file of it is one of a's
    assert deep.run("--size", "32", "--layer", "3,2") == 2
    assert deep.said == (
        "featprep: one pair of inputs would write the same file: a.png and a@2.png → a@2.npy. "
        "Nothing was done: use --names full (a/b.png → a/b.png.npy)\n"
    )
    assert not deep.output.exists()
    assert deep.run("--size", "32", "--layer", "3,1", "--limit", "1") == 2
    assert deep.run("--size", "32", "--layer", "3,0") == 0
    with featprep.open(deep.output) as run:
        assert list(run) == ["a", "a@1", "a@2", "a_vec"]


def test_an_image_named_as_a_layer_is_a_result_where_it_stands_alone(deep: Bench) -> None:
    _picture(deep, "a@2.png")
    assert deep.run("--size", "32", "--layer", "3,2") == 0
    assert list(deep.tree()) == ["a@2.npy", "a@2@2.npy", "a@2_mask.npy"]
    with featprep.open(deep.output) as run:
        assert list(run) == ["a@2"]
        assert "a@2" in run
        assert "a@2@2" not in run


def test_a_run_read_back_gives_layers_and_vectors_and_unpacks_into_three(deep: Bench) -> None:
    pixels = _picture(deep)
    deep.run(*ALL)
    with featprep.open(deep.output) as run:
        result = run["a"]
        feature, mask, meta = result
        assert list(run) == ["a"]
        assert len(run) == 1
    assert (feature.shape, mask.shape, meta) == ((3, 4, 4), (4, 4), None)
    assert list(result.layers) == [3, 0, 2]
    assert result.layers[3] is feature
    assert isinstance(result.layers[2], np.memmap)
    assert np.array_equal(result.layers[2], 3 * mean_colours(pixels[None])[0])
    assert list(result.vectors) == ["prefix", "pooled", "masked", "masked@0", "masked@2", "empty"]


def test_a_run_of_one_layer_without_vectors_reads_as_such(deep: Bench) -> None:
    _picture(deep)
    deep.run("--size", "32", "--layer", "1")
    result = featprep.open(deep.output)["a"]
    assert list(result.layers) == [1]
    assert result.vectors is None


def test_results_that_lost_their_record_are_read_again_with_all_their_files(deep: Bench) -> None:
    _picture(deep)
    deep.run(*ALL)
    records = deep.output / ".featprep" / "results-all.jsonl"
    before = deep.lines("results-all.jsonl")
    for spoil in ("", "a@2.npy", "a_vec.npz"):
        records.unlink()
        if spoil:
            (deep.output / spoil).write_bytes(b"torn")
        assert deep.run(*ALL) == 0
        assert f"{int(bool(spoil))} encoded" in deep.said
        assert deep.lines("results-all.jsonl") == before


def test_what_is_not_finite_in_any_array_is_encoded_again_in_float32(deep: Bench) -> None:
    deep.image("a.png", (40, 40, 40))  # layer 2 reaches 120,000, the others 40,000
    deep.encoder.scale = 1000.0
    exact = FakeEncoder(scale=10.0, spec=DEEP)
    flags = ("--size", "32", "--layer", "-1,2", "--pooled", "--masked_pool", "--fp16")
    assert deep.run(*flags, exact=exact) == 0
    assert deep.load("a.npy")[0, 0, 0] == 400.0
    assert deep.load("a@2.npy")[0, 0, 0] == 1200.0
    vectors = deep.load("a_vec.npz")
    assert (vectors["pooled"][0], vectors["masked@2"][0]) == (400.0, 1200.0)
    (line,) = deep.lines("results-all.jsonl")
    assert line["notes"] == ["encoded again in float32: not finite in float32 stored as float16"]


@pytest.mark.parametrize(
    ("colour", "flags", "reason"),
    [
        (
            40,
            ("--layer", "-1,2"),
            "its map of layer 2 reaches 1.2e+05 and does not fit float16; run without --fp16",
        ),
        (1, ("--prefix",), None),
        (
            66,
            ("--layer", "1", "--pooled"),
            "its map reaches 1.32e+05 and does not fit float16; run without --fp16",
        ),
    ],
)
def test_what_does_not_fit_float16_fails_its_image_and_leaves_no_file(
    deep: Bench, colour: int, flags: tuple[str, ...], reason: str | None
) -> None:
    deep.image("a.png", (colour, 0, 0))
    deep.encoder.scale = 1000.0
    assert deep.run("--size", "32", "--fp16", *flags) == (3 if reason else 0)
    if reason:
        assert deep.tree() == {}
        assert deep.lines("failures.jsonl")[0]["reason"] == reason


def test_a_prefix_that_does_not_fit_is_named(deep: Bench) -> None:
    deep.image("a.png", (1, 1, 1))
    deep.encoder.scale = 20_000.0  # the register: 140,000
    assert deep.run("--size", "32", "--fp16", "--prefix") == 3
    assert deep.lines("failures.jsonl")[0]["reason"] == (
        "its prefix vector reaches 1.4e+05 and does not fit float16; run without --fp16"
    )


def test_the_lines_of_a_run_say_what_is_written(deep: Bench) -> None:
    _picture(deep)
    assert deep.run(*ALL) == 0
    lines = deep.said.splitlines()
    assert lines[0] == (
        "encoder  fake:deep  (3, 4, 4) at 32×32  layer 3,0,2  weights ffffffff (made here)"
    )
    assert lines[3] == (
        "shapes   pixels (4,3,32,32), 1 image and padding → tokens (4,16,3) → map (3,4,4) "
        "float32, @0 (3,4,4), @2 (3,4,4), mask (4,4) uint8, prefix (2,3), pooled (3), "
        "masked (3), masked@0 (3), masked@2 (3)"
    )


def test_the_plan_counts_the_bytes_that_the_run_writes(deep: Bench) -> None:
    _picture(deep)
    assert deep.run(*ALL, "--plan") == 0
    planned = deep.said.splitlines()[2]
    deep.run(*ALL)
    size = sum(map(len, deep.tree().values()))
    assert planned == (
        f"to write    {size / 1000:.1f} kB: 1 × (3,4,4) float32, @0 (3,4,4), @2 (3,4,4), prefix, "
        f"pooled, masked, masked@0, masked@2, {size / 1000:.1f} kB each"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--layer", "-1,4"),
            "--layer -1,4: fake:deep has 4 blocks; allowed are 0 to 3, or -1 (the last) to -4",
        ),
        (
            ("--layer", "last"),
            "--layer last: allowed is one number or several, from 0 up, or from the end as -1; for "
            "example --layer -1 or --layer -1,5,0",
        ),
        (
            ("--facet", "key"),
            "--facet key: fake:deep has no attention that gives one; allowed is --facet token",
        ),
        (
            ("--masked_pool", "--mask", "none"),
            "--masked_pool with --mask none: there are no cells; drop one of them",
        ),
    ],
)
def test_what_cannot_be_taken_is_refused_before_the_weights_load(
    deep: Bench, flags: tuple[str, ...], message: str
) -> None:
    _picture(deep)
    deep.opener = lambda *_, **__: pytest.fail("the weights were loaded")
    assert deep.run("--size", "32", *flags) == 2
    assert deep.said == f"featprep: {message}\n"
    assert not deep.output.exists()


def test_a_stage_of_a_cnn_brings_its_own_grid_mask_and_cells(deep: Bench) -> None:
    stages = (Stage(8, 3), Stage(16, 3))
    spec = replace(DEEP, depth=2, patch=16, cls=False, registers=0, stages=stages)
    deep.encoder = FakeEncoder(spec=spec)
    pixels = _picture(deep)
    assert deep.run("--size", "32", "--layer", "0", "--save_meta") == 0
    assert np.array_equal(deep.load("a.npy"), mean_colours(pixels[None])[0])
    assert deep.load("a_mask.npy").tolist() == [[0, 0, 1, 1]] * 4
    geometry = json.loads((deep.output / "a.json").read_text())["geometry"]
    assert (geometry["cell"], geometry["grid"]) == (8, [4, 4])
    other = ("--size", "32", "--layer", "0,1", "--output", str(deep.root / "other"))
    assert deep.run(*other) == 2
    assert deep.said == (
        "featprep: --layer 0,1: at 32×32 the layers of fake:deep have grids that differ (4×4 of "
        "layer 0, 2×2 of layer 1): take one a run, or --grid H,W for all\n"
    )


def test_one_grid_takes_stages_of_several_strides_with_one_mask(deep: Bench) -> None:
    stages = (Stage(8, 3), Stage(16, 3))
    spec = replace(DEEP, depth=2, patch=16, cls=False, registers=0, stages=stages)
    deep.encoder = FakeEncoder(spec=spec)
    pixels = _picture(deep)
    assert deep.run("--size", "32", "--layer", "0,1", "--grid", "2", "--masked_pool") == 0
    assert np.array_equal(deep.load("a@1.npy"), mean_colours(pixels[None], 16)[0])
    assert deep.load("a.npy") == pytest.approx(mean_colours(pixels[None], 16)[0], rel=1e-6)
    assert deep.load("a_mask.npy").tolist() == [[0, 1]] * 2


def test_keep_rounds_to_what_the_whole_cnn_takes_and_counts_a_stages_own_cells(
    deep: Bench,
) -> None:
    stages = (Stage(8, 3), Stage(16, 3))
    spec = replace(DEEP, depth=2, patch=16, cls=False, registers=0, stages=stages)
    deep.encoder = FakeEncoder(spec=spec)
    deep.image("a.png", size=(58, 41))
    deep.image("b.png", size=(9, 9))
    assert deep.run("--resize", "keep", "--layer", "0", "--batch_size", "1") == 0
    assert sorted(deep.encoder.calls) == [(1, 3, 16, 16), (1, 3, 32, 48)]
    assert deep.load("a.npy").shape == (3, 4, 6)
    assert deep.load("b.npy").shape == (3, 2, 2)
    assert [line["notes"] for line in deep.lines("results-all.jsonl")] == [[], []]


def test_layers_that_only_the_weights_can_count_are_named_by_them(deep: Bench) -> None:
    """A model of the hub that is not in the cache yet: what -2 is, nobody knows before."""
    pixels, deep.described = _picture(deep), False
    assert deep.run("--size", "32", "--layer", "3,-2") == 0
    assert np.array_equal(deep.load("a@2.npy"), 3 * mean_colours(pixels[None])[0])
    deep.image("a@2.png")
    assert deep.run("--size", "32", "--layer", "3,-2") == 2
    assert "a.png and a@2.png → a@2.npy" in deep.said


def test_from_python_layers_and_vectors_come_in_one_object(deep: Bench) -> None:
    from fakes import fake_session
    from featprep import api

    deep.monkeypatch.setattr(api, "open_session", fake_session(deep.encoder))
    api._session.cache_clear()
    picture = Image.fromarray(_picture(deep).transpose(1, 2, 0))
    maps = featprep.encode(
        [picture, picture], model="clip:tiny", size=32, layer=(2, -1), prefix=True, pooled=True,
        masked_pool=True,
    )  # fmt: skip
    api._session.cache_clear()
    colours = mean_colours(np.asarray(picture).transpose(2, 0, 1)[None])
    assert list(maps.maps) == [2, 3]
    assert np.array_equal(maps.map, np.repeat(3 * colours, 2, axis=0))
    assert np.array_equal(maps.maps[3], np.repeat(colours, 2, axis=0))
    assert maps.prefix.shape == (2, 2, 3)
    assert maps.pooled.shape == (2, 3)
    assert list(maps.masked) == [2, 3]
    assert maps.masked[3][1] == pytest.approx(colours[0].mean(axis=(1, 2)), rel=1e-6)
    with pytest.raises(UsageError, match="layer=9: fake:deep has 4 blocks"):
        featprep.encode(picture, model="clip:tiny", size=32, layer=9)
    api._session.cache_clear()


def test_a_key_that_is_not_there_is_refused_with_the_nearest(deep: Bench) -> None:
    for name in ("cat.png", "kitchen/cup.png", "hall/cup.png"):
        deep.image(name)
    assert deep.run("--size", "32") == 0
    run = featprep.open(deep.output)
    for key, hint in {
        "cap": " Did you mean cat?",
        "cat.png": " Did you mean cat?",
        "cup": " Did you mean hall/cup or kitchen/cup?",
        "zebra": "",
    }.items():
        with pytest.raises(KeyError) as caught:
            run[key]
        assert str(caught.value) == f"{deep.output}: no result of key {key!r}.{hint}"
        assert run.get(key) is None
    run.close()


def test_results_and_runs_tell_what_they_are(deep: Bench) -> None:
    deep.image("a.png")
    assert deep.run("--size", "32", "--layer", "-1,0", "--mask", "none") == 0
    run = featprep.open(deep.output)
    assert repr(run) == f"<featprep run {deep.output}: fake:deep, layer 3,0>"
    assert repr(run["a"]) == "<result a: map (3, 4, 4) float32, no mask, no metadata>"
