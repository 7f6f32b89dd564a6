"""End to end with the hand-computable encoder: values, resume, failures, exit codes, lines."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from fakes import DEEP, FakeEncoder, describe, fake_session, mean_colours
from featprep import encoders
from featprep.commands import encode, encode_lines, encode_run
from featprep.decoding import prepare, prepare_job
from featprep.encoders.base import EncoderSpec, ModelName
from featprep.lock import RunLock
from featprep.session import Session
from PIL import Image


class InlinePool:
    """Decodes in this process; the real pool has tests of its own."""

    workers = 1

    def __init__(self, workers: int, timeout_s: float) -> None: ...
    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *_: object) -> None: ...
    def map(self, refs, rules, ahead) -> Iterator:  # noqa: ANN001
        return (prepare(ref, rules) for ref in refs)

    def run(self, jobs, rules, ahead) -> Iterator:  # noqa: ANN001
        for ref, lanes in jobs:
            yield dict(zip(lanes, prepare_job(ref, [rules[n] for n in lanes]), strict=True))


@dataclass
class Bench:
    """One input, one output, and runs of the command over them."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    encoder: FakeEncoder = field(default_factory=FakeEncoder)
    said: str = ""
    opener: Callable[..., Session] | None = None
    others: dict[str, FakeEncoder] = field(default_factory=dict)  # by family, beside `encoder`
    described: bool = True  # whether the spec is known before the weights are read

    @property
    def input(self) -> Path:
        return self.root / "in"

    @property
    def output(self) -> Path:
        return self.root / "out"

    def image(
        self,
        name: str,
        colour: tuple[int, ...] = (200, 100, 50),
        size: tuple[int, int] = (40, 32),
    ) -> Path:
        path = self.input / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(path)
        return path

    def run(self, *flags: str, exact: FakeEncoder | None = None) -> int:
        self.monkeypatch.setattr(encode_run, "open_session", self.opener or self._opener(exact))
        self.monkeypatch.setattr(encoders, "describe", self._describe)
        self.monkeypatch.setattr(encode_run, "DecodePool", InlinePool)
        usual = {"--input": self.input, "--output": self.output, "--model": "clip:tiny"}
        words = [f"{name}={value}" for name, value in usual.items() if name not in flags]
        from featprep.cli import _guarded

        code = _guarded(lambda: encode.main([*words, *flags]))
        said = self.capsys.readouterr()
        self.said = said.err + said.out
        return code

    def _opener(self, exact: FakeEncoder | None) -> Callable[..., Session]:
        def open_session(config, name, **options) -> Session:  # noqa: ANN001, ANN003
            encoder = self.others.get(name.family, self.encoder)
            return fake_session(encoder, exact)(config, name, **options)

        return open_session

    def _describe(self, name: ModelName) -> EncoderSpec | None:
        if name.family in self.others:
            return self.others[name.family].spec
        return describe(name, self.encoder.spec if self.described else None)

    def load(self, name: str) -> np.ndarray:
        return np.load(self.output / name, allow_pickle=False)

    def lines(self, name: str) -> list[dict]:
        path = self.output / ".featprep" / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def tree(self) -> dict[str, bytes]:
        """Result files and their bytes, without the ledger."""
        files = [p for p in self.output.rglob("*") if p.is_file() and ".featprep" not in p.parts]
        return {str(p.relative_to(self.output)): p.read_bytes() for p in sorted(files)}


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    (tmp_path / "in").mkdir()
    return Bench(tmp_path, monkeypatch, capsys)


def test_maps_and_masks_are_the_mean_colours_and_the_covered_cells(bench: Bench) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 4), dtype=np.uint8)
    pixels[:, :, 3] = 255
    pixels[:16, :24, 3] = 0  # transparent: black in the map, 0 in the mask
    bench.input.joinpath("a").mkdir()
    Image.fromarray(pixels).save(bench.input / "a" / "b.png")
    assert bench.run("--size", "32,48", "--save_meta") == 0
    black = pixels[:, :, :3] * (pixels[:, :, 3:] > 0)
    expected = mean_colours(black.transpose(2, 0, 1)[None])[0]
    assert np.array_equal(bench.load("a/b.npy"), expected)
    mask = np.ones((4, 6), np.uint8)
    mask[:2, :3] = 0
    stored = bench.load("a/b_mask.npy")
    assert stored.dtype == np.uint8
    assert np.array_equal(stored, mask)
    meta = json.loads((bench.output / "a" / "b.json").read_text())
    assert meta["source"] == "a/b.png"
    assert meta["geometry"]["affine"] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert (meta["shape"], meta["dtype"], meta["encoder"]) == ([3, 4, 6], "float32", "fake:mean")
    assert (meta["hidden_dim"], meta["grid"]) == (3, [4, 6])


