"""open_clip's visual towers, built by open_clip itself from its own configurations.

ARCH/TAG, ARCH with a local file, hf-hub:ORG/NAME, or a folder in the hub's format. The text tower
is openclip_text's.
"""

from __future__ import annotations

import copy
import importlib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import digests, hub, wants, weights
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName, Want
from featprep.encoders.openclip_base import Tower
from featprep.encoders.openclip_cards import (
    CONFIG,
    HUB,
    KNOWN,
    WEIGHTS,
    Card,
    card_of,
    make_spec,
    shape_of,
)
from featprep.encoders.openclip_files import tags
from featprep.encoders.openclip_towers import make_tower
from featprep.encoders.torch_encoder import Taken, TorchEncoder, place
from featprep.encoders.weights import Found, local_file
from featprep.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KNOWN", "OpenClipEncoder", "build", "describe", "import_open_clip", "load"]

# open_clip's CLIP wants a text tower: the smallest there is stands in, and is let go.
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
APPLE = "image_encoder."  # how MobileCLIP's tensors begin as Apple publishes it
BUILD_ERRORS = (TypeError, ValueError, RuntimeError, AssertionError, KeyError)
# Of vision_cfg, what only training or the pooled vector knows.
_IN_TRAINING = ("timm_model_pretrained", "timm_drop", "timm_drop_path", "patch_dropout")


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec without torch or open_clip; None where only the hub or the module could tell."""
    folder = Path(name.path) if name.path is not None else None
    if folder is None and is_folder(name):
        config = hub.cached(name.id.removeprefix(HUB), CONFIG)
        if config is None:
            return None
        folder = config.parent
    card = card_of(name, folder if is_folder(name) else None)
    shape = shape_of(card)
    return make_spec(name, card, shape) if shape else None


def load(name: ModelName, options: LoadOptions) -> OpenClipEncoder:
    open_clip = import_open_clip()
    if not is_folder(name):  # refused before anything is downloaded
        _activation(name, card_of(name), options.quick_gelu)
    found = find(name)
    card = card_of(name, found.path if is_folder(name) else None)
    quick_gelu = _activation(name, card, options.quick_gelu)
    named = read(name, found, options)
    model, blank = build(open_clip, name, card, quick_gelu, options.compute)
    _fill(model, named, name, found.weights[0])
    tower = make_tower(model.visual, blank.visual, options.pos_embed)
    spec = make_spec(name, card, tower.shape, fixed_size=tower.fixed_size)
    wants.check(spec, options.want)
    settings = {key: item for key, item in card.vision.items() if key not in _IN_TRAINING}
    digest = digests.digest(
        model.visual.state_dict(),
        {"architecture": settings, "quick_gelu": quick_gelu, "mean": spec.mean, "std": spec.std},
        found.weights,
    )
    return OpenClipEncoder(spec, tower, options, digest, found)


def read(name: ModelName, found: Found, options: LoadOptions) -> list[tuple[str, Tensor]]:
    """The tensors of a checkpoint, of both towers, under the names its file has for them."""
    (path,) = found.weights
    if path.suffix in (".npz", ".npy"):  # no tag's file is one
        raise WeightsError(
            f"{name}: {path} is a checkpoint of big_vision, which is not read; allowed is what "
            f"open_clip makes of it, such as {WEIGHTS[0]} of the tag's repository"
        )
    published = {
        row["url"].split("/")[-2]
        for by_tag in tags().values()
        for row in by_tag.values()
        if "openaipublic" in row["url"]
    }
    held = weights.read_tensors(
        path, name, published, options.trust_weights, inside=("state_dict",)
    )
    return [(key.removeprefix("module."), item) for key, item in held.items()]


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


def find(name: ModelName) -> Found:
    """Its file, or its folder in the hub's form: local, in the hub's cache, or downloaded."""
    if name.path is not None:
        return _local_folder(name, Path(name.path)) if is_folder(name) else local_file(name.path)
    if is_folder(name):
        files, origin = hub.fetch(name, name.id.removeprefix(HUB), [(CONFIG,), WEIGHTS])
        return hub.found(files, 1, origin)
    card = card_of(name)
    if not card.hub:
        raise UsageError(f"--model {name}: names no weights; add a tag, or give {name}=FILE")
    repo, _, file = card.hub.rpartition("/")
    stem, dot, suffix = file.rpartition(".")
    choices = (f"{stem}.safetensors", file) if dot and suffix != "safetensors" else (file,)
    (path,), origin = hub.fetch(name, repo, [choices if file else WEIGHTS])
    return Found(path, (path,), origin, sha256=digests.hub_sha256([path]))


def is_folder(name: ModelName) -> bool:
    """Whether its files are a configuration and weights, or the weights alone, of ARCH/TAG."""
    return name.id.startswith(HUB) if name.path is None else Path(name.path).is_dir()


def _local_folder(name: ModelName, folder: Path) -> Found:
    held = [folder / file for file in WEIGHTS if (folder / file).is_file()]
    if not held:
        raise WeightsError(f"{name}: {folder} holds no weights; put {WEIGHTS[0]} there")
    others = tuple(file for file in (folder / CONFIG,) if file.is_file())
    return Found(folder, (held[0],), str(folder), others, digests.hub_sha256(held[:1]))


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

    vision = vision_of(name, card)
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
    except BUILD_ERRORS as error:
        raise WeightsError(
            f"{name}: open_clip cannot build this tower ({weights.one_line(error)}); check its "
            f"{CONFIG}"
        ) from error
    kept = set(blank.visual.state_dict())
    computed = [key for key, _ in blank.visual.named_buffers() if key not in kept]
    return (make("cpu") if computed else copy.deepcopy(blank)), blank


def vision_of(name: ModelName, card: Card) -> dict[str, Any]:
    """vision_cfg, of which nothing is downloaded."""
    if not re.fullmatch(r"[\w.-]*", card.trunk or ""):  # timm would ask the hub for code and config
        raise WeightsError(f"{name}: {card.trunk} is no architecture of timm")
    return {**card.vision, "timm_model_pretrained": False}


def _fill(model: Any, named: Sequence[tuple[str, Tensor]], name: ModelName, path: Path) -> None:
    """Put the visual tower's tensors in, every value as the file has it, strictly."""
    convert = importlib.import_module("open_clip.convert")
    weights.of_tower(name, path, (each for each in named if each[0].startswith(("visual.", APPLE))))
    visual = {
        key.removeprefix("visual."): item.float() if item.is_floating_point() else item
        for key, item in convert.convert_state_dict(model, dict(named)).items()
        if key.startswith("visual.")
    }
    try:
        model.visual.load_state_dict(visual, strict=True, assign=True)
    except RuntimeError as error:  # lacking, unexpected and misshapen tensors
        raise unfit(name, path, error) from error


