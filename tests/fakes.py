"""An encoder whose maps can be computed by hand: the mean colour of each cell, and its first
column.

It stands behind the Encoder protocol, so that end-to-end tests compare values and not counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from featprep import encoders
from featprep.config import EncodeConfig
from featprep.devices import Precision
from featprep.encoders import tiny
from featprep.encoders.base import EncoderSpec, ModelName, Recipe, Want
from featprep.errors import OutOfMemoryError
from featprep.records import AnyArray, FeatureMaps, UInt8
from featprep.resolve import resolve, wrapped
from featprep.session import Session

PATCH = 8

SPEC = EncoderSpec(
    name="fake:mean",
    family="fake",
    patch=PATCH,
    hidden_dim=3,
    depth=1,
    native_size=(32, 32),
    recipe=Recipe(resize=40, crop=(32, 32)),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)


def mean_colours(pixels: UInt8) -> AnyArray:
    """(B, 3, H, W) uint8 → (B, 3, H/8, W/8) float32 in [0, 255]."""
    batch, channels, height, width = pixels.shape
    cells = pixels.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return cells.astype(np.float64).mean(axis=(3, 5)).astype(np.float32)


class FakeEncoder:
    """`room`: images the device has memory for. `scale`: multiplies the maps. `calls`: batch
    shapes."""

    def __init__(self, room: int = 1000, scale: float = 1.0, digest: str = "f" * 64) -> None:
        self.spec, self.digest, self.origin = SPEC, digest, "made here"
        self.weights_files = {"fake.safetensors": "a" * 64}
        self.room, self.scale = room, scale
        self.calls: list[tuple[int, ...]] = []
        self.before: Callable[[UInt8], None] = lambda pixels: None

    def grid(self, height: int, width: int, layer: int = -1) -> tuple[int, int]:
        return height // PATCH, width // PATCH

    def tokens(self, height: int, width: int) -> tuple[int, int]:
        return (height // PATCH) * (width // PATCH), 3

    def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
        self.calls.append(pixels.shape)
        self.before(pixels)
        if len(pixels) > self.room:
            raise OutOfMemoryError(f"no room for a batch of {len(pixels)}")
        with np.errstate(over="ignore"):
            return FeatureMaps({0: (mean_colours(pixels) * self.scale).astype(want.dtype)})


def describe(name: ModelName) -> EncoderSpec | None:
    """What `encoders.describe` says, where clip:tiny stands for the fake."""
    if (name.family, name.id) == ("clip", "tiny"):
        return SPEC
    return encoders.FAMILIES[name.family].describe(name) if name.id != "tiny" else tiny.TINY["hf"]


def fake_session(encoder: FakeEncoder, exact: FakeEncoder | None = None) -> Callable[..., Session]:
    """An `open_session` that brings `encoder` instead of loading one."""

    def open_session(
        config: EncodeConfig, name: ModelName, *, batch_size: int | None = None
    ) -> Session:
        storage = "float16" if config.fp16 else "float32"
        precision = Precision("float32", storage, "default")  # type: ignore[arg-type]
        resolved = resolve(config, encoder.spec, storage, encoder.grid, is_plain=False)
        size = config.batch_size or batch_size or 4
        whole = wrapped(encoder, config, resolved)
        twin = wrapped(exact, config, resolved) if exact else whole
        return Session(
            config, whole, lambda: twin, resolved, precision, "cpu", size, "as the test has it"
        )

    return open_session
