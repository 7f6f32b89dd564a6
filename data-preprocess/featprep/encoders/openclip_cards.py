"""What open_clip says of its models: architecture files and the table of tags → EncoderSpec.

Both are read from the installed package without importing it, which would load torch. Knows no
weights and no network.
"""

from __future__ import annotations
import __future__

import ast
import functools
import json
import re
import runpy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from featprep.encoders import weights
from featprep.encoders.base import EncoderSpec, ModelName, Recipe, Stage
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


# --- open_clip's files


def _package() -> Path | None:
    found = find_spec("open_clip")
    return Path(found.origin).parent if found and found.origin else None


@functools.cache
def architectures() -> dict[str, dict[str, Any]]:
    """ARCH → its configuration, as open_clip.list_models has them; empty without open_clip."""
    package, found = _package(), {}
    for file in sorted(package.glob("model_configs/*.json")) if package else ():
        config = json.loads(file.read_bytes())
        if {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
            found[file.stem] = config
    return found


@functools.cache
def tags() -> dict[str, dict[str, dict[str, Any]]]:
    """ARCH → tag → what it says: hub, url, mean, std, interpolation, resize_mode, quick_gelu.

    pretrained.py is a table with a few functions that fill it in: those are run, its imports of
    torch and the hub's client are not. Should that fail on another release, it is imported.
    """
    package = _package()
    if package is None:
        return {}
    path = package / "pretrained.py"
    kinds = (ast.Assign, ast.FunctionDef, ast.For, ast.Expr, ast.Import)
    try:
        tree = ast.parse(path.read_text("utf-8"))
        tree.body = [node for node in tree.body if isinstance(node, kinds)]
        room: dict[str, Any] = runpy.run_path(str(package / "constants.py"))
        postponed = __future__.annotations.compiler_flag
        exec(compile(tree, str(path), "exec", flags=postponed), room)
    except Exception:  # of a release that is written otherwise
        import importlib

        room = vars(importlib.import_module("open_clip.pretrained"))
    table: dict[str, dict[str, dict[str, Any]]] = room["_PRETRAINED"]
    return table


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
    fits = [stem for stem in _TRUNKS if card.trunk.startswith(stem)]
    if not fits:
        return None
    width, depth, stride = _TRUNKS[max(fits, key=len)]
    patch = re.search(r"_patch(\d+)", card.trunk)
    own = re.search(r"_(\d{3})$", card.trunk)
    is_cnn = card.trunk.startswith(_CNNS)
    return Shape(
        int(patch[1]) if patch else stride,
        width,
        depth,
        int(own[1]) if own else side,
        stages=doubling(stride, width, depth) if is_cnn else (),
        cls=not is_cnn and not _WITHOUT_CLS.search(card.trunk),
        has_norm=not card.trunk.startswith("fastvit"),
    )


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
