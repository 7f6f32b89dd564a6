"""The same bytes twice: whatever the order, neighbours, workers, and where a run was cut."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeEncoder
from featprep import cli, devices
from featprep.commands import encode_run
from featprep.encoders.base import LoadOptions, Want
from featprep.encoders.fixed_kernels import fixed_kernels
from featprep.encoders.random_modules import write_timm
from featprep.encoders.tiny import TINY
from featprep.encoders.torch_encoder import TorchEncoder
from featprep.errors import UsageError
from PIL import Image
from test_encode_run import Bench, InlinePool, bench  # noqa: F401 (a fixture)

ALL = "abcdefghijk"
FLAGS = ("--batch_size", "8", "--size", "224", "--save_meta", "--quiet")
# One block, wide enough that bfloat16 on processors with AMX depends on the size of the batch.
WIDE = {"embed_dim": 384, "num_heads": 6, "depth": 1}


class ShuffledPool(InlinePool):
    """Several workers finish in any order."""

    def run(self, jobs, rules, ahead) -> Iterator:  # noqa: ANN001
        return super().run(random.Random(7).sample(done := list(jobs), len(done)), rules, ahead)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven pictures, so that the second batch is a short one."""
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (11, 70, 90, 4), dtype=np.uint8)
    for name, picture in zip(ALL, pixels, strict=True):
        Image.fromarray(picture).save(tmp_path / f"in/{name}.png")
    return tmp_path


def encode(folder: Path, output: str, *flags: str) -> int:
    words = ["--input", f"{folder}/in", "--output", f"{folder}/{output}"]
    given = FLAGS[2:] if "--batch_size" in flags else FLAGS
    return cli.main(["encode", *words, *given, *flags])


def results(folder: Path, output: str) -> dict[str, bytes]:
    files = [path for path in sorted((folder / output).iterdir()) if path.is_file()]
    return {path.name: path.read_bytes() for path in files}


def cut_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The disk is full at the count-th result: the run ends in the middle of a batch."""
    real, left = os.rename, [count]

    def rename(source: str, target: str) -> None:
        left[0] -= target.endswith("_mask.npy")
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["clip:tiny", "hf:tiny", "wide"])
def test_order_neighbours_and_a_cut_change_no_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch, model: str, precision: str
) -> None:
    if model == "wide":
        name = "vit_base_patch32_clip_224"
        model = f"timm:{name}={write_timm(name, folder / 'weights', **WIDE)}"
    flags = ("--model", model, "--precision", precision, "--deterministic")
    monkeypatch.setattr(encode_run, "DecodePool", InlinePool)
    assert encode(folder, "whole", *flags) == 0
    whole = results(folder, "whole")
    assert len(whole) == 33
    with monkeypatch.context() as patched:
        cut_at(patched, 3)
        patched.setattr(devices, "choose_hands", lambda *_: devices.ONE_HAND)  # a is in the first
        assert encode(folder, "cut", *flags) == 4
    assert len(results(folder, "cut")) == 6
    (folder / "in/a.png").rename(folder / "in/z.png")  # other neighbours for the rest
    assert encode(folder, "cut", *flags) == 0
    (folder / "in/z.png").rename(folder / "in/a.png")
    monkeypatch.setattr(encode_run, "DecodePool", ShuffledPool)
    assert encode(folder, "shuffled", *flags) == 0
    assert results(folder, "shuffled") == whole
    cut = results(folder, "cut")
    assert {name: cut[name] for name in whole} == whole


def test_real_workers_of_any_number_change_no_byte(folder: Path) -> None:
    for workers in ("1", "3"):
        flags = ("--model", "clip:tiny", "--workers", workers, "--deterministic")
        assert encode(folder, f"out{workers}", *flags) == 0
    assert results(folder, "out1") == results(folder, "out3")


def test_threads_and_batch_size_are_the_outputs_and_not_the_hours(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encode_run, "DecodePool", InlinePool)
    seen: list[tuple[int, bool]] = []
    real = TorchEncoder._normalised

    def normalise(self: TorchEncoder, pixels: torch.Tensor) -> torch.Tensor:
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        return real(self, pixels)

    monkeypatch.setattr(TorchEncoder, "_normalised", normalise)
    flags = ("--model", "clip:tiny", "--deterministic", "--batch_size")
    before = torch.get_num_threads()
    try:
        with monkeypatch.context() as older:
            older.setattr(devices, "fix_threads", lambda before: 2)
            assert encode(folder, "out", *flags, "4", "--limit", "4") == 0
        torch.set_num_threads(3)
        assert encode(folder, "out", *flags, "4") == 0
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (3, False)
    finally:
        torch.set_num_threads(before)
    assert seen == [(2, True)] * 3
    run = json.loads((folder / "out/.featprep/run.json").read_text())["fingerprint"]
    decided = {"deterministic": True, "threads": 2, "batch_size": 4}
    assert {name: run[name] for name in decided} == decided
    meta = json.loads((folder / "out/a.json").read_text())
    assert {name: meta[name] for name in decided} == decided
    assert encode(folder, "out", *flags, "2") == 2
    assert "--batch_size 4 there, --batch_size 2 asked." in capsys.readouterr().err
    assert encode(folder, "out", "--model", "clip:tiny") == 2
    assert "--deterministic there, --no_deterministic asked. Nothing" in capsys.readouterr().err


def test_the_cores_of_the_machine_change_no_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_run, "DecodePool", InlinePool)
    real, seen = TorchEncoder._normalised, set[int]()

    def normalise(self: TorchEncoder, pixels: torch.Tensor) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return real(self, pixels)

    monkeypatch.setattr(TorchEncoder, "_normalised", normalise)
    before = torch.get_num_threads()
    try:
        for cores in (1, 3):
            torch.set_num_threads(cores)
            for extra in ((), ("--deterministic",)):
                flags = ("--model", "hf:tiny", "--precision", "bf16", *extra, "--overwrite")
                assert encode(folder, f"out{cores}{len(extra)}", *flags) == 0
    finally:
        torch.set_num_threads(before)
    assert seen == {1}  # each of as many hands as there are cores
    for extra in (0, 1):
        assert results(folder, f"out1{extra}") == results(folder, f"out3{extra}")


def test_the_same_run_twice_gives_the_same_bytes(folder: Path) -> None:
    """Of processes of their own, in every file but run.json's and the records' times."""
    flags = ("--model", "hf:tiny", "--workers", "2", "--prefix", "--masked_pool")
    for output in ("once", "twice"):
        assert encode(folder, output, *flags) == 0
    assert results(folder, "once") == results(folder, "twice")
    ledgers = [folder / name / ".featprep" for name in ("once", "twice")]
    once, twice = (path.joinpath("run.json").read_bytes() for path in ledgers)
    assert once == twice
    once, twice = (sorted((path / "results-all.jsonl").read_bytes().split()) for path in ledgers)
    assert once == twice


def test_trees_of_two_machines_differ_in_what_metadata_and_records_name_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another place, host, time of copying, order of listing, cores, libraries."""
    monkeypatch.setattr(encode_run, "DecodePool", InlinePool)
    flags = ("--model", "hf:tiny", "--precision", "bf16", "--deterministic")
    assert encode(folder, "here", *flags) == 0
    other = folder / "other machine"
    (other / "in").mkdir(parents=True)
    for path in sorted((folder / "in").iterdir(), reverse=True):
        (other / "in" / path.name).write_bytes(path.read_bytes())
        os.utime(other / "in" / path.name, (1, 1))
    monkeypatch.setattr(devices, "library_versions", lambda: {"torch": "0.0"})
    monkeypatch.setattr(devices, "device_title", lambda device: "cpu Other, 64 cores")
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    monkeypatch.setattr(encode_run, "DecodePool", ShuffledPool)
    assert encode(other, "there", *flags) == 0
    here, there = results(folder, "here"), results(other, "there")
    assert here.keys() == there.keys()
    assert {name for name in here if here[name] != there[name]} == {f"{n}.json" for n in ALL}
    for name in ALL:
        one, two = json.loads(here[f"{name}.json"]), json.loads(there[f"{name}.json"])
        assert differing(one, two) == {"versions"}
    one, two = records(folder / "here"), records(other / "there")
    for name in ALL:
        assert differing(one[name], two[name]) == {"mtime_ns", "files", "bytes"}
        assert differing(one[name]["files"], two[name]["files"]) == {f"{name}.json"}
    one, two = (
        json.loads((output / ".featprep/run.json").read_text())
        for output in (folder / "here", other / "there")
    )
    assert differing(one, two) == {"input", "about"}
    assert differing(one["about"], two["about"]) == {"device", "versions"}


