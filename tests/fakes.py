"""An encoder whose output can be computed by hand: the mean colour of each cell.

It stands behind the Encoder protocol, so that end-to-end tests compare values and not counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from featprep import encoders
from featprep.config import EncodeConfig
from featprep.devices import Precision
from featprep.encoders import tiny, wants
from featprep.encoders.base import EncoderSpec, ModelName, Recipe, Want
from featprep.errors import OutOfMemoryError
from featprep.records import AnyArray, FeatureMaps, UInt8
from featprep.resolve import resolve, wrapped
from featprep.session import Decided, Session

PATCH = 8
NOTHING_DECIDED = Decided()

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


# Four layers, CLS and a register, a pooled vector.
DEEP = replace(
    SPEC,
    name="fake:deep",
    depth=4,
    registers=1,
    pooled=True,
    has_layers=True,
    norms=("auto", "final", "none"),
)


def mean_colours(pixels: UInt8, side: int = PATCH) -> AnyArray:
    """(B, 3, H, W) uint8 → (B, 3, H/8, W/8) float32 in [0, 255]."""
    batch, channels, height, width = pixels.shape
    cells = pixels.reshape(batch, channels, height // side, side, width // side, side)
    return cells.astype(np.float64).mean(axis=(3, 5)).astype(np.float32)


class FakeEncoder:
    """Layer L is L + 1 times the mean colours, the last one 1 time; a CNN's stages have cells of
    their own stride. CLS is the image's mean colour, a register 7; the pooled vector its first
    pixel. `room`: images the device has memory for. `scale`: multiplies all. `calls`: batch shapes.
    """

    def __init__(
        self,
        room: int = 1000,
        scale: float = 1.0,
        digest: str = "f" * 64,
        spec: EncoderSpec = SPEC,
    ) -> None:
        self.spec, self.digest, self.origin = spec, digest, "made here"
        self.weights_files = {"fake.safetensors": "a" * 64}
        self.room, self.scale = room, scale
        self.calls: list[tuple[int, ...]] = []
        self.before: Callable[[UInt8], None] = lambda pixels: None

    def grid(self, height: int, width: int, layer: int = -1) -> tuple[int, int]:
        stride = wants.stride(self.spec, layer % self.spec.depth)
        return height // stride, width // stride

    def tokens(self, height: int, width: int) -> tuple[int, int]:
        return (height // PATCH) * (width // PATCH), 3

    def compile(self, want: Want) -> None:
        """There is nothing to compile."""

    def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
        self.calls.append(pixels.shape)
        self.before(pixels)
        if len(pixels) > self.room:
            raise OutOfMemoryError(f"no room for a batch of {len(pixels)}")
        layers = wants.check(self.spec, want).layers
        maps = {layer: self._map(pixels, layer) for layer in layers}
        prefix = np.full((len(pixels), 2, 3), 7.0)
        prefix[:, 0] = pixels.mean(axis=(2, 3))
        with np.errstate(over="ignore"):
            return FeatureMaps(
                {n: (map_ * self.scale).astype(want.dtype) for n, map_ in maps.items()},
                (prefix * self.scale).astype(want.dtype) if want.prefix else None,
                (pixels[:, :, 0, 0] * self.scale).astype(want.dtype) if want.pooled else None,
            )

    def _map(self, pixels: UInt8, layer: int) -> AnyArray:
        stride = wants.stride(self.spec, layer)
        return mean_colours(pixels, stride) * (1 if layer == self.spec.depth - 1 else layer + 1)


def describe(name: ModelName, spec: EncoderSpec | None = SPEC) -> EncoderSpec | None:
    """What `encoders.describe` says, where clip:tiny stands for the fake."""
    if (name.family, name.id) == ("clip", "tiny"):
        return spec
    return encoders.FAMILIES[name.family].describe(name) if name.id != "tiny" else tiny.TINY["hf"]


def fake_session(encoder: FakeEncoder, exact: FakeEncoder | None = None) -> Callable[..., Session]:
    """An `open_session` that brings `encoder` instead of loading one."""

    def open_session(
        config: EncodeConfig,
        name: ModelName,
        *,
        before: Decided = NOTHING_DECIDED,
        images: int = 0,
    ) -> Session:
        storage = "float16" if config.fp16 else "float32"
        precision = Precision("float32", storage, "default")  # type: ignore[arg-type]
        resolved = resolve(config, encoder.spec, storage, encoder.grid, is_plain=False)
        size = config.batch_size or before.batch_size or 4
        whole = wrapped(encoder, config, resolved)
        twin = wrapped(exact, config, resolved) if exact else whole
        reason = "as the test has it"
        fixed = (before.threads or 2) if config.deterministic else None
        return Session(config, whole, lambda: twin, resolved, precision, "cpu", size, reason, fixed)

    return open_session