def test_the_lines_of_a_run_say_encoder_device_input_shapes_done_and_time(bench: Bench) -> None:
    bench.image("a.png")
    bench.image("b.png")
    (bench.input / "c.jp2").write_bytes(b"")
    assert bench.run("--size", "32") == 0
    lines = bench.said.splitlines()
    assert lines[0] == "encoder  fake:mean  (3, 4, 4) at 32×32  weights ffffffff (made here)"
    assert lines[1].startswith("device   cpu ")
    assert lines[1].endswith(
        "compute float32 (default), stored float32; batch 4 (as the test has it)"
    )
    assert lines[2] == (
        f"input    {bench.input}  2 images, 0 done before, 928 B to write; ignored: 1 .jp2"
    )
    assert lines[3] == (
        "shapes   pixels (4,3,32,32), 2 images and padding → tokens (4,16,3) → map (3,4,4) "
        "float32, mask (4,4) uint8"
    )
    assert lines[4] == "done     2 encoded, 0 skipped, 0 failed"
    assert lines[5].startswith("time     ")
    assert "busy: read " in lines[5]
    assert len(lines) == 6


def test_the_last_batch_is_padded_to_the_runs_batch_size(bench: Bench) -> None:
    for name in "abcde":
        bench.image(f"{name}.png")
    assert bench.run("--size", "32", "--batch_size", "2") == 0
    assert bench.encoder.calls == [(2, 3, 32, 32)] * 3


def test_the_same_command_again_encodes_nothing(bench: Bench) -> None:
    bench.image("a.png")
    bench.run("--size", "32")
    before = bench.tree()
    bench.encoder.calls.clear()
    assert bench.run("--size", "32") == 0
    assert bench.encoder.calls == []
    assert "done     0 encoded, 1 skipped, 0 failed" in bench.said
    assert bench.tree() == before


def test_an_image_whose_size_or_time_changed_is_encoded_again(bench: Bench) -> None:
    path = bench.image("a.png", (10, 20, 30))
    bench.image("b.png", (10, 20, 30))
    bench.run("--size", "32")
    bench.image("a.png", (90, 80, 70))
    os.utime(path, ns=(1, 1))
    assert bench.run("--size", "32") == 0
    assert "done     1 encoded, 1 skipped, 0 failed" in bench.said
    assert bench.load("a.npy")[:, 0, 0].tolist() == [90.0, 80.0, 70.0]


def test_another_setting_in_the_same_folder_is_refused_and_touches_nothing(bench: Bench) -> None:
    bench.image("a.png")
    bench.run("--size", "32")
    before = bench.tree()
    assert bench.run("--size", "64", "--background", "white") == 2
    assert bench.said == (
        f"{bench.said.partition('featprep: ')[0]}"
        f"featprep: {bench.output} holds features of other settings: --size 32 there, "
        "--size 64 asked; --background black there, --background white asked. "
        "Nothing was touched: to go on with what is there give --size 32 --background black, else "
        "use another --output, or --overwrite to replace them\n"
    )
    assert bench.tree() == before


def test_overwrite_with_other_settings_removes_all_and_then_resumes_plainly(bench: Bench) -> None:
    bench.image("a.png")
    bench.image("b.png")
    bench.run("--size", "32", "--save_meta")
    os.unlink(bench.input / "b.png")
    assert bench.run("--size", "64", "--overwrite") == 0
    assert f"remove   2 results of other settings in {bench.output}" in bench.said
    assert sorted(bench.tree()) == ["a.npy", "a_mask.npy"]
    assert bench.load("a.npy").shape == (3, 8, 8)
    assert bench.run("--size", "64") == 0
    assert "0 encoded, 1 skipped" in bench.said


