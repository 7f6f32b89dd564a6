"""Whether our maps are the maps that upstream's own modules give, on generated images.

The references load weights and pixels their own way: clip.load, from_pretrained, torchvision's
ToTensor and Normalize. Knows no file of results and prints nothing.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featprep.encoders import load_encoder
from featprep.encoders.base import EncoderSpec, Feature, LoadOptions, ModelName, Want
from featprep.encoders.huggingface import quiet_transformers
from featprep.encoders.openai_clip import import_clip
from featprep.encoders.openai_clip_cards import MEAN, STD
from featprep.encoders.openclip import import_open_clip
from featprep.module_references import timm_references, torchvision_references
from featprep.records import AnyArray, UInt8

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4  # of max(1, rms of the reference), in float32


@dataclass(frozen=True, slots=True)
class Case:
    height: int
    width: int
    batch: int
    feature: Feature = "patch"

    @property
    def pixels(self) -> UInt8:
        return generate_images(self.batch, self.height, self.width)


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a map is from its reference. `cosine`: of the whole maps, flattened."""

    case: Case
    max_abs: float
    rms: float
    relative: float  # ‖ours − reference‖ / ‖reference‖
    cosine: float

    @property
    def is_within(self) -> bool:
        return self.max_abs <= TOLERANCE * max(1.0, self.rms)


def compare(case: Case, ours: AnyArray, reference: AnyArray) -> Parity:
    """Raises ValueError if the shapes differ: they are never broadcast."""
    if ours.shape != reference.shape:
        raise ValueError(f"{case}: our map is {ours.shape}, the reference {reference.shape}")
    left, right = ours.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    difference, norm = left - right, float(np.linalg.norm(right))
    return Parity(
        case,
        max_abs=float(np.abs(difference).max()),
        rms=norm / len(right) ** 0.5,
        relative=float(np.linalg.norm(difference)) / norm,
        cosine=float(left @ right) / float(np.linalg.norm(left) * norm),
    )


def default_cases(spec: EncoderSpec) -> list[Case]:
    """The native size, larger or smaller ones, H > W and H < W; batches of 1 and 7.

    Of what takes one size alone, that size; of what takes any, one that no stride divides too.
    """
    p = spec.patch
    features: list[Feature] = ["patch", "projected"] if spec.projected_dim else ["patch"]
    sizes = [(*spec.native_size, 1), (18 * p, 18 * p, 1), (6 * p, 10 * p, 7), (11 * p, 5 * p, 1)]
    if spec.fixed_size:
        sizes = [(*spec.native_size, 1), (*spec.native_size, 3)]
    if spec.unit is not None:
        sizes.append((3 * p + 1, 5 * p - 1, 2))
    return [Case(*size, feature) for size in sizes for feature in features]


def certify(
    name: ModelName, cases: Sequence[Case], options: LoadOptions | None = None
) -> list[Parity]:
    """Compare one encoder, loaded by load_encoder, with its family's reference on every case.

    The reference is let go before ours is loaded: only one model is held at a time.
    """
    references = list(REFERENCES[name.family](name, cases))
    encoder = load_encoder(name, options or LoadOptions())
    return [
        compare(case, encoder.encode(case.pixels, Want(feature=case.feature)).map, reference)
        for case, reference in zip(cases, references, strict=True)
    ]


