"""What runs on a GPU alone. Skipped without one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from featprep import encoders
from featprep.commands import encode
from featprep.encoders.base import LoadOptions, ModelName, Want
from featprep.encoders.graphs import Graph
from featprep.encoders.thread_copies import ThreadCopies
from featprep.encoders.tiny import write_random
from PIL import Image

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

FAMILIES = ["clip:tiny", "hf:tiny", "openclip:tiny", "timm:tiny"]
HALF = Want(dtype="float16")
CUDA = {"device": "cuda:0"}


def _pixels(seed: int, count: int = 4) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 224, 224), np.uint8)


def _load(name: str, **options: Any) -> Any:
    return encoders.load_encoder(encoders.resolve(name, "any"), LoadOptions(**options))


@pytest.mark.parametrize("name", FAMILIES)
def test_float32_maps_are_those_of_the_cpu(name: str) -> None:
    want = Want(layers=(-1, 0), prefix=True)
    there, here = _load(name, **CUDA, want=want), _load(name, want=want)
    found, expected = there.encode(_pixels(0), want), here.encode(_pixels(0), want)
    for layer, map_ in expected.maps.items():
        rms = float(np.sqrt((map_**2).mean()))
        assert np.abs(found.maps[layer] - map_).max() <= 1e-4 * max(1, rms)
    assert found.finite.tolist() == [True] * 4
    assert expected.finite is None


@pytest.mark.parametrize("recorded", [False, True])
def test_threads_at_once_and_recorded_graphs_give_the_bits_of_one_batch_after_another(
    recorded: bool,
) -> None:
    alone = _load("hf:tiny", **CUDA, compute="float16")
    batches = [_pixels(seed) for seed in range(12)]
    expected = [alone.encode(batch, HALF).map for batch in batches]
    encoder = _load("hf:tiny", **CUDA, compute="float16")
    encoder._graph = Graph() if recorded else None
    copies = ThreadCopies(encoder, 2)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda batch: copies.encode(batch, HALF).map, batches))
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


def test_another_size_of_batch_than_the_recorded_one_is_encoded_too() -> None:
    encoder, plain = _load("hf:tiny", **CUDA), _load("hf:tiny", **CUDA)
    encoder._graph = Graph()
    for count in (4, 2, 4):
        pixels = _pixels(count, count)
        assert np.array_equal(encoder.encode(pixels, Want()).map, plain.encode(pixels, Want()).map)


def test_a_network_that_asks_the_host_on_its_way_runs_unrecorded() -> None:
    encoder, plain = _load("hf:tiny", **CUDA), _load("hf:tiny", **CUDA)
    run = encoder._run

    def ask(pixels: Any) -> Any:
        assert float(pixels.abs().sum()) > 0
        return run(pixels)

    encoder._run, encoder._graph = ask, Graph()
    for seed in range(2):
        pixels = _pixels(seed)
        assert np.array_equal(encoder.encode(pixels, Want()).map, plain.encode(pixels, Want()).map)


def test_the_device_tells_which_images_overflow_half_precision() -> None:
    encoder = _load("hf:tiny", **CUDA)
    with torch.no_grad():
        encoder.model.layernorm.weight.mul_(3e4)
    found = encoder.encode(_pixels(0), HALF)
    finite = [bool(np.isfinite(map_).all()) for map_ in found.map]
    assert found.finite.tolist() == finite
    assert not all(finite)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_a_cnns_maps_are_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    family, id = name.split(":")
    local = ModelName(family, id, str(write_random(name, tmp_path)))
    there, here = (encoders.load_encoder(local, LoadOptions(device=d)) for d in ("cuda:0", "cpu"))
    found, expected = there.encode(_pixels(0), Want()).map, here.encode(_pixels(0), Want()).map
    rms = float(np.sqrt((expected**2).mean()))
    assert np.abs(found - expected).max() <= 1e-4 * max(1, rms)


def test_a_run_on_the_gpu_ends_as_one_on_the_cpu(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(9):
        Image.fromarray(_pixels(i, 1)[0].transpose(1, 2, 0)).save(tmp_path / "in" / f"{i}.png")
    maps = {}
    for device in ("cpu", "cuda"):
        words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / device)]
        more = ["--model", "hf:tiny", "--size", "56", "--batch_size", "2", "--device", device]
        assert encode.main([*words, *more]) == 0
        maps[device] = {p.name: np.load(p) for p in sorted((tmp_path / device).glob("*.npy"))}
    assert maps["cpu"].keys() == maps["cuda"].keys()
    for name, map_ in maps["cpu"].items():
        assert np.abs(maps["cuda"][name].astype(np.float64) - map_).max() < 1e-4
