"""Vision models of transformers: one adapter for all of their model types.

Now DINOv2 with and without registers (table: hf_config). Knows no network; runs no remote code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders import weights
from featprep.encoders.base import EncoderSpec, Feature, LoadOptions, ModelName
from featprep.encoders.hf_config import KNOWN, MODEL_TYPES, ModelType, read_config, read_spec
from featprep.encoders.torch_encoder import TorchEncoder, check_feature, place
from featprep.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

_USED = ("embeddings.", "encoder.", "layernorm.")
# The outputs do not depend on it: it stands for masked patches in pre-training.
_UNUSED = "embeddings.mask_token"
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
)


def describe(name: ModelName) -> EncoderSpec | None:
    """The spec without torch or transformers; None if only the hub could tell."""
    if name.path is not None:
        return read_spec(name, Path(name.path))
    if name.id in KNOWN:
        return KNOWN[name.id]
    config = weights.hub_config(name.id, weights.CONFIG)
    if config is None or not (config.parent / weights.PROCESSOR).is_file():
        return None
    return read_spec(name, config.parent)


def load(name: ModelName, options: LoadOptions) -> HuggingFaceEncoder:
    if name.path is not None:
        folder, origin = Path(name.path), name.path
    else:
        folder, origin = weights.hub_folder(name)
    spec = read_spec(name, folder)
    check_feature(spec, options.feature)
    model = _load_model(name, folder)
    settings = {key: getattr(model.config, key, None) for key in _ARCHITECTURE}
    used = _published_tensors(name, folder, model.base_model_prefix)
    digest = weights.digest(used, {**settings, "mean": spec.mean, "std": spec.std})
    return HuggingFaceEncoder(spec, model, options, digest, origin)


def _load_model(name: ModelName, folder: Path) -> Any:
    """transformers' model in float32, every tensor that counts from the checkpoint."""
    if not weights.weight_files(folder):
        raise WeightsError(f"{name}: {folder} holds no weights; put model.safetensors there")
    import torch
    import transformers

    kind = MODEL_TYPES[read_config(name, folder)["model_type"]]
    try:
        with quiet_transformers():
            model, report = getattr(transformers, kind.class_name).from_pretrained(
                str(folder),
                dtype=torch.float32,
                attn_implementation="sdpa",  # not config.json's: that can name code on the hub
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # from_pretrained's errors have no common class
        raise WeightsError(
            f"{name}: transformers refuses {folder}: {weights.one_line(error)}; get a whole copy"
        ) from error
    _check_whole(name, folder, report)
    return model


def _check_whole(name: ModelName, folder: Path, report: Mapping[str, Any]) -> None:
    """transformers draws lacking tensors at random, and passes over what its config leaves out."""
    lacking = sorted(set(report["missing_keys"]) - {_UNUSED})
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise WeightsError(
            f"{name}: {folder} lacks {', '.join(lacking[:3])}{more}, on which the map depends; get "
            "a whole copy of the checkpoint"
        )
    strange = sorted(key for key in report["unexpected_keys"] if key.startswith(_USED))
    if strange:
        raise WeightsError(
            f"{name}: {folder} holds {strange[0]}, of which its {weights.CONFIG} says nothing; put "
            "the config.json of that checkpoint there"
        )


def _published_tensors(name: ModelName, folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors used, named as in the files: transformers renames its own between releases."""
    tensors: dict[str, Tensor] = {}
    for file in weights.weight_files(folder):
        for key, item in weights.read_tensors(file, name).items():
            plain = key.removeprefix(f"{prefix}.")
            if plain.startswith(_USED) and plain != _UNUSED:
                tensors[plain] = item
    return tensors


class HuggingFaceEncoder(TorchEncoder):
    """`model` is transformers' own; the map is its last_hidden_state, after the final LayerNorm."""

    def __init__(
        self, spec: EncoderSpec, model: Any, options: LoadOptions, digest: str, origin: str
    ) -> None:
        conv = model.embeddings.patch_embeddings.projection
        super().__init__(spec, conv, options, digest, origin)
        self.model: Any = place(model.to(self._compute), spec, options.device)
        if options.pos_embed == "hub":
            kind = MODEL_TYPES[model.config.model_type]
            use_hub_positions(model.embeddings, spec, kind)

    def _tokens(self, pixels: Tensor, feature: Feature) -> Tensor:
        tokens: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return tokens


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
        factors = [(cells + kind.hub_offset) / side for cells in grid]
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
