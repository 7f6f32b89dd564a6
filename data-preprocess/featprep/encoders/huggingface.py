"""Vision models of transformers: one adapter for all of their model types (table: hf_config).

Of a model of images and texts it loads the vision tower alone. Knows no network; runs no remote
code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from featprep.encoders import digests, hf_config, hub, weights
from featprep.encoders.base import EncoderSpec, Feature, LoadOptions, ModelName
from featprep.encoders.hf_config import MODEL_TYPES, ModelType, read_spec
from featprep.encoders.hf_known import KNOWN
from featprep.encoders.torch_encoder import TorchEncoder, check_feature, place
from featprep.encoders.weights import Found
from featprep.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor, nn

# What shapes the outputs beside the tensors.
_ARCHITECTURE = (
    "model_type",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "qkv_bias",
    "use_swiglu_ffn",
    "num_register_tokens",
    "rope_theta",
)


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec without torch or transformers; None if only the hub could tell."""
    if name.path is not None:
        return read_spec(name, Path(name.path))
    if name.id in KNOWN:
        return KNOWN[name.id]
    config = hub.cached(name.id, weights.CONFIG)
    if config is None or not (config.parent / weights.PROCESSOR).is_file():
        return None
    return read_spec(name, config.parent)


def load(name: ModelName, options: LoadOptions) -> HuggingFaceEncoder:
    found = find(name)
    folder = found.path
    spec = read_spec(name, folder)
    check_feature(spec, options.feature)
    config = hf_config.read_config(name, folder)
    tensors, projection = _published_tensors(name, folder, config)
    model = _build(name, folder, config, tensors)
    linear = _project(name, folder, spec, projection) if spec.projected_dim else None
    settings = {key: getattr(model.config, key, None) for key in _ARCHITECTURE}
    statistics = {"mean": spec.mean, "std": spec.std}
    digest = digests.digest({**tensors, **projection}, {**settings, **statistics}, found.weights)
    kind = MODEL_TYPES[config["model_type"]]
    return HuggingFaceEncoder(spec, kind, model, linear, options, digest, found)


def find(name: ModelName) -> Found:
    """Its folder: local, in the hub's cache, or downloaded."""
    if name.path is None:
        return hub.folder(name)
    return weights.local_folder(name.path)