def differing(one: dict, two: dict) -> set[str]:
    return {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}


def records(output: Path) -> dict[str, dict]:
    lines = (output / ".featprep/results-all.jsonl").read_text().splitlines()
    return {line["key"]: line for line in map(json.loads, lines)}


def test_a_batch_that_has_no_room_fails_and_is_not_halved(
    bench: Bench,  # noqa: F811
) -> None:
    for name in "abcde":
        bench.image(f"{name}.png")
    bench.encoder = FakeEncoder(room=3)
    flags = ("--size", "32", "--batch_size", "4", "--deterministic")
    assert bench.run(*flags) == 3
    assert [shape[0] for shape in bench.encoder.calls] == [4, 4]
    assert {line["key"]: line["reason"] for line in bench.lines("failures.jsonl")} == dict.fromkeys(
        "abcde",
        "the device has no memory for a batch of 4, which --deterministic keeps; a smaller "
        "--batch_size takes another output",
    )
    assert bench.tree() == {}
    bench.encoder.room = 4
    assert bench.run(*flags) == 0
    assert len(bench.tree()) == 10


def test_what_torch_can_only_do_one_way_or_another_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from featprep import encoders

    name = encoders.resolve("hf:tiny", "any")
    encoder = encoders.load_encoder(name, LoadOptions(threads=1))

    def take(pixels: torch.Tensor, want: Want) -> None:
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but …")

    monkeypatch.setattr(encoder, "_take", take)
    side = TINY["hf"].native_size
    with pytest.raises(UsageError) as caught:
        encoder.encode(np.zeros((1, 3, *side), np.uint8), Want())
    assert str(caught.value) == (
        "--deterministic: hf:tiny on cpu needs an operation that torch has no deterministic form "
        "of; use --device cpu, or --no_deterministic"
    )


def test_what_the_process_had_chosen_is_given_back_on_an_error_too() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    threads = torch.get_num_threads()
    try:
        with contextlib.suppress(ZeroDivisionError), fixed_kernels(threads + 1):
            assert torch.get_num_threads() == threads + 1
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            raise ZeroDivisionError
        assert torch.get_num_threads() == threads
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