def test_overwrite_with_the_same_settings_encodes_everything_again(bench: Bench) -> None:
    bench.image("a.png")
    bench.run("--size", "32")
    bench.encoder.calls.clear()
    assert bench.run("--size", "32", "--overwrite") == 0
    assert len(bench.encoder.calls) == 1
    assert "1 encoded, 0 skipped" in bench.said


def test_other_images_into_the_same_output_are_refused_unless_they_moved(bench: Bench) -> None:
    bench.image("a.png")
    bench.run("--size", "32")
    moved = bench.root / "elsewhere"
    os.rename(bench.input, moved)
    bench.input.mkdir()
    bench.image("z.png")
    assert bench.run("--size", "32") == 0  # the same path: z is simply new
    assert bench.run("--size", "32", "--input", str(moved)) == 2
    assert bench.said.splitlines()[-1] == (
        f"featprep: {bench.output} holds features of the images in {bench.input}, not of {moved}: "
        "use another --output, --moved if the images moved, or --overwrite to replace them"
    )
    assert bench.run("--size", "32", "--input", str(moved), "--moved") == 0
    assert "0 encoded, 1 skipped" in bench.said


def test_a_broken_image_is_a_line_in_failures_and_costs_nothing_else(bench: Bench) -> None:
    bench.image("a.png", (1, 2, 3))
    (bench.input / "b.png").write_bytes(b"not an image at all")
    bench.image("c.png", (4, 5, 6))
    assert bench.run("--size", "32") == 3
    assert bench.load("a.npy")[:, 0, 0].tolist() == [1.0, 2.0, 3.0]
    assert bench.load("c.npy")[:, 0, 0].tolist() == [4.0, 5.0, 6.0]
    failure = bench.lines("failures.jsonl")
    assert [(f["key"], f["source"], f["stage"]) for f in failure] == [("b", "b.png", "decode")]
    assert (
        f"done     2 encoded, 0 skipped, 1 failed: {bench.output}/.featprep/failures.jsonl"
        in bench.said
    )


def test_a_mended_image_leaves_failures_and_the_file_goes_when_none_stand(bench: Bench) -> None:
    bench.image("a.png")
    (bench.input / "b.png").write_bytes(b"broken")
    assert bench.run("--size", "32") == 3
    bench.image("b.png")
    assert bench.run("--size", "32") == 0
    assert not (bench.output / ".featprep" / "failures.jsonl").exists()


def test_a_changed_image_that_no_longer_decodes_loses_its_old_map(bench: Bench) -> None:
    path = bench.image("a.png")
    bench.run("--size", "32")
    path.write_bytes(b"broken now")
    assert bench.run("--size", "32") == 3
    assert bench.tree() == {}


def test_out_of_memory_halves_the_batch_and_goes_on(bench: Bench) -> None:
    for name in "abcdefg":
        bench.image(f"{name}.png", (ord(name), 0, 0))
    bench.encoder.room = 3
    assert bench.run("--size", "32", "--batch_size", "5") == 0
    assert "memory   the device is full: going on with batches of 3" in bench.said
    assert [bench.load(f"{n}.npy")[0, 0, 0] for n in "abcdefg"] == [
        float(ord(n)) for n in "abcdefg"
    ]
    assert [shape[0] for shape in bench.encoder.calls] == [5, 3, 3, 3]


def test_out_of_memory_at_batch_one_is_a_failure_of_that_image(bench: Bench) -> None:
    bench.image("a.png")
    bench.encoder.room = 0
    assert bench.run("--size", "32") == 3
    assert bench.lines("failures.jsonl")[0]["reason"] == (
        "the device has no memory for it, even alone in a batch"
    )


def test_a_map_that_overflows_float16_is_encoded_again_in_float32_and_noted(bench: Bench) -> None:
    bench.image("a.png", (255, 255, 255))
    bench.image("b.png", (1, 1, 1))
    bench.encoder.scale = 1000.0
    assert bench.run("--size", "32", "--fp16", exact=FakeEncoder(scale=10.0)) == 0
    assert bench.load("a.npy")[0, 0, 0] == 2550.0
    assert bench.load("b.npy")[0, 0, 0] == 1000.0
    notes = {line["key"]: line["notes"] for line in bench.lines("results-all.jsonl")}
    assert notes == {
        "a": ["encoded again in float32: not finite in float32 stored as float16"],
        "b": [],
    }


