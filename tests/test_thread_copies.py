"""Several threads, one encoder: each gets what one thread gets, and the weights are there once."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip_towers
import pytest
import torch
from featprep.certify_cases import generate_images
from featprep.encoders import load_encoder
from featprep.encoders.base import Encoder, LoadOptions, ModelName, Want
from featprep.encoders.random_modules import write_timm, write_torchvision
from featprep.encoders.thread_copies import ThreadCopies, share
from featprep.encoders.tiny import TINY, write_openclip, write_random, write_tiny
from test_module_encoders import OF_TIMM

# Every way in which an encoder runs its module: what a forward pass changes in it differs.
KINDS = (
    *(f"{family}:tiny" for family in TINY),
    "clip:RN50",
    "hf:facebook/dinov3-vits16-pretrain-lvd1689m",
    "hf:facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
    *(name for name in open_clip_towers.TOWERS if name != "openclip:small/relpos"),
    "timm:test_vit",
    "timm:vit_small_patch16_dinov3",
    "timm:test_resnet",
    "torchvision:resnet18",
)


@pytest.fixture(scope="module", params=KINDS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    name = written(request.param, tmp_path_factory.mktemp("weights"))
    return load_encoder(name, LoadOptions(threads=1))


def written(kind: str, folder: Path) -> ModelName:
    """Random weights of it as local ones."""
    family, _, id = kind.partition(":")
    if kind in open_clip_towers.TOWERS:
        path = write_openclip(open_clip_towers.TOWERS[kind], folder)
    elif id == "tiny":
        path = write_tiny(family, folder)
    elif family == "timm":
        path = write_timm(id, folder, **OF_TIMM[id])
    elif family == "torchvision":
        path = write_torchvision(id, folder)
    else:
        path = write_random(kind, folder, 2)
    return ModelName(family, id, str(path))


def questions(encoder: Encoder) -> list[tuple[np.ndarray[Any, Any], Want]]:
    spec, side = encoder.spec, encoder.spec.patch
    sizes = [(2 * side, 3 * side), (3 * side, 2 * side), (4 * side, 4 * side)]
    if spec.fixed_size:
        sizes = [spec.native_size] * 3
    layers = [(0,), (spec.depth - 1,), (spec.depth - 1, 0)] if spec.has_layers else [(-1,)] * 3
    return [
        (generate_images(2, *size), Want(layers=layer))
        for size, layer in zip(sizes, layers, strict=True)
    ]


def test_threads_get_what_one_thread_gets_at_other_sizes_and_layers(encoder: Encoder) -> None:
    asked = questions(encoder)
    expected = [encoder.encode(*one).maps for one in asked]
    copies = ThreadCopies(encoder, 2)
    with ThreadPoolExecutor(3) as threads:  # one waits for a copy
        found = list(threads.map(lambda one: copies.encode(*one).maps, asked * 4))
    for ours, wanted in zip(found, expected * 4, strict=True):
        assert ours.keys() == wanted.keys()
        assert all(np.array_equal(ours[layer], wanted[layer]) for layer in wanted)


def test_a_copy_has_no_weights_of_its_own(encoder: Encoder) -> None:
    def storages() -> set[int]:
        gc.collect()
        alive = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
        return {item.untyped_storage().data_ptr() for item in alive if item.device.type == "cpu"}

    before = storages()
    copy: Any = share(encoder)
    assert storages() <= before
    assert copy.grid(*encoder.spec.native_size) == encoder.grid(*encoder.spec.native_size)


def test_a_copy_is_free_again_after_an_error() -> None:
    class Refusing:
        spec, digest, origin, weights_files = None, "", "", {}

        def encode(self, pixels: Any, want: Want) -> None:
            raise ZeroDivisionError

    copies = ThreadCopies(Refusing(), 1)  # type: ignore[arg-type]
    pixels = np.zeros((1, 3, 2, 2), np.uint8)

    def ask() -> None:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                copies.encode(pixels, Want())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
