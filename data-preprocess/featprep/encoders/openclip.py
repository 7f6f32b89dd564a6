"""open_clip's visual towers, built by open_clip itself from its own configurations.

ARCH/TAG, ARCH with a local file, hf-hub:ORG/NAME, or a folder in the hub's format. The text tower
is never built.
"""

from __future__ import annotations

import copy
import importlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import hub, wants, weights
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName, Want
from featprep.encoders.openclip_cards import (
    CONFIG,
    HUB,
    KNOWN,
    WEIGHTS,
    Card,
    card_of,
    make_spec,
    shape_of,
    tags,
)
from featprep.encoders.openclip_towers import Tower, make_tower
from featprep.encoders.torch_encoder import Taken, TorchEncoder, place
from featprep.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KNOWN", "OpenClipEncoder", "build", "describe", "import_open_clip", "load"]

# open_clip's CLIP wants a text tower: the smallest there is stands in, and is let go.
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
# Of vision_cfg, what only training or the pooled vector knows.
_IN_TRAINING = ("timm_model_pretrained", "timm_drop", "timm_drop_path", "patch_dropout")


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec without torch or open_clip; None where only the hub or the module could tell."""
    if name.path is None and name.id.startswith(HUB):
        config = weights.hub_config(name.id.removeprefix(HUB), CONFIG)
        if config is None:
            return None
        card = card_of(name, config.parent)
    else:
        card = card_of(name, _folder(name))
    shape = shape_of(card)
    return make_spec(name, card, shape) if shape else None


def load(name: ModelName, options: LoadOptions) -> OpenClipEncoder:
    open_clip = import_open_clip()
    card, path, origin = _find(name, options)
    quick_gelu = _activation(name, card, options.quick_gelu)
    path, origin = (path, origin) if path else _download(name, card)
    published = {
        row["url"].split("/")[-2]
        for by_tag in tags().values()
        for row in by_tag.values()
        if "openaipublic" in row["url"]
    }
    tensors = weights.read_tensors(
        path, name, published, options.trust_weights, inside=("state_dict",)
    )
    model, blank = build(open_clip, name, card, quick_gelu, options.compute)
    _fill(model, tensors, name, path)
    tower = make_tower(model.visual, blank.visual, options.pos_embed)
    spec = make_spec(name, card, tower.shape, fixed_size=tower.fixed_size)
    wants.check(spec, options.want)
    settings = {key: item for key, item in card.vision.items() if key not in _IN_TRAINING}
    digest = weights.digest(
        model.visual.state_dict(),
        {"architecture": settings, "quick_gelu": quick_gelu, "mean": spec.mean, "std": spec.std},
    )
    return OpenClipEncoder(spec, tower, options, digest, origin)


def import_open_clip() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("open_clip")
    except ImportError as error:
        raise UsageError(
            f"openclip: models need open_clip ({weights.one_line(error)}); type: "
            "pip install open_clip_torch"
        ) from error


def _folder(name: ModelName) -> Path | None:
    return Path(name.path) if name.path is not None and Path(name.path).is_dir() else None


def _find(name: ModelName, options: LoadOptions) -> tuple[Card, Path | None, str]:
    """The card, and the file if it is local or belongs to a repository of the hub."""
    folder = _folder(name)
    if name.path is not None and folder is None:
        return card_of(name), Path(name.path), name.path
    if folder is not None:
        found = [folder / file for file in WEIGHTS if (folder / file).is_file()]
        if not found:
            raise WeightsError(f"{name}: {folder} holds no weights; put {WEIGHTS[0]} there")
        return card_of(name, folder), found[0], str(name.path)
    if name.id.startswith(HUB):
        way_out = f"put {CONFIG} and {WEIGHTS[0]} into a folder and give --model {name}=FOLDER"
        repo = name.id.removeprefix(HUB)
        (config, file), origin = hub.fetch(name, repo, [(CONFIG,), WEIGHTS], way_out)
        return card_of(name, config.parent), file, origin
    return card_of(name), None, ""


def _download(name: ModelName, card: Card) -> tuple[Path, str]:
    if not card.hub:
        raise UsageError(f"--model {name}: names no weights; add a tag, or give {name}=FILE")
    repo, _, file = card.hub.rpartition("/")
    stem, dot, suffix = file.rpartition(".")
    choices = (f"{stem}.safetensors", file) if dot and suffix != "safetensors" else (file,)
    way_out = f"give the file as --model {name}=FILE"
    (path,), origin = hub.fetch(name, repo, [choices if file else WEIGHTS], way_out)
    return path, origin


def _activation(name: ModelName, card: Card, asked: bool | None) -> bool:
    """QuickGELU or not: what the tag says, or what was asked where there is none."""
    flag = "--quick_gelu" if asked else "--no_quick_gelu"
    if not card.has_activation:
        if asked is not None:
            raise UsageError(f"{flag}: {name} has an activation of its own; drop it")
        return False
    if card.quick_gelu is None:
        if asked is None:
            raise UsageError(
                f"--model {name}: a checkpoint does not say its activation; add --quick_gelu "
                "(OpenAI's, DFN's and most MetaCLIP weights) or --no_quick_gelu (LAION's and "
                f"DataComp's), or name its tag, openclip:{name.id}/TAG=FILE"
            )
        return asked
    if asked is not None and asked != card.quick_gelu:
        own = "QuickGELU" if card.quick_gelu else "GELU"
        raise UsageError(f"{flag}: {name} was trained with {own}; drop it")
    return card.quick_gelu


def build(
    open_clip: Any, name: ModelName, card: Card, quick_gelu: bool, compute: str = "float32"
) -> tuple[Any, Any]:
    """open_clip's CLIP of this card with next to no text tower, and its twin on the meta device.

    Both on the meta device, unless the tower has buffers that no checkpoint holds (rotary
    embeddings), which only a real one computes.
    """
    import torch

    if not re.fullmatch(r"[\w.-]*", card.trunk or ""):  # timm would ask the hub for code and config
        raise WeightsError(f"{name}: {card.trunk} is no architecture of timm")
    vision = {**card.vision, "timm_model_pretrained": False}
    # LayerNorms that compute in float32, as open_clip makes them for reduced precision.
    cast = None if compute == "float32" else getattr(torch, compute)

    def make(device: str) -> Any:
        with torch.device(device):
            return open_clip.CLIP(
                embed_dim=card.config["embed_dim"],
                vision_cfg=vision,
                text_cfg=dict(NO_TEXT),
                quick_gelu=quick_gelu,
                cast_dtype=cast,
            )

    try:
        blank = make("meta")
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise WeightsError(
            f"{name}: open_clip cannot build this tower ({weights.one_line(error)}); check its "
            f"{CONFIG}"
        ) from error
    kept = set(blank.visual.state_dict())
    computed = [key for key, _ in blank.visual.named_buffers() if key not in kept]
    return (make("cpu") if computed else copy.deepcopy(blank)), blank


def _fill(model: Any, tensors: Mapping[str, Tensor], name: ModelName, path: Path) -> None:
    """Put the visual tower's tensors in, every value as the file has it, strictly."""
    convert = importlib.import_module("open_clip.convert")
    plain = {key.removeprefix("module."): item for key, item in tensors.items()}
    visual = {
        key.removeprefix("visual."): item.float() if item.is_floating_point() else item
        for key, item in convert.convert_state_dict(model, plain).items()
        if key.startswith("visual.")
    }
    try:
        model.visual.load_state_dict(visual, strict=True, assign=True)
    except RuntimeError as error:  # lacking, unexpected and misshapen tensors
        raise WeightsError(
            f"{name}: {path} does not fit open_clip's architecture, get a whole copy or the right "
            f"ARCH: {weights.one_line(error)}"
        ) from error