def test_a_map_that_never_fits_float16_is_a_failure_and_no_file(bench: Bench) -> None:
    bench.image("a.png", (255, 255, 255))
    bench.encoder.scale = 1000.0
    assert bench.run("--size", "32", "--fp16") == 3
    assert bench.tree() == {}
    assert bench.lines("failures.jsonl")[0]["reason"] == (
        "its map reaches 2.55e+05 and does not fit float16; run without --fp16"
    )


def test_the_publishers_sha256_stands_beside_the_digest_and_does_not_make_the_run(
    bench: Bench,
) -> None:
    """A copy of the weights, of which nothing is stated, resumes what the hub's cache began."""
    bench.image("a.png")
    assert bench.run("--save_meta") == 0
    stated = {"fake.safetensors": "a" * 64}
    run = json.loads((bench.output / ".featprep/run.json").read_bytes())
    assert run["about"]["weights_files"] == stated
    assert json.loads((bench.output / "a.json").read_bytes())["weights_files"] == stated
    bench.encoder.weights_files = {}
    bench.image("b.png")
    assert bench.run("--save_meta") == 0
    run = json.loads((bench.output / ".featprep/run.json").read_bytes())
    assert (run["about"]["weights_files"], len(bench.encoder.calls)) == ({}, 2)


def test_save_meta_later_writes_what_is_missing_without_encoding(bench: Bench) -> None:
    bench.image("a.png")
    bench.run("--size", "32", "--save_meta")
    with_meta = bench.tree()
    os.unlink(bench.output / "a.json")
    bench.encoder.calls.clear()
    assert bench.run("--size", "32", "--save_meta") == 0
    assert bench.encoder.calls == []
    assert bench.tree() == with_meta


def test_results_do_not_depend_on_where_a_run_was_cut(bench: Bench) -> None:
    for name in "abcdefg":
        bench.image(f"{name}.png", (ord(name), 7, 9))
    bench.run("--size", "32", "--output", str(bench.root / "whole"))
    for count in range(1, 8):
        assert bench.run("--size", "32", "--limit", str(count)) == 0
        assert len([name for name in bench.tree() if not name.endswith("_mask.npy")]) == count
    whole = {p.name: p.read_bytes() for p in (bench.root / "whole").glob("*.npy")}
    assert bench.tree() == whole


def test_shards_are_disjoint_and_together_everything(bench: Bench) -> None:
    for i in range(20):
        bench.image(f"{i}.png")
    sizes = []
    for shard in (1, 2, 3):
        assert bench.run("--size", "32", "--shard", f"{shard}/3") == 0
        sizes.append(int(bench.said.split("done     ")[1].split(" ")[0]))
        assert ", 0 skipped" in bench.said
    assert sum(sizes) == 20
    assert bench.run("--size", "32") == 0
    assert "0 encoded, 20 skipped" in bench.said


def test_a_full_disk_ends_the_run_with_four_and_the_same_command_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        bench.image(f"{name}.png")
    real, left = os.write, [2]

    def write(descriptor: int, data: bytes) -> int:
        if len(data) == 3 * 16 * 4:  # a map's bytes
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    assert bench.run("--size", "32") == 4
    assert bench.said.splitlines()[-1] == (
        f"featprep: cannot write {bench.output}/c.npy: No space left on device. Free space or mend "
        "the folder's permissions; the same command goes on from here"
    )
    assert {name for name in bench.tree() if "_mask" not in name} == {"a.npy", "b.npy"}
    assert [line["key"] for line in bench.lines("results-all.jsonl")] == ["a", "b"]
    monkeypatch.setattr(os, "write", real)
    assert bench.run("--size", "32") == 0
    assert "1 encoded, 2 skipped" in bench.said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_what_is_in_flight_and_the_same_command_goes_on(
    bench: Bench, number: int, code: int
) -> None:
    for name in "abcdef":
        bench.image(f"{name}.png")
    bench.encoder.before = lambda pixels: os.kill(os.getpid(), number)
    assert bench.run("--size", "32", "--batch_size", "2") == code
    assert "stopped  2 encoded, 0 skipped, 0 failed" in bench.said
    bench.encoder.before = lambda pixels: None
    assert bench.run("--size", "32", "--batch_size", "2") == 0
    assert "4 encoded, 2 skipped" in bench.said


