"""torchvision's ResNet, EfficientNet, ConvNeXt, ViT and Swin, built and run by torchvision.

The map is what they pool: of CNNs and Swin the input of `avgpool`, of ViTs the encoder's output,
final norm included, without CLS. Knows no network and no other weights than torchvision's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import weights
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName
from featprep.encoders.module_encoder import COUNTER, ModuleEncoder
from featprep.encoders.torch_encoder import check_feature
from featprep.encoders.torchvision_catalogue import KNOWN, tag_of
from featprep.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

POSITIONS = "model.encoder.pos_embedding"
HEADS = ("fc", "classifier", "head", "heads")  # what follows the pooling, in one family or another


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec without torch; None for a local file, unless it bears a known name."""
    return KNOWN.get(name.id)


def load(name: ModelName, options: LoadOptions) -> ModuleEncoder:
    if name.id not in KNOWN:
        raise WeightsError(
            f"{name}: a state dict does not say its architecture; give it as "
            "torchvision:resnet50=FILE, with torchvision's name of it"
        )
    spec = replace(KNOWN[name.id], name=str(name))
    check_feature(spec, options.feature)
    path, origin = _file(name)
    tensors = weights.read_tensors(path, name)
    model = _build(name, spec, tensors, path)
    used = {key: item for key, item in model.state_dict().items() if not key.endswith(COUNTER)}
    settings = {"architecture": tag_of(name.id)[0], "mean": spec.mean, "std": spec.std}
    is_vit = hasattr(model, "encoder")
    return ModuleEncoder(
        spec,
        last_map(model),
        options,
        weights.digest(used, settings),
        origin,
        prefix=int(is_vit),
        positions=POSITIONS if is_vit else None,
    )


def _file(name: ModelName) -> tuple[Path, str]:
    """Local, or torchvision's own, whose file names end in the beginning of their sha256."""
    if name.path is not None:
        return Path(name.path), name.path
    from torch import hub
    from torchvision import models

    architecture, tag = tag_of(name.id)
    url = models.get_model_weights(architecture)[tag].url
    sha256 = url.rpartition("-")[2].partition(".")[0]
    cache = Path(hub.get_dir()) / "checkpoints"

    def download(url: str, folder: str) -> str:
        target = Path(folder) / url.rsplit("/", 1)[-1]
        target.parent.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(url, str(target), hash_prefix=sha256)
        return str(target)

    return weights.published_file(name, url, sha256, cache, download)


def _build(name: ModelName, spec: EncoderSpec, tensors: Mapping[str, Tensor], path: Path) -> Any:
    """The model without its head, every other tensor from the file."""
    from torch import nn
    from torchvision import models

    architecture, _ = tag_of(name.id)
    size = {"image_size": spec.native_size[0]} if architecture.startswith("vit_") else {}
    model: Any = models.get_model(architecture, weights=None, **size)
    for head in HEADS:
        if hasattr(model, head):
            setattr(model, head, nn.Identity())
    kept = {key: item for key, item in tensors.items() if key.partition(".")[0] not in HEADS}
    lacking = sorted(
        key for key in model.state_dict().keys() - kept.keys() if not key.endswith(COUNTER)
    )
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise WeightsError(
            f"{name}: {path} lacks {', '.join(lacking[:3])}{more}, on which the map depends; get a "
            "whole copy of the checkpoint"
        )
    try:
        model.load_state_dict(kept)
    except RuntimeError as error:  # unexpected and misshapen tensors
        raise WeightsError(
            f"{name}: {path} does not fit {architecture}, give it under the name of its own "
            f"architecture: {weights.one_line(error)}"
        ) from error
    return model


def last_map(model: Any) -> nn.Module:
    """A module around torchvision's whose forward gives the map before the pooling."""
    from torch import nn

    class LastMap(nn.Module):
        """A hook reads what `avgpool` gets; the heads are gone, so nothing runs in vain."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.kept: list[Tensor] = []
            model.avgpool.register_forward_pre_hook(lambda _, call: self.kept.append(call[0]))

        def forward(self, pixels: Tensor) -> Tensor:
            self.kept.clear()
            self.model(pixels)
            return self.kept.pop()

    class LastTokens(nn.Module):
        """VisionTransformer.forward up to its head, without its refusal of other sizes."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: Tensor) -> Tensor:
            import torch

            cells = self.model.conv_proj(pixels)
            token = self.model.class_token.expand(len(pixels), -1, -1)
            tokens = self.model.encoder(torch.cat((token, cells.flatten(2).mT), dim=1))
            maps: Tensor = tokens[:, 1:].mT.unflatten(2, cells.shape[-2:])
            return maps

    return LastTokens() if hasattr(model, "encoder") else LastMap()