def _published_tensors(
    name: ModelName, folder: Path, config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(tensors of the tower, of its projection), named as in the files less the tower's own name:
    transformers renames its own between releases."""
    kind, wanted = MODEL_TYPES[config["model_type"]], hf_config.projection_of(config)
    tower: list[tuple[str, Tensor]] = []
    projection: list[tuple[str, Tensor]] = []
    for file in weights.need_weight_files(name, folder):
        for key, item in weights.read_tensors(file, name).items():
            plain = key.removeprefix(kind.root)
            if plain.startswith(kind.used) and not plain.startswith(kind.unused):
                tower.append((plain.replace(*kind.renamed) if kind.renamed else plain, item))
            elif wanted and key.startswith(f"{wanted.tensor}."):
                projection.append((key, item))
    return weights.of_tower(name, folder, tower), weights.of_tower(name, folder, projection)


def _build(
    name: ModelName, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Any:
    """transformers' model in float32, every tensor that counts from the checkpoint."""
    import torch
    import transformers

    kind = MODEL_TYPES[config["model_type"]]
    model_class = getattr(transformers, kind.class_name)
    try:
        with quiet_transformers():
            model, report = model_class.from_pretrained(
                None,
                config=model_class.config_class.from_dict(
                    {**hf_config.tower_of(config), **kind.overrides}
                ),
                state_dict=dict(tensors),
                dtype=torch.float32,
                # not config.json's: that can name code on the hub
                attn_implementation="sdpa" if model_class._supports_sdpa else "eager",
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # from_pretrained's errors have no common class
        raise WeightsError(
            f"{name}: transformers refuses {folder}: {weights.one_line(error)}; get a whole copy"
        ) from error
    _check_whole(name, folder, report, kind)
    return model


def _check_whole(name: ModelName, folder: Path, report: Mapping[str, Any], kind: ModelType) -> None:
    """transformers draws lacking tensors at random, and passes over what its config leaves out."""
    lacking = sorted(key for key in report["missing_keys"] if not key.startswith(kind.unused))
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise WeightsError(
            f"{name}: {folder} lacks {', '.join(lacking[:3])}{more}, on which the map depends; get "
            "a whole copy of the checkpoint"
        )
    strange = sorted(report["unexpected_keys"])
    if strange:
        raise WeightsError(
            f"{name}: {folder} holds {strange[0]}, of which its {weights.CONFIG} says nothing; put "
            "the config.json of that checkpoint there"
        )


def _project(
    name: ModelName, folder: Path, spec: EncoderSpec, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """The checkpoint's own linear layer from a cell to texts, in float32. Strict."""
    import torch

    parts = {key.rpartition(".")[2]: item.float() for key, item in tensors.items()}
    with torch.device("meta"):
        linear = torch.nn.Linear(spec.hidden_dim, spec.projected_dim or 0, bias="bias" in parts)
    try:
        linear.load_state_dict(parts, assign=True)
    except RuntimeError as error:  # lacking, unexpected and misshapen tensors
        raise WeightsError(
            f"{name}: the projection in {folder} does not fit its {weights.CONFIG}: "
            f"{weights.one_line(error)}; get a whole copy"
        ) from error
    return linear


class HuggingFaceEncoder(TorchEncoder):
    """`model` is transformers' own; the map is its last_hidden_state, normed or not as it has it.

    `projection`: of every cell, after the last norm, as the family does it to the CLS token.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        kind: ModelType,
        model: Any,
        projection: nn.Module | None,
        options: LoadOptions,
        digest: str,
        found: Found,
    ) -> None:
        super().__init__(spec, _patch_embedding(model), options, digest, found)
        self.model: Any = place(model.to(self._compute), spec, options.device)
        self.projection: Any = projection and place(
            projection.to(self._compute), spec, options.device
        )
        self._flags = {"interpolate_pos_encoding": True} if kind.is_flagged else {}
        if options.pos_embed == "hub" and kind.hub_offset is not None:
            use_hub_positions(model.embeddings, spec, kind)

    def _tokens(self, pixels: Tensor, feature: Feature) -> Tensor:
        tokens: Tensor = self.model(pixel_values=pixels, **self._flags).last_hidden_state
        if feature == "projected":
            normed = tokens if self.spec.final_norm else self.model.post_layernorm(tokens)
            tokens = self.projection(normed)
        return tokens


def _patch_embedding(model: nn.Module) -> Any:
    """All strided convolutions as one: the only one of a ViT, or ConvNeXt's stem and downsampling.

    None of them pads or overlaps, so their strides multiply.
    """
    from torch import nn

    strides = [conv.stride for conv in model.modules() if isinstance(conv, nn.Conv2d)]
    stride = tuple(math.prod(axis) for axis in zip(*strides, strict=True))
    return SimpleNamespace(kernel_size=stride, stride=stride, padding=(0, 0))


def use_hub_positions(embeddings: Any, spec: EncoderSpec, kind: ModelType) -> None:
    """Have an embedding module resample its positions as torch.hub's DINOv2 does.

    facebookresearch/dinov2, models/vision_transformer.py, interpolate_pos_encoding: bicubic in
    float32; without registers by the factor (cells + 0.1) / side, so that every position is read a
    little further to the upper left; with registers to the size itself, antialiased.
    """

    def interpolate_pos_encoding(tokens: Tensor, height: int, width: int) -> Tensor:
        import torch
        from torch.nn.functional import interpolate

        positions: Tensor = embeddings.position_embeddings
        if (height, width) == spec.native_size:
            return positions
        side = math.isqrt(positions.shape[1] - 1)
        grid = [height // spec.patch, width // spec.patch]
        factors = [(cells + (kind.hub_offset or 0.0)) / side for cells in grid]
        resampled = interpolate(
            positions[:, 1:].mT.reshape(1, -1, side, side).float(),
            size=None if kind.hub_offset else grid,
            scale_factor=factors if kind.hub_offset else None,
            mode="bicubic",
            antialias=kind.hub_antialias,
        )
        return torch.cat((positions[:, :1], resampled.flatten(2).mT.to(positions.dtype)), dim=1)

    embeddings.interpolate_pos_encoding = interpolate_pos_encoding


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers neither logs nor draws bars: what it warns of is our error, or nothing."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