def generate_images(count: int, height: int, width: int) -> UInt8:
    """(count, 3, H, W): smooth gradients, one unlike the other, under noise."""
    noise = np.random.default_rng([count, height, width]).integers(0, 96, (count, 3, height, width))
    rows, columns = np.mgrid[0:height, 0:width]
    images = [
        [(rows * (i + 1) + columns * (c + 1) * 2) * 160 // (height + width) % 160 for c in range(3)]
        for i in range(count)
    ]
    return (np.asarray(images) + noise).astype(np.uint8)


def clip_references(name: ModelName, cases: Sequence[Case]) -> Iterator[AnyArray]:
    """openai/CLIP's own model. `projected`: its ln_post and proj on every token, of which CLS must
    be what encode_image returns."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = import_clip().load(name.path or name.id, device="cpu")
    if hasattr(model.visual, "attnpool"):
        yield from _clip_resnet_references(model, cases)
        return
    visual, native = model.visual, model.visual.positional_embedding.detach().clone()
    kept: list[Any] = []
    visual.transformer.resblocks[-1].register_forward_hook(lambda *call: kept.append(call[-1]))
    for case in cases:
        visual.positional_embedding.data = _transformers_positions(
            native, visual.input_resolution, visual.conv1.kernel_size[0], case
        )
        with torch.inference_mode():
            image = model.encode_image(_pixel_values(case.pixels, MEAN, STD))
            tokens = kept.pop().permute(1, 0, 2)
            if case.feature == "projected":
                tokens = visual.ln_post(tokens) @ visual.proj
                torch.testing.assert_close(tokens[:, 0], image, rtol=1e-4, atol=1e-4)
        yield _as_map(tokens[:, 1:], case, visual.conv1.kernel_size[0])


def _clip_resnet_references(model: Any, cases: Sequence[Case]) -> Iterator[AnyArray]:
    """What enters the attention pooling, of which it must make what encode_image returns.
    `projected`: its value path, without position embedding."""
    import torch

    pool, kept = model.visual.attnpool, list[Any]()
    native = pool.positional_embedding.detach().clone()
    model.visual.layer4.register_forward_hook(lambda *call: kept.append(call[-1]))
    for case in cases:
        pool.positional_embedding.data = _transformers_positions(
            native, model.visual.input_resolution, 32, case
        )
        with torch.inference_mode():
            image = model.encode_image(_pixel_values(case.pixels, MEAN, STD))
            stage = kept.pop()
            torch.testing.assert_close(pool(stage), image, rtol=1e-4, atol=1e-4)
            cells = stage.flatten(2).mT
            if case.feature == "projected":
                cells = pool.c_proj(pool.v_proj(cells))
        yield _as_map(cells, case, 32)


def _transformers_positions(native: Tensor, side: int, patch: int, case: Case) -> Tensor:
    """Position embeddings (1 + cells, C) of this size by transformers' own CLIPVisionEmbeddings."""
    import torch
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

    config: Any = CLIPVisionConfig(
        hidden_size=native.shape[1],
        num_attention_heads=1,
        image_size=side,
        patch_size=patch,
    )
    embeddings: Any = CLIPVisionEmbeddings(config)
    embeddings.position_embedding.weight.data = native
    cells = (case.height // config.patch_size) * (case.width // config.patch_size)
    tokens = torch.empty(1, 1 + cells, native.shape[1])
    positions: Tensor = embeddings.interpolate_pos_encoding(tokens, case.height, case.width)
    return positions[0].detach()


def hf_references(name: ModelName, cases: Sequence[Case]) -> Iterator[AnyArray]:
    """transformers' own class that config.json names, whole: the last cells of what its vision
    model returns. `projected`: its own norm and layer on every token; of CLIPs, CLS must be what
    get_image_features returns."""
    import torch
    import transformers

    library: Any = transformers
    source = name.path or name.id
    with quiet_transformers():
        processor = library.AutoImageProcessor.from_pretrained(source)
        architecture = library.AutoConfig.from_pretrained(source).architectures[0]
        model = getattr(library, architecture).from_pretrained(source, dtype=torch.float32).eval()
    vision = getattr(model, "vision_model", None) or getattr(model, "vit", model)
    is_flagged = "interpolate_pos_encoding" in inspect.signature(vision.forward).parameters
    flags = {"interpolate_pos_encoding": True} if is_flagged else {}
    patch = getattr(vision.config, "patch_size", 32)  # ConvNeXt's config has none
    for case in cases:
        pixels = _pixel_values(case.pixels, processor.image_mean, processor.image_std)
        with torch.inference_mode():
            tokens = vision(pixel_values=pixels, **flags).last_hidden_state
            if case.feature == "projected" and hasattr(model, "vision_proj"):
                tokens = model.vision_proj(tokens)  # BlipForImageTextRetrieval
            elif case.feature == "projected":
                tokens = model.visual_projection(vision.post_layernorm(tokens))
                image = model.get_image_features(pixels, **flags).pooler_output
                torch.testing.assert_close(tokens[:, 0], image, rtol=1e-4, atol=1e-4)
        cells = (case.height // patch) * (case.width // patch)
        yield _as_map(tokens[:, tokens.shape[1] - cells :], case, patch)


def openclip_references(name: ModelName, cases: Sequence[Case]) -> Iterator[AnyArray]:
    """open_clip's create_model and encode_image, and a hook on the last block or stage."""
    import torch

    model = _open_clip_model(name)
    visual, said = model.visual, import_open_clip().get_model_preprocess_cfg(model)
    stage, patch, kept = _last_stage(visual), _stride(visual), list[Any]()
    stage.register_forward_hook(lambda *call: kept.append(call[-1]))
    native = {key: item.detach().clone() for key, item in visual.named_parameters()}
    for case in cases:
        _set_positions(visual, native, patch, case)
        with torch.inference_mode():
            image = model.encode_image(_pixel_values(case.pixels, said["mean"], said["std"]))
            tokens = kept.pop()
            tokens = tokens.flatten(2).mT if tokens.ndim == 4 else tokens
            if case.feature == "projected":
                tokens = _open_clip_head(visual, tokens, image)
            elif hasattr(visual, "trunk") and getattr(visual.trunk, "global_pool", "") == "map":
                tokens = visual.trunk.norm(tokens)
        cells = (case.height // patch) * (case.width // patch)
        yield _as_map(tokens[:, tokens.shape[1] - cells :], case, patch)


def _open_clip_model(name: ModelName) -> Any:
    from torch import nn

    library, (arch, _, tag) = import_open_clip(), name.id.partition("/")
    if name.path and Path(name.path).is_dir():
        model = library.create_model(f"local-dir:{name.path}")
    else:
        said = library.get_pretrained_cfg(arch, tag)
        quick = said.get("quick_gelu", False)
        model = library.create_model(
            arch,
            pretrained=None if name.path else tag,
            force_quick_gelu=quick,
            force_preprocess_cfg=said,
            pretrained_text=False,
        )
        if name.path:
            state = library.factory.load_state_dict(name.path)
            own = {key[7:]: item for key, item in state.items() if key.startswith("visual.")}
            model.visual.load_state_dict(own)
    if hasattr(model.visual, "attnpool"):  # made for one size: kept aside, for what is projected
        model.visual.pool, model.visual.attnpool = model.visual.attnpool, nn.Identity()
    return model.eval()


def _last_stage(visual: Any) -> Any:
    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        return trunk.blocks[-1] if hasattr(trunk, "blocks") else trunk.stages[-1]
    return visual.layer4 if hasattr(visual, "layer4") else visual.transformer.resblocks[-1]


def _stride(visual: Any) -> int:
    if hasattr(visual, "trunk"):
        return int(visual.trunk.feature_info[-1]["reduction"])
    return 32 if hasattr(visual, "layer4") else int(visual.patch_size[0])


def _set_positions(visual: Any, native: dict[str, Tensor], patch: int, case: Case) -> None:
    """transformers' interpolation in place of open_clip's and timm's, which antialias."""
    import torch

    owner, key = visual, "positional_embedding"
    if hasattr(visual, "trunk"):
        if not hasattr(visual.trunk, "set_input_size"):
            return
        visual.set_input_size((case.height, case.width))
        owner, key = visual.trunk, "pos_embed"
    if getattr(owner, key, None) is None:
        return
    table = native[key if owner is visual else f"trunk.{key}"]
    rows, side = table.reshape(-1, table.shape[-1]), math.isqrt(table.shape[-2])
    prefix = len(rows) - side**2
    padded = torch.cat((rows[:1], rows[prefix:]))  # transformers' has one row before the cells
    placed = _transformers_positions(padded, side * patch, patch, case)
    getattr(owner, key).data = torch.cat((rows[:prefix], placed[1:])).reshape(
        *table.shape[:-2], -1, table.shape[-1]
    )


def _open_clip_head(visual: Any, tokens: Tensor, image: Tensor) -> Tensor:
    """The head on every token; on the pooled one it must be what encode_image returns."""
    import torch
    from torch.nn.functional import linear

    if hasattr(visual, "pool"):
        value, out = visual.pool.v_proj, visual.pool.c_proj
        return linear(linear(tokens, value.weight, value.bias), out.weight, out.bias)
    trunk = getattr(visual, "trunk", None)
    averages = (
        getattr(trunk, "global_pool", None) != "token" if trunk else visual.pool_type == "avg"
    )

    def head(rows: Tensor) -> Any:
        if trunk is None:
            return visual.ln_post(rows) @ visual.proj
        if hasattr(trunk, "blocks"):
            return visual.head(trunk.head(trunk.fc_norm(trunk.norm(rows))))
        norm = trunk.head.norm  # ConvNeXt's, over channels
        shape = rows.shape[-1:]
        return visual.head(torch.layer_norm(rows, shape, norm.weight, norm.bias, norm.eps))

    prefix = 1 if trunk is None else getattr(trunk, "num_prefix_tokens", 0)
    pooled = tokens[:, prefix:].mean(1) if averages else tokens[:, 0]
    torch.testing.assert_close(head(pooled), image, rtol=1e-4, atol=1e-4)
    projected: Tensor = head(tokens)
    return projected


def _pixel_values(pixels: UInt8, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    import torch
    from torchvision.transforms import functional

    images = [functional.to_tensor(np.moveaxis(image, 0, -1)) for image in pixels]
    return torch.stack([functional.normalize(image, list(mean), list(std)) for image in images])


def _as_map(cells: Tensor, case: Case, patch: int) -> AnyArray:
    rows, columns = case.height // patch, case.width // patch
    array: AnyArray = cells.unflatten(1, (rows, columns)).permute(0, 3, 1, 2).numpy()  # type: ignore[no-untyped-call]
    return array


REFERENCES: dict[str, Callable[[ModelName, Sequence[Case]], Iterator[AnyArray]]] = {
    "clip": clip_references,
    "hf": hf_references,
    "openclip": openclip_references,
    "timm": timm_references,
    "torchvision": torchvision_references,
}
