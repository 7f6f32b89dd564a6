"""What an encoder is: a frozen network with a spec, a grid and `encode`.

Knows no file and no image format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from featprep.errors import UsageError
from featprep.records import FeatureMaps, UInt8

Feature = Literal["patch", "projected"]
PosEmbed = Literal["transformers", "hub"]
StorageDtype = Literal["float32", "float16"]
ComputeDtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class ModelName:
    """FAMILY:ID, the ID in the family's own spelling; `path`: local weights given by the user.

    `is_plain`: named as an entry script names it: --size is then 224, as the common scripts have
    it. `kinds`: the model types that the command takes, where only a config.json tells; empty: all.
    """

    family: str
    id: str
    path: str | None = None
    is_plain: bool = False
    kinds: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.family}:{self.id}"

    @property
    def typed(self) -> str:
        """As any command takes it."""
        return f"{self}={self.path}" if self.path else str(self)


@dataclass(frozen=True, slots=True)
class Recipe:
    """The checkpoint's own preprocessing: `--resize native`.

    `resize`: (height, width) to stretch to, or an int for the short side. `crop`: (height, width)
    of the centre crop. `kernel`: Pillow's name. `rounding`: how crop offsets are rounded, as
    torchvision (half to even) or transformers (down) does.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    kernel: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    rounding: Literal["torchvision", "transformers"] = "torchvision"


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What is known of an encoder without running it."""

    name: str  # FAMILY:ID
    family: str
    patch: int  # stride of a cell, pixels
    hidden_dim: int
    depth: int  # blocks (stages for CNNs)
    native_size: tuple[int, int]  # the size the position embeddings were made for
    recipe: Recipe
    mean: tuple[float, float, float]  # of pixels in [0, 1]
    std: tuple[float, float, float]
    projected_dim: int | None = None  # None: no projection of patches
    text: bool = False
    pooled: bool = False
    cls: bool = True  # whether a CLS token, or a pooled vector in its place, precedes the cells
    registers: int = 0
    final_norm: bool = True  # whether the last block's own map is after the model's last norm
    pos_embeds: tuple[str, ...] = ("transformers",)  # conventions --pos_embed may name
    fixed_size: bool = False
    # CNNs take any size: of a side, the remainder of `unit` is dropped, and what is left of `patch`
    # after that makes a cell of its own. 1: every pixel counts (ResNet); 4: Swin; patch: ConvNeXt.
    # None: multiples of the patch.
    unit: int | None = None
    meaningless: bool = False  # seeded random weights (tiny)


@dataclass(frozen=True, slots=True)
class Want:
    """What to take from a forward pass; checked against a spec before any work by `config`."""

    layers: tuple[int, ...] = (-1,)
    feature: Feature = "patch"
    dtype: StorageDtype = "float32"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to build an encoder."""

    device: str = "cpu"  # as torch spells it
    compute: ComputeDtype = "float32"
    pos_embed: PosEmbed = "transformers"
    trust_weights: bool = False
    feature: Feature = "patch"
    quick_gelu: bool | None = None  # None: as the checkpoint's tag says


class Encoder(Protocol):
    """A loaded encoder. Row i of every output depends on image i alone.

    `digest`: hex sha256 over the tensors used and the settings that shape them. `origin`: where the
    weights came from, for people ("hub cache", a path, "made here").
    """

    spec: EncoderSpec
    digest: str
    origin: str

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Cells (rows, columns) the network makes of an input of this size."""
        ...

    def tokens(self, height: int, width: int) -> tuple[int, int]:
        """(tokens including prefix, hidden dim), for the shapes line."""
        ...

    def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
        """Encode (B, 3, H, W) uint8. Raises OutOfMemoryError if the device has no room for it.

        Values are cast to want.dtype unchecked: what overflows float16 comes back as inf.
        """
        ...


def predict_grid(spec: EncoderSpec, height: int, width: int) -> tuple[int, int]:
    """The grid at this size, while there is no model to ask."""
    unit = spec.unit or spec.patch
    rows, columns = (-(-(side // unit) // (spec.patch // unit)) for side in (height, width))
    return rows, columns


def check_pos_embed(spec: EncoderSpec, asked: str, height: int, width: int) -> None:
    """Refuse a convention that the encoder lacks, unless nothing is interpolated at this size."""
    if asked in spec.pos_embeds or (height, width) == spec.native_size:
        return
    native = ",".join(str(side) for side in spec.native_size)
    raise UsageError(
        f"--pos_embed {asked} at {height}×{width}: {spec.name} has no such interpolation; allowed "
        f"is {' or '.join(spec.pos_embeds)}, or its own size, --size {native}"
    )
