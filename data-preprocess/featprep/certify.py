"""Whether our maps are the maps that upstream's own modules give, on generated images.

The references load weights and pixels their own way: clip.load, from_pretrained, torchvision's
ToTensor and Normalize. Knows no file of results and prints nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featprep.encoders import load_encoder
from featprep.encoders.base import EncoderSpec, Feature, LoadOptions, ModelName, Want
from featprep.encoders.huggingface import quiet_transformers
from featprep.encoders.openai_clip import MEAN, STD, import_clip
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
    visual, native = model.visual, model.visual.positional_embedding.detach().clone()
    kept: list[Any] = []
    visual.transformer.resblocks[-1].register_forward_hook(lambda *call: kept.append(call[-1]))
    for case in cases:
        visual.positional_embedding.data = _transformers_positions(visual, native, case)
        with torch.inference_mode():
            image = model.encode_image(_pixel_values(case.pixels, MEAN, STD))
            tokens = kept.pop().permute(1, 0, 2)
            if case.feature == "projected":
                tokens = visual.ln_post(tokens) @ visual.proj
                torch.testing.assert_close(tokens[:, 0], image, rtol=1e-4, atol=1e-4)
        yield _as_map(tokens[:, 1:], case, visual.conv1.kernel_size[0])


def _transformers_positions(visual: Any, native: Tensor, case: Case) -> Tensor:
    """Position embeddings for this size by transformers' own CLIPVisionEmbeddings."""
    import torch
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

    config: Any = CLIPVisionConfig(
        hidden_size=native.shape[1],
        num_attention_heads=1,
        image_size=visual.input_resolution,
        patch_size=visual.conv1.kernel_size[0],
    )
    embeddings: Any = CLIPVisionEmbeddings(config)
    embeddings.position_embedding.weight.data = native
    cells = (case.height // config.patch_size) * (case.width // config.patch_size)
    tokens = torch.empty(1, 1 + cells, native.shape[1])
    positions: Tensor = embeddings.interpolate_pos_encoding(tokens, case.height, case.width)
    return positions[0].detach()


def dinov2_references(name: ModelName, cases: Sequence[Case]) -> Iterator[AnyArray]:
    """transformers' own model, called directly: the last cells of last_hidden_state."""
    import torch
    import transformers

    library: Any = transformers
    source = name.path or name.id
    with quiet_transformers():
        processor = library.AutoImageProcessor.from_pretrained(source)
        model = library.AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    patch = model.config.patch_size
    for case in cases:
        pixels = _pixel_values(case.pixels, processor.image_mean, processor.image_std)
        with torch.inference_mode():
            tokens = model(pixel_values=pixels).last_hidden_state
        cells = (case.height // patch) * (case.width // patch)
        yield _as_map(tokens[:, tokens.shape[1] - cells :], case, patch)


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
    "hf": dinov2_references,
    "timm": timm_references,
    "torchvision": torchvision_references,
}
