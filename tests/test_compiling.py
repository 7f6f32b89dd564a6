"""`--compile`: which modules it touches, what it leaves alone, and when it pays.

torch.compile runs here with a backend that compiles nothing, so that no test waits for a compiler.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from featprep import devices, encoders
from featprep.commands import encode
from featprep.encoders import compiling
from featprep.encoders.base import LoadOptions, Want
from featprep.encoders.thread_copies import share
from featprep.encoders.tiny import TINY
from featprep.errors import FingerprintError, UsageError
from PIL import Image
from torch import nn

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 224, 224), np.uint8)
FAMILIES = ["clip:tiny", "hf:tiny", "openclip:tiny", "timm:tiny"]


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """What torch.compile keeps of each network it has seen."""
    yield
    torch._dynamo.reset()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Owners of the forwards that torch.compile was given."""
    given: list[str] = []
    compile_ = torch.compile

    def stand_in(forward: Any, **options: Any) -> Any:
        given.append(type(forward.__self__).__name__)
        return compile_(forward, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", stand_in)
    return given


def _load(name: str, want: Want) -> Any:
    return encoders.load_encoder(encoders.resolve(name, "any"), LoadOptions(want=want))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_block_is_compiled_and_every_layer_and_copy_gives_the_same_map(
    name: str, calls: list[str]
) -> None:
    want = Want(layers=(-1, 0), prefix=True)
    encoder = _load(name, want)
    plain = encoder.encode(PIXELS, want)
    encoder.compile(want)
    assert len(calls) == encoder.spec.depth
    assert len(set(calls)) == 1
    for one in (encoder, share(encoder)):
        found = one.encode(PIXELS, want)
        for layer, map_ in plain.maps.items():
            assert np.abs(found.maps[layer] - map_).max() < 1e-5
        assert np.abs(found.prefix - plain.prefix).max() < 1e-5


def test_a_block_whose_attention_is_listened_to_is_left_as_it_is(calls: list[str]) -> None:
    want = Want(layers=(1,), facet="key")
    encoder = _load("hf:tiny", want)
    plain = encoder.encode(PIXELS, want).map
    encoder.compile(want)
    assert len(calls) == encoder.spec.depth - 1
    assert "forward" not in vars(encoder.blocks[1])
    assert np.abs(encoder.encode(PIXELS, want).map - plain).max() < 1e-5


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)


def test_stages_of_several_shapes_and_what_has_no_attention_are_left_as_they_are(
    calls: list[str],
) -> None:
    stages = nn.ModuleList([Block(4), Block(8)])
    convolutions = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    same = nn.ModuleList([Block(4), Block(4), Block(4)])
    assert compiling.compile_blocks(nn.ModuleList([stages, convolutions, same]), Want()) == 3
    assert calls == ["Block"] * 3


def test_a_compiler_that_fails_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    encoder = _load("hf:tiny", Want())
    encoder.compile(Want())
    with pytest.raises(UsageError) as caught:
        encoder.encode(PIXELS, Want())
    said = str(caught.value)
    assert said.startswith("--compile: torch.compile fails on hf:tiny here (backend=")
    assert "no C++ compiler" in said
    assert said.endswith("; use --compile off")


AUTO = "auto: 50,000 images"


@pytest.mark.parametrize(
    ("asked", "device", "images", "vary", "before", "chosen"),
    [
        ("auto", "cuda:0", 50_000, False, None, (True, AUTO)),
        ("auto", "cuda:0", 49_999, False, None, (False, "auto: 49,999 images")),
        ("auto", "cpu", 50_000, False, None, (False, AUTO)),
        ("auto", "cuda:0", 50_000, True, None, (False, AUTO)),
        ("auto", "cuda:0", 10, False, True, (True, "as this output's run began")),
        ("auto", "cuda:0", 50_000, False, False, (False, "as this output's run began")),
        ("on", "cpu", 1, False, False, (True, "--compile on")),
        ("off", "cuda:0", 50_000, False, True, (False, "--compile off")),
        ("off", "cuda:0", 50_000, True, None, (False, "--compile off")),
    ],
)
def test_compiling_is_chosen_where_a_run_is_long_and_kept_for_its_output(
    asked: str,
    device: str,
    images: int,
    vary: bool,
    before: bool | None,
    chosen: tuple[bool, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "_can_compile", lambda: True)
    assert devices.choose_compile(asked, device, images, vary, before) == chosen


def test_without_a_compiler_auto_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    assert devices.choose_compile("auto", "cuda:0", 50_000, False, None) == (False, AUTO)


def test_images_of_their_own_sizes_cannot_be_compiled() -> None:
    with pytest.raises(UsageError) as caught:
        devices.choose_compile("on", "cpu", 1, True, None)
    assert str(caught.value) == (
        "--compile on: each image has its own size, and each size would be compiled; drop it, or "
        "use --resize crop, squash or pad"
    )


def test_a_run_compiles_says_so_and_so_do_later_ones_of_its_output(
    calls: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "hf:tiny", "--size", "28", "--deterministic", "--batch_size", "1"]
    words += [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    (tmp_path / "in").mkdir()
    for name, flags, reason in (
        ("a", ["--compile", "on"], "--compile on"),
        ("b", [], "as this output's run began"),
    ):
        Image.new("RGB", (28, 28)).save(tmp_path / f"in/{name}.png")
        assert encode.main([*words, *flags]) == 0
        assert f", compiled ({reason})\n" in capsys.readouterr().err
        assert (tmp_path / f"out/{name}.npy").exists()
    assert len(calls) == 2 * TINY["hf"].depth
    run = json.loads((tmp_path / "out/.featprep/run.json").read_text())
    assert run["about"]["compile"] is True
    assert run["fingerprint"]["compile"] is True  # the last bits are those of a compiled network
    with pytest.raises(FingerprintError) as caught:
        encode.main([*words, "--compile", "off"])
    assert str(caught.value).endswith(
        " holds features of other settings: --compile on there, --compile off asked. Nothing was "
        "touched: to go on with what is there give --compile on, else use another --output, or "
        "--overwrite to replace them"
    )


def test_auto_is_recorded_where_it_compiles_nothing(
    calls: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    words = [f"--input={tmp_path}", f"--output={tmp_path / 'out'}", "--model=hf:tiny", "--size=28"]
    assert encode.main(words) == 0
    assert "compiled" not in capsys.readouterr().err
    assert calls == []
    run = json.loads((tmp_path / "out/.featprep/run.json").read_text())
    assert run["about"]["compile"] is False