def test_keep_gives_each_image_its_own_grid(bench: Bench) -> None:
    bench.image("wide.png", size=(70, 33))
    bench.image("tall.png", size=(17, 48))
    assert bench.run("--resize", "keep", "--batch_size", "1") == 0
    assert bench.load("wide.npy").shape == (3, 4, 8)
    assert bench.load("tall.npy").shape == (3, 6, 2)


def test_an_image_in_the_output_folder_is_encoded_where_it_stands(bench: Bench) -> None:
    bench.image("a.png")
    for _ in range(2):
        assert bench.run("--size", "32", "--output", str(bench.input)) == 0
    assert "0 encoded, 1 skipped, 0 failed" in bench.said
    assert "ignored" not in bench.said
    assert sorted(os.listdir(bench.input)) == [".featprep", "a.npy", "a.png", "a_mask.npy"]


def test_mask_files_take_the_place_of_alpha_under_the_same_affine(bench: Bench) -> None:
    bench.image("a.png", size=(64, 32))
    mask = np.zeros((32, 64), np.uint8)
    mask[0:8, 16:24] = 255  # after the centre crop to 32×32 this is cell (0, 0)
    (bench.input / "masks").mkdir()
    Image.fromarray(mask).save(bench.input / "masks" / "a.png")
    assert bench.run("--size", "32", "--mask_dir", str(bench.input / "masks")) == 0
    expected = np.zeros((4, 4), np.uint8)
    expected[0, 0] = 1
    assert np.array_equal(bench.load("a_mask.npy"), expected)
    assert "1 encoded" in bench.said


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((9, 9), "mask file a.png is 9×9, the image 40×32: they must agree"),
        (None, "no mask file for it in --mask_dir: wanted a.png or another image suffix"),
    ],
)
def test_a_mask_file_that_is_missing_or_of_another_size_fails_that_image(
    bench: Bench, size: tuple[int, int] | None, reason: str
) -> None:
    bench.image("a.png")
    (bench.root / "masks").mkdir()
    if size:
        Image.new("L", size).save(bench.root / "masks" / "a.png")
    assert bench.run("--size", "32", "--mask_dir", str(bench.root / "masks")) == 3
    (failure,) = bench.lines("failures.jsonl")
    assert (failure["stage"], failure["reason"]) == ("mask", reason)


def test_plan_says_what_would_be_done_and_touches_nothing(bench: Bench) -> None:
    bench.image("a.png")
    bench.image("b.png")
    assert bench.run("--plan", "--model", "hf:facebook/dinov2-base", "--size", "224", "--fp16") == 0
    assert bench.said.splitlines() == [
        f"input       {bench.input}  2 images",
        "there       0 results; 2 missing",
        "to write    787 kB: 2 × (768,16,16) float16, 394 kB each",
        "collisions  none",
    ]
    assert not bench.output.exists()


def test_collisions_are_refused_before_any_work(bench: Bench) -> None:
    bench.image("a/x.png")
    bench.image("a/x.jpg")
    bench.image("b.png")
    bench.image("b_mask.png")
    assert bench.run("--size", "32") == 2
    assert bench.said == (
        "featprep: 2 pairs of inputs would write the same file: b.png and b_mask.png → b_mask.npy; "
        "a/x.jpg and a/x.png → a/x.npy. Nothing was done: use --names full "
        "(a/b.png → a/b.png.npy)\n"
    )
    assert not bench.output.exists()
    assert bench.run("--size", "32", "--names", "full") == 0
    assert {n for n in bench.tree() if not n.endswith("_mask.npy")} == {
        "a/x.jpg.npy",
        "a/x.png.npy",
        "b.png.npy",
        "b_mask.png.npy",
    }


