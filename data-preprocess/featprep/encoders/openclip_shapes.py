"""What a visual tower makes of an image: by heart for timm's trunks, so that no torch is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from featprep.encoders.base import Stage


@dataclass(frozen=True, slots=True)
class Shape:
    """What a tower makes of an image.

    `patch`: stride of a cell. `depth`: blocks, or `stages`, which CNNs alone have. `cls`,
    `registers`: tokens before the cells. `has_norm`: a last norm that one token alone can pass.
    """

    patch: int
    width: int
    depth: int
    side: int
    stages: tuple[Stage, ...] = ()
    cls: bool = False
    registers: int = 0
    has_norm: bool = False


def doubling(stride: int, channels: int, count: int) -> tuple[Stage, ...]:
    """Stages of a CNN, each of twice the stride and the channels of the last, up to these."""
    halvings = range(count - 1, -1, -1)
    return tuple(Stage(stride >> halving, channels >> halving) for halving in halvings)


_CNNS = ("convnext", "fastvit")
# timm's names of ViTs that have no class token.
_WITHOUT_CLS = re.compile("siglip|vitamin|vit_medium_patch16_gap|vit_pe_core_gigantic")
# timm's name, from its beginning: width and depth (blocks, or stages) of the trunk, and stride
# where the name does not say it.
_TRUNKS = {
    "convnext_tiny": (768, 4, 32),
    "convnext_small": (768, 4, 32),
    "convnext_base": (1024, 4, 32),
    "convnext_large": (1536, 4, 32),
    "convnext_xlarge": (2048, 4, 32),
    "convnext_xxlarge": (3072, 4, 32),
    "eva_giant": (1408, 40, 14),
    "eva02_base": (768, 12, 16),
    "eva02_large": (1024, 24, 14),
    "eva02_enormous": (1792, 64, 14),
    "fastvit_mci0": (512, 4, 32),
    "fastvit_mci1": (512, 4, 32),
    "fastvit_mci2": (640, 4, 32),
    "fastvit_mci3": (1536, 5, 64),
    "fastvit_mci4": (2048, 5, 64),
    "vit_medium_patch16_gap": (512, 12, 16),
    "vit_base": (768, 12, 16),
    "vit_large": (1024, 24, 16),
    "vit_so400m": (1152, 27, 14),
    "vit_giantopt": (1536, 40, 16),
    "vit_pe_core_tiny": (192, 12, 16),
    "vit_pe_core_small": (384, 12, 16),
    "vit_pe_core_base": (768, 12, 16),
    "vit_pe_core_large": (1024, 24, 14),
    "vit_pe_core_gigantic": (1536, 50, 14),
    "vitamin_small": (384, 14, 16),
    "vitamin_base": (768, 14, 16),
    "vitamin_large": (1024, 31, 16),
    "vitamin_xlarge": (1152, 32, 16),
}


def trunk_shape(name: str, side: int) -> Shape | None:
    """Of timm's trunk of this name; None where it is not in the table. `side`: where the name does
    not say it."""
    fits = [stem for stem in _TRUNKS if name.startswith(stem)]
    if not fits:
        return None
    width, depth, stride = _TRUNKS[max(fits, key=len)]
    patch = re.search(r"_patch(\d+)", name)
    own = re.search(r"_(\d{3})$", name)
    is_cnn = name.startswith(_CNNS)
    return Shape(
        int(patch[1]) if patch else stride,
        width,
        depth,
        int(own[1]) if own else side,
        stages=doubling(stride, width, depth) if is_cnn else (),
        cls=not is_cnn and not _WITHOUT_CLS.search(name),
        has_norm=not name.startswith("fastvit"),
    )
