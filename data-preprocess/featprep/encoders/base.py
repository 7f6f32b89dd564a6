"""What an encoder is: a frozen network with a spec, a grid and `encode`.

Knows no file and no image format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from featprep.errors import UsageError
from featprep.records import FeatureMaps, Float32, UInt8

Feature = Literal["patch", "projected", "value"]
Facet = Literal["token", "query", "key", "value"]
Norm = Literal["auto", "final", "none"]
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
class Stage:
    """A stage of a CNN: `stride` of its cells in pixels, and its channels."""

    stride: int
    channels: int


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What is known of an encoder without running it."""

    name: str  # FAMILY:ID
    family: str
    patch: int  # stride of a cell, pixels
    hidden_dim: int
    depth: int  # blocks (stages for CNNs)
    native_size: tuple[int, int]  # the size the position embeddings were made for
    recipe: Recipe | None  # None: each image its own size, as NaFlex has it
    mean: tuple[float, float, float]  # of pixels in [0, 1]
    std: tuple[float, float, float]
    projected_dim: int | None = None  # None: no projection of patches
    text: bool = False  # whether a text tower belongs to it
    pooled: bool = False
    pooler: bool = False  # whether Want.before_projection can be met
    cls: bool = True  # whether a CLS token, or a pooled vector in its place, precedes the cells
    registers: int = 0
    final_norm: bool = True  # whether the last block's own map is after the model's last norm
    has_layers: bool = False  # whether any layer can be taken, not the last alone
    stages: tuple[Stage, ...] = ()  # of a CNN, one a layer; empty: blocks, which are all alike
    norms: tuple[Norm, ...] = ("auto",)  # what --norm may name
    has_value: bool = False  # --feature value: the value path of the last attention, projected
    has_facets: bool = False  # whether queries, keys and values of its attentions can be taken
    pos_embeds: tuple[str, ...] = ("transformers",)  # conventions --pos_embed may name
    fixed_size: bool = False
    # CNNs take any size: of a side, the remainder of `unit` is dropped, and what is left of `patch`
    # after that makes a cell of its own. 1: every pixel counts (ResNet); 4: Swin; patch: ConvNeXt.
    # None: multiples of the patch.
    unit: int | None = None
    meaningless: bool = False  # seeded random weights (tiny)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a checkpoint's publisher states. `licence`: as the model card has it. `is_gated`: does
    the hub give it only to those who accepted? None: not known."""

    licence: str = "unknown"
    is_gated: bool | None = None


@dataclass(frozen=True, slots=True)
class Want:
    """What to take from a forward pass; `wants.check` holds it against a spec before any work.

    `layers`: block outputs (stages for CNNs), 0 … depth − 1, or counted from the end as -1. `norm`:
    the model's last norm: final, on every layer; none; auto, as the family has its last block, and
    none before. `facet`: a part of each layer's attention in place of its output, heads
    concatenated, before rotation and scaling. `prefix`: CLS and registers of the first layer too.
    `pooled`: the vector that the model makes of the whole image; with `before_projection` the image
    tower's own, pooler_output of transformers, even where a projection to texts follows.
    """

    layers: tuple[int, ...] = (-1,)
    feature: Feature = "patch"
    facet: Facet = "token"
    norm: Norm = "auto"
    prefix: bool = False
    pooled: bool = False
    dtype: StorageDtype = "float32"
    before_projection: bool = False


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to build an encoder, or its text tower, which computes in float32 whatever is asked."""

    device: str = "cpu"  # as torch spells it
    compute: ComputeDtype = "float32"
    pos_embed: PosEmbed = "transformers"
    trust_weights: bool = False
    want: Want = Want()  # what will be asked: parts that none of it needs are not loaded
    quick_gelu: bool | None = None  # None: as the checkpoint's tag says
    threads: int | None = None  # of the CPU; a number fixes them and the kernels (--deterministic)
    pooled_if_any: bool = False  # load what the pooled vector needs, where the model has one


class TextEncoder(Protocol):
    """The text tower that belongs to an encoder, loaded by itself: `encoders.load_text`.

    Its vectors lie where the encoder's pooled and projected ones do. A score of an image and a text
    is scale · cosine + bias: over a set of texts a softmax of it, or, where there is a `bias`
    (SigLIP), a sigmoid of each. `context`: tokens a text may have, special ones included. `digest`:
    as an encoder's, over the tensors of the text tower; `origin`, `weights_files`: as an encoder's.
    """

    name: str  # FAMILY:ID
    dim: int
    context: int
    scale: float
    bias: float | None
    digest: str
    origin: str
    weights_files: Mapping[str, str]

    def encode_text(self, texts: Sequence[str]) -> Float32:
        """(N, D), not normalised, as the library's own encode_text or get_text_features has it.
        What is longer than `context` is truncated, as the library's tokenizer does it."""
        ...

    def too_long(self, texts: Sequence[str]) -> list[str]:
        """Those that encode_text truncates."""
        ...


class Encoder(Protocol):
    """A loaded encoder. Row i of every output depends on image i alone.

    `digest`: hex sha256 over the tensors used and the settings that shape them. `origin`: where the
    weights came from, for people ("hub cache", a path, "made here"). `weights_files`: file → sha256
    of those whose publisher states it.
    """

    spec: EncoderSpec
    digest: str
    origin: str
    weights_files: Mapping[str, str]

    def grid(self, height: int, width: int, layer: int = -1) -> tuple[int, int]:
        """Cells (rows, columns) the network makes of an input of this size, at a layer."""
        ...

    def tokens(self, height: int, width: int) -> tuple[int, int]:
        """(tokens including prefix, hidden dim), for the shapes line."""
        ...

    def compile(self, want: Want) -> None:
        """Make forward passes faster for a run that takes `want` from batches of one size. The last
        bits of its maps may change. Before it is copied for several threads."""
        ...

    def encode(self, pixels: UInt8, want: Want) -> FeatureMaps:
        """Encode (B, 3, H, W) uint8. Raises OutOfMemoryError if the device has no room for it.

        Values are cast to want.dtype unchecked: what overflows float16 comes back as inf.
        """
        ...


def predict_grid(spec: EncoderSpec, height: int, width: int, layer: int = -1) -> tuple[int, int]:
    """The grid of a layer at this size, while there is no model to ask."""
    stride = spec.stages[layer].stride if spec.stages else spec.patch
    unit = min(spec.unit or spec.patch, stride)
    rows, columns = (-(-(side // unit) // (stride // unit)) for side in (height, width))
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