def unfit(name: ModelName, path: Path, error: BaseException) -> WeightsError:
    return WeightsError(
        f"{name}: {path} does not fit open_clip's architecture, get a whole copy or the right "
        f"ARCH: {weights.one_line(error)}"
    )


class OpenClipEncoder(TorchEncoder):
    """The map is the last block of the tower, before its final norm; after it where the head
    attends over normed tokens (SigLIP, SigLIP2, PE): spec.final_norm."""

    def __init__(
        self, spec: EncoderSpec, tower: Tower, options: LoadOptions, digest: str, found: Found
    ) -> None:
        super().__init__(spec, tower.visual, options, digest, found)
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
        return self.tower.cells(height, width, layer)

    def _take(self, pixels: Tensor, want: Want) -> Taken:
        raw, pooled = self.tower.take(pixels, want)
        layers = {layer: self._finish(raw[layer], want, layer) for layer in want.layers}
        return Taken(layers, pooled if want.pooled else None)

    def _finish(self, output: Any, want: Want, layer: int) -> Tensor:
        tokens = self.tower.tokens_of(output)
        if want.feature != "patch":
            return self.tower.project(tokens)
        return self.tower.norm(tokens) if wants.is_normed(self.spec, want, layer) else tokens


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
        for module in visual.modules():
            if type(module).__name__ == "AttentionalPooler":  # CoCa's: it forgets their queries
                module.query.data = module.query.data.to(dtype)
