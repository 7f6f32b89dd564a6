"""What open_clip says of its models: architecture files and the table of tags → EncoderSpec.

Knows no weights and no network.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featprep.encoders import weights
from featprep.encoders.base import EncoderSpec, ModelName, Recipe
from featprep.encoders.openclip_files import architectures, tags
from featprep.encoders.openclip_shapes import Shape, doubling, trunk_shape
from featprep.errors import UsageError, WeightsError

CONFIG = "open_clip_config.json"
# In the order in which open_clip looks for them.
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HUB = "hf-hub:"
_PREPROCESS: Mapping[str, Any] = {  # open_clip's PreprocessCfg: what holds where nothing is said
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True, slots=True)
class Card:
    """All that is said of a checkpoint. `quick_gelu`: None where nothing says it.

    `hub`: ORG/NAME/FILE, or ORG/NAME/ where the file bears open_clip's own name.
    """

    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    quick_gelu: bool | None
    hub: str = ""

    @property
    def vision(self) -> Mapping[str, Any]:
        vision: Mapping[str, Any] = self.config["vision_cfg"]
        return vision

    @property
    def trunk(self) -> str | None:
        """timm's name of the tower, or None for open_clip's own ViTs and ResNets."""
        name: str | None = self.vision.get("timm_model_name")
        return name

    @property
    def is_resnet(self) -> bool:
        return self.trunk is None and isinstance(self.vision.get("layers"), list)

    @property
    def has_activation(self) -> bool:
        """Whether QuickGELU or GELU is a choice: timm's trunks and ResNets have their own."""
        return self.trunk is None and not self.is_resnet

    @property
    def pools(self) -> bool:
        """Whether its head takes any number of cells."""
        return self.vision.get("timm_pool") not in ("abs_attn", "rot_attn")

    @property
    def projects(self) -> bool:
        """Whether one cell alone can pass the head: not where the head attends over all of them."""
        if self.vision.get("attentional_pool") or self.vision.get("timm_pool") == "map":
            return False
        return not (self.trunk or "").startswith("fastvit")  # convolves once more before its head


# --- cards


def card_of(name: ModelName, folder: Path | None = None) -> Card:
    """The card of ARCH/TAG, of ARCH alone, or of a folder in the hub's format."""
    if folder is not None:
        return _folder_card(name, folder)
    arch, _, tag = name.id.partition("/")
    config = architectures().get(arch)
    if config is None:
        raise UsageError(
            f"--model {name}: open_clip has no architecture {arch}; allowed are its own, ARCH/TAG "
            "or ARCH=FILE, such as openclip:ViT-B-32/openai (featprep models openclip:)"
        )
    if not tag:
        return Card(config, _agreed(arch), config.get("quick_gelu") or None)
    said = tags().get(arch, {}).get(tag)
    if said is None:
        there = ", ".join(tags().get(arch, {})) or "none"
        raise UsageError(
            f"--model {name}: {arch} has no tag {tag}; allowed is {there}, or {arch}=FILE"
        )
    # A tag that is silent leaves it to the architecture: roberta-ViT-B-32 says it there.
    quick = bool(said.get("quick_gelu") or config.get("quick_gelu"))
    return Card(config, {**_PREPROCESS, **said}, quick, said["hf_hub"])


def _agreed(arch: str) -> dict[str, Any]:
    """Preprocessing of a checkpoint without a tag: what all tags of ARCH share, or the default."""
    rows = list(tags().get(arch, {}).values())
    return {
        key: rows[0][key] if rows and all(row[key] == rows[0][key] for row in rows) else default
        for key, default in _PREPROCESS.items()
    }


def _folder_card(name: ModelName, folder: Path) -> Card:
    read = weights.read_json(folder / CONFIG, name)
    config, said = read.get("model_cfg"), read.get("preprocess_cfg") or {}
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg"} <= set(config):
        raise WeightsError(
            f"{name}: {folder / CONFIG} has no model_cfg with embed_dim and vision_cfg; put the "
            "checkpoint's own there"
        )
    return Card(config, {**_PREPROCESS, **said}, bool(config.get("quick_gelu")))


# --- spec


def shape_of(card: Card) -> Shape | None:
    """The tower's shape without building it; None for a trunk of timm's not in the table."""
    side = int(card.vision["image_size"])
    if card.is_resnet:
        width = card.vision["width"] * 32
        return Shape(32, width, 4, side, stages=doubling(32, width, 4))
    if card.trunk is None:
        vision = {"patch_size": 16, "width": 768, "layers": 12, **card.vision}  # its CLIPVisionCfg
        return Shape(
            vision["patch_size"],
            vision["width"],
            vision["layers"],
            side,
            cls=True,
            has_norm=not vision.get("attentional_pool"),  # whose norm is of what it pooled
        )
    return trunk_shape(card.trunk, side)


def make_spec(
    name: ModelName, card: Card, shape: Shape, *, fixed_size: bool = False
) -> EncoderSpec:
    said, size = card.preprocess, (shape.side, shape.side)
    if said["resize_mode"] not in ("shortest", "squash") or said["interpolation"] not in (
        "bicubic",
        "bilinear",
    ):
        raise WeightsError(
            f"{name}: resize_mode {said['resize_mode']} with {said['interpolation']}; allowed is "
            "shortest or squash, with bicubic or bilinear"
        )
    red, green, blue = said["mean"]
    red_std, green_std, blue_std = said["std"]
    projects = card.projects and not fixed_size
    has_norm = shape.has_norm and not fixed_size
    return EncoderSpec(
        name=str(name),
        family="openclip",
        patch=shape.patch,
        hidden_dim=shape.width,
        depth=shape.depth,
        native_size=size,
        recipe=Recipe(
            resize=size if said["resize_mode"] == "squash" else shape.side,
            crop=size,
            kernel=said["interpolation"],
        ),
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
        projected_dim=int(card.config["embed_dim"]) if projects else None,
        text=True,
        pos_embeds=("transformers", "hub"),
        fixed_size=fixed_size,
        pooled=card.pools,
        cls=shape.cls,
        registers=shape.registers,
        final_norm=has_norm and card.vision.get("timm_pool") == "map",
        has_layers=not fixed_size,
        stages=shape.stages,
        norms=("auto", "final", "none") if has_norm else ("auto", "none"),
        has_value=projects and (card.is_resnet or not shape.stages),
        has_facets=not fixed_size and not shape.stages,
    )


class _Known(Mapping[str, EncoderSpec | None]):
    """ARCH/TAG → spec, read when first asked for."""

    def __getitem__(self, id: str) -> EncoderSpec | None:
        if id not in self._ids():
            raise KeyError(id)
        name = ModelName("openclip", id)
        card = card_of(name)
        shape = shape_of(card)
        return make_spec(name, card, shape) if shape else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids())

    def __len__(self) -> int:
        return len(self._ids())

    @staticmethod
    @functools.cache
    def _ids() -> dict[str, None]:
        named = architectures()
        return {
            f"{arch}/{tag}": None for arch, row in tags().items() if arch in named for tag in row
        }


KNOWN: Mapping[str, EncoderSpec | None] = _Known()