def test_the_summary_holds_the_closing_figures(bench: Bench) -> None:
    bench.image("a.png")
    (bench.input / "b.png").write_bytes(b"broken")
    bench.run("--size", "32", "--summary", str(bench.root / "figures.json"))
    figures = json.loads((bench.root / "figures.json").read_text())
    assert (figures["images"], figures["encoded"], figures["failed"], figures["skipped"]) == (
        2,
        1,
        1,
        0,
    )
    assert figures["images_per_s"] > 0


def test_peak_memory_is_of_processes_that_still_live_too() -> None:
    eats = "import sys; x = b'x' * 150_000_000; print(len(x), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", eats], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = encode_lines.peak_memory()
        child.communicate()
    if Path("/proc/self/status").exists():
        assert found["worker"] > 150_000_000


def test_quiet_says_only_failures_and_the_closing_lines(bench: Bench) -> None:
    bench.image("a.png")
    bench.run("--size", "32", "--quiet")
    assert [line.split()[0] for line in bench.said.splitlines()] == ["done", "time"]


def test_verbose_says_every_images_shapes(bench: Bench) -> None:
    bench.image("a.png")
    bench.run("--size", "32", "--verbose")
    assert "image    a.png 32×40 → map (3,4,4) float32, mask (4,4) uint8" in bench.said.splitlines()


def test_nothing_to_encode_has_no_speed_and_one_image_is_no_images(bench: Bench) -> None:
    bench.image("a.png")
    assert bench.run("--size", "32") == 0
    assert f"input    {bench.input}  1 image, 0 done before" in bench.said
    assert bench.run("--size", "32") == 0
    assert re.fullmatch(r"time     \d+\.\d s", bench.said.splitlines()[-1])


def test_the_encoders_line_says_what_of_a_layer_is_taken(bench: Bench) -> None:
    bench.encoder = FakeEncoder(spec=replace(DEEP, has_facets=True))
    bench.image("a.png")
    assert bench.run("--size", "32", "--layer", "1", "--facet", "key", "--norm", "none") == 0
    assert bench.said.splitlines()[0] == (
        "encoder  fake:deep  (3, 4, 4) at 32×32  layer 1  facet key  norm none  "
        "weights ffffffff (made here)"
    )


