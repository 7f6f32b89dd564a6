"""torchvision's ResNet, EfficientNet, ConvNeXt, ViT and Swin, built and run by torchvision.

The map is what they pool: of CNNs and Swin the input of `avgpool`, of ViTs the encoder's output,
final norm included, without CLS. The pooled vector is what their classifier gets. Knows no other
weights than torchvision's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import digests, downloads, wants, weights
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName, Want
from featprep.encoders.module_encoder import Ask, Given, ModuleEncoder, as_network, is_counted
from featprep.encoders.taps import run_and_take
from featprep.encoders.torchvision_catalogue import KNOWN, tag_of
from featprep.encoders.weights import Found
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
    wants.check(spec, options.want)
    found = find(name)
    model = _build(name, spec, weights.read_tensors(found.path, name), found.path)
    settings = {"architecture": tag_of(name.id)[0], "mean": spec.mean, "std": spec.std}
    digest = digests.digest(model.state_dict(), settings, found.weights)
    network, positions = make_network(model), POSITIONS if hasattr(model, "encoder") else None
    return ModuleEncoder(spec, network, options, digest, found, positions=positions)


def find(name: ModelName) -> Found:
    """Local, or torchvision's own, whose file names end in the beginning of their sha256."""
    if name.path is not None:
        return weights.local_file(name.path)
    from torch import hub
    from torchvision import models

    architecture, tag = tag_of(name.id)
    url = models.get_model_weights(architecture)[tag].url
    sha256 = url.rpartition("-")[2].partition(".")[0]

    def download(url: str, folder: str) -> str:
        target = f"{folder}/{url.rpartition('/')[2]}"
        hub.download_url_to_file(url, target, hash_prefix=sha256)
        return target

    cache = Path(hub.get_dir()) / "checkpoints"
    return downloads.published_file(name, url, sha256, cache, download)


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
    lacking = sorted(key for key in model.state_dict().keys() - kept.keys() if is_counted(key))
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise WeightsError(
            f"{name}: {path} lacks {', '.join(lacking[:3])}{more}, on which what is "
            "wanted depends; get a whole copy of the checkpoint"
        )
    try:
        model.load_state_dict(kept)
    except RuntimeError as error:  # unexpected and misshapen tensors
        raise WeightsError(
            f"{name}: {path} does not fit {architecture}, give it under the name of its own "
            f"architecture: {weights.one_line(error)}"
        ) from error
    return model


def make_network(model: Any) -> nn.Module:
    """A network around torchvision's model: see as_network."""
    take = _take_blocks if hasattr(model, "encoder") else _take_stages
    return as_network(model, take)


def _take_blocks(model: Any, pixels: Tensor, ask: Ask) -> Given:
    """VisionTransformer.forward up to its head, without its refusal of other sizes."""
    import torch

    patches = model.conv_proj(pixels)
    token = model.class_token.expand(len(pixels), -1, -1)
    tokens = torch.cat((token, patches.flatten(2).mT), dim=1)
    want = Want(layers=ask.layers, facet=ask.facet)
    taken, final = run_and_take(lambda: model.encoder(tokens), model.encoder.layers, want)
    given = Given({}, pooled=final[:, 0] if ask.pooled else None)
    for layer, item in taken.items():
        normed = model.encoder.ln(item) if layer in ask.normed else item
        given.prefixes[layer] = normed[:, :1]
        given.maps[layer] = normed[:, 1:].mT.unflatten(2, patches.shape[-2:])
    return given


def _take_stages(model: Any, pixels: Tensor, ask: Ask) -> Given:
    taken, final = run_and_take(lambda: model(pixels), stages_of(model), Want(layers=ask.layers))
    for layer in ask.normed:
        taken[layer] = model.norm(taken[layer])
    # Swin's own order is (B, rows, columns, C); the heads are gone, so `final` is what was pooled.
    maps = {layer: item.permute(0, 3, 1, 2) if hasattr(model, "permute") else item
            for layer, item in taken.items()}  # fmt: skip
    return Given(maps, pooled=final.flatten(1) if ask.pooled else None)


def stages_of(model: Any) -> list[nn.Module]:
    """The modules whose outputs are the stages that the catalogue counts."""
    if hasattr(model, "layer4"):
        return [model.layer1, model.layer2, model.layer3, model.layer4]
    from torchvision.ops import Conv2dNormActivation

    _stem, *parts = model.features
    is_efficientnet = isinstance(parts[-1], Conv2dNormActivation)
    return list(parts if is_efficientnet else parts[::2])  # ConvNeXt and Swin reduce between stages