class OpenClipEncoder(TorchEncoder):
    """The map is the last block of the tower, before its final norm; after it where the head
    attends over normed tokens (SigLIP, SigLIP2, PE): spec.final_norm."""

    def __init__(
        self, spec: EncoderSpec, tower: Tower, options: LoadOptions, digest: str, origin: str
    ) -> None:
        super().__init__(spec, tower.visual, options, digest, origin)
        self.prefix = tower.prefix
        self.tower = tower
        _cast(tower.visual, self._compute)
        self.visual: Any = place(tower.visual, spec, options.device)

    def _cells(self, height: int, width: int, layer: int) -> tuple[int, int]:
        if min(height, width) < self.spec.patch:
            return 0, 0
        if self.spec.fixed_size and (height, width) != self.spec.native_size:
            own = ",".join(str(side) for side in self.spec.native_size)
            raise UsageError(
                f"--size {height},{width}: {self.spec.name} takes {own} only; drop --size"
            )
        return self.tower.cells(height, width)

    def _take(self, pixels: Tensor, want: Want) -> Taken:
        if want.feature == "projected":
            cells = self.tower.project(self.tower.tokens(pixels, norm=True))
        else:
            cells = self.tower.tokens(pixels, norm=self.spec.final_norm)
        return Taken({self.spec.depth - 1: cells})


def _cast(visual: Any, dtype: Any) -> None:
    """To compute precision, as open_clip's create_model: timm's trunks whole; its own towers with
    LayerNorms, BatchNorms and embeddings in float32."""
    import torch

    if dtype == torch.float32:
        return
    if hasattr(visual, "trunk"):
        visual.to(dtype)
    else:
        import_open_clip().convert_weights_to_lp(visual, dtype)