def test_an_output_that_cannot_be_written_is_refused_before_the_weights_load(bench: Bench) -> None:
    bench.image("a.png")

    def never(*_: object, **__: object) -> Session:
        raise AssertionError("the weights were loaded")

    bench.opener = never
    blocked = bench.root / "blocked"

    def mkdir(path: str, *_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", path)

    bench.monkeypatch.setattr(tempfile, "mkdtemp", lambda *_, **__: mkdir(str(blocked)))
    assert bench.run("--size", "32", "--output", str(blocked / "out")) == 4
    assert bench.said == (
        f"featprep: cannot write {blocked}/out/.featprep: Read-only file system. Free space or "
        "mend the folder's permissions; the same command goes on from here\n"
    )
    assert not blocked.exists()


def test_auto_batch_size_is_resolved_once_for_an_output(bench: Bench) -> None:
    bench.image("a.png")
    bench.run("--size", "32", "--batch_size", "3")
    bench.image("b.png")
    bench.encoder.calls.clear()
    bench.run("--size", "32")
    assert bench.encoder.calls == [(3, 3, 32, 32)]


def test_plan_refuses_what_the_run_would_refuse_and_counts_changed_images(bench: Bench) -> None:
    path = bench.image("a.png")
    bench.image("b.png")
    words = ["--model", "hf:tiny", "--size", "224"]
    fingerprint = {"encoder": "hf:other"}
    folder = bench.output / ".featprep"
    folder.mkdir(parents=True)
    run = {"fingerprint": fingerprint, "input": str(bench.input), "about": {}}
    (folder / "run.json").write_text(json.dumps(run))
    assert bench.run("--plan", *words) == 2
    assert "--model hf:other there, --model hf:tiny asked" in bench.said
    (folder / "run.json").unlink()
    assert bench.run() == 0
    (bench.output / "b.npy").unlink()
    assert bench.run("--plan") == 0
    assert bench.said.splitlines()[1] == "there       1 results; 1 missing"
    os.utime(path, ns=(1, 1))
    assert bench.run("--plan") == 0
    assert bench.said.splitlines()[1:3] == [
        "there       1 results, 1 of images that changed since; 1 missing",
        "to write    928 B: 2 × (3,4,4) float32, 464 B each",
    ]


def test_a_plan_says_that_overwriting_removes_all_results_of_other_settings(bench: Bench) -> None:
    for name in ("a.png", "b.png", "c.png"):
        bench.image(name)
    assert bench.run("--size", "32") == 0
    again = ("--size", "32", "--overwrite", "--limit", "1")
    other = ("--size", "64", "--overwrite", "--limit", "1")
    assert bench.run(*again, "--plan") == 0
    assert "to remove" not in bench.said
    assert bench.run(*other, "--plan") == 0
    assert "to remove   3 results of other settings: all that there are\n" in bench.said
    assert len(bench.lines("results-all.jsonl")) == 3
    assert bench.run(*other) == 0
    assert "remove   3 results of other settings in" in bench.said
    assert [path.name for path in sorted(bench.output.glob("*.npy"))] == ["a.npy", "a_mask.npy"]


def test_a_result_cut_short_since_is_planned_and_made_again(bench: Bench) -> None:
    for name in ("a.png", "b.png"):
        bench.image(name)
    assert bench.run() == 0
    whole = bench.tree()
    os.truncate(bench.output / "a.npy", 200)
    assert bench.run("--plan") == 0
    assert "there       2 results, 1 damaged; 0 missing\n" in bench.said
    assert bench.run() == 0
    assert "done     1 encoded, 1 skipped, 0 failed\n" in bench.said
    assert bench.tree() == whole


def never(*_: object, **__: object) -> Session:
    raise AssertionError("the weights were loaded")


@pytest.mark.parametrize("described", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize(("held", "asked"), [("all", []), ("2-of-3", ["--shard", "2/3"])])
def test_an_output_that_another_run_works_on_is_refused_before_the_weights_load(
    bench: Bench, described: bool, held: str, asked: list[str]
) -> None:
    bench.image("a.png")
    bench.opener, bench.described = never, described
    with RunLock(str(bench.output / ".featprep"), held):
        assert bench.run(*asked) == 2
        shard = " shard 2/3 of" if asked else ""
        assert bench.said == (
            f"featprep: another run works on{shard} {bench.output}: pid {os.getpid()} on host "
            f"{socket.gethostname()}. Wait for it or stop it\n"
        )
        assert bench.run(*asked, "--plan") == 0


@pytest.mark.parametrize("described", [True, False], ids=["known", "unknown"])
def test_files_that_no_run_made_are_refused_before_the_weights_load(
    bench: Bench, described: bool
) -> None:
    bench.image("a.png")
    bench.output.mkdir()
    (bench.output / "a.npy").write_bytes(b"mine")
    bench.opener, bench.described = never, described
    assert bench.run() == 2
    assert bench.said == (
        f"featprep: {bench.output} holds files where 1 results would go, and no record of the run "
        "that made them (.featprep/run.json). Nothing was touched: use another --output, or "
        "--overwrite to replace them\n"
    )
    assert os.listdir(bench.output) == ["a.npy"]


def test_another_setting_is_refused_before_the_weights_load(bench: Bench) -> None:
    bench.image("a.png")
    bench.run("--size", "32")
    bench.opener = never
    assert bench.run("--size", "64") == 2
    assert "--size 32 there, --size 64 asked" in bench.said


def test_keep_notes_that_max_tokens_made_an_image_smaller(bench: Bench) -> None:
    bench.image("a.png", size=(80, 40))
    assert bench.run("--resize", "keep", "--max_tokens", "8", "--batch_size", "1") == 0
    (line,) = bench.lines("results-all.jsonl")
    assert line["shape"] == [3, 2, 4]
    assert line["notes"] == ["made smaller, to 32×16, by --max_tokens 8"]


def test_metadata_written_later_is_counted(bench: Bench) -> None:
    bench.image("a.png")
    bench.run("--size", "32")
    assert bench.run("--size", "32", "--save_meta") == 0
    assert "metadata 1 files written for results that stood without" in bench.said
    assert (bench.output / "a.json").exists()
