"""The vision models of transformers: which map each family means, what its files say, what is used.

Checkpoints are two blocks of 64 channels in their published format; one is converted from openai's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from featprep import certify
from featprep.certify import Case
from featprep.config import EncodeConfig
from featprep.encoders import describe, hf_known, load_encoder, resolve
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName, Want
from featprep.encoders.hf_building import quiet_transformers
from featprep.encoders.hf_config import DINO, spec_of
from featprep.encoders.tiny import TINY, write_checkpoint, write_folder
from featprep.errors import UsageError, WeightsError
from featprep.references.conversions import to_transformers
from featprep.resolve import by_patch
from featprep.resolve import resolve as resolve_run
from safetensors.torch import load_file, save_file

CAPTION, RETRIEVAL = "BlipForConditionalGeneration", "BlipForImageTextRetrieval"


def small(width: int, side: int, files: hf_known.Files) -> hf_known.Files:
    """The same files for a model of another width and side."""
    config, processor = files
    tower = config.get("vision_config", config)
    sizes = {"hidden_size": width, "num_attention_heads": 2, "image_size": side}
    sizes["intermediate_size"] = 2 * width
    if "vision_config" in config:
        return {**config, "vision_config": {**tower, **sizes}}, processor
    return {**config, **sizes}, processor


# Every architecture there is, small: native 64 = 4 × 4 cells of 16.
SMALL: dict[str, hf_known.Files] = {
    "dinov2": hf_known.dinov2(64, 2, patch=16, side=64),
    "registers": hf_known.dinov2(64, 2, patch=16, side=64, registers=4),
    "dinov3": small(64, 64, hf_known.dinov3(64, 2, 128)),
    "dinov3 gated": small(64, 64, hf_known.dinov3(64, 2, 128, is_gated=True, biases=False)),
    "dinov3 convnext": hf_known.dinov3_convnext([16, 24, 32, 64], [1, 1, 2, 1]),
    "clip": small(64, 64, hf_known.clip(16, 64, 2, 24)),
    "altclip": small(64, 64, hf_known.altclip(16, 64, 2, 24)),
    "siglip": small(64, 64, hf_known.siglip(16, 64, 2, 128, 64)),
    "naflex": hf_known.naflex(64, 2, 128, heads=2),
    "blip": small(64, 64, hf_known.blip(RETRIEVAL, 64, 2)),
    "blip caption": small(64, 64, hf_known.blip(CAPTION, 64, 2)),
    "vit": small(64, 64, hf_known.vit(16, 64, 2)),
    "vit classifier": small(64, 64, hf_known.vit(16, 64, 2, 64, "ViTForImageClassification")),
}
KINDS = [kind for kind in SMALL if kind != "naflex"]  # which takes patches: a test of its own
PROJECTING = ["clip", "altclip", "blip"]
PROJECTED = Want(feature="projected")


def name(folder: Path) -> ModelName:
    return ModelName("hf", "test", str(folder))


def load(folder: Path, **options: Any) -> Any:
    return load_encoder(name(folder), LoadOptions(**options))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def images(count: int, height: int = 48, width: int = 80) -> np.ndarray[Any, Any]:
    return certify.generate_images(count, height, width)


def change(folder: Path, edit: Any) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file({key: item.contiguous().clone() for key, item in tensors.items()}, file)


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Not to be changed."""
    root = tmp_path_factory.mktemp("small")
    return {kind: write_folder(files, root / kind) for kind, files in SMALL.items()}


def cells_of(encoder: Any, pixels: Any, want: Want | None = None) -> torch.Tensor:
    """(cells, C) of the first image."""
    return torch.from_numpy(encoder.encode(pixels, want or Want()).map[0]).flatten(1).T


# --- parity


def test_every_architecture_equals_transformers_own_class(
    kind: str, folders: dict[str, Path]
) -> None:
    p = load(folders[kind]).spec.patch
    features: list[Any] = ["patch", "projected"] if kind in PROJECTING else ["patch"]
    sizes = [(64, 64, 1), (5 * p, 2 * p, 1), (2 * p + 5, 8 * p + 9, 3)]
    cases = [Case(*size, Want(feature=feature)) for size in sizes for feature in features]
    for verdict in certify.certify(name(folders[kind]), cases):
        assert verdict.is_within, verdict
        assert 0.3 < verdict.difference.rms < 30


@pytest.mark.parametrize(("height", "width"), [(256, 256), (128, 512), (80, 160)])
def test_naflex_equals_transformers_own_class_fed_by_its_own_processor(
    folders: dict[str, Path], height: int, width: int
) -> None:
    """PITFALLS 32. The processor scales to 256 patches, but not what has them; 5 × 10 it pads."""
    library: Any = transformers
    folder, pixels = folders["naflex"], images(2, height, width)
    encoder = load(folder, want=Want(pooled=True))
    taken = encoder.encode(pixels, Want(pooled=True))
    processor = library.Siglip2ImageProcessorPil.from_pretrained(folder)
    given = processor(list(pixels), do_resize=False, return_tensors="pt")
    assert given["pixel_values"].shape == (2, 256, 768)
    with quiet_transformers():
        model = library.Siglip2Model.from_pretrained(folder).eval()
    with torch.inference_mode():
        out = model.vision_model(**given)
    cells = height * width // 256
    ours = torch.from_numpy(taken.map).flatten(2).mT
    torch.testing.assert_close(ours, out.last_hidden_state[:, :cells], rtol=0, atol=2e-5)
    torch.testing.assert_close(torch.from_numpy(taken.pooled), out.pooler_output, rtol=0, atol=2e-5)


def test_naflexs_own_recipe_is_refused_with_the_nearest(folders: dict[str, Path]) -> None:
    config = EncodeConfig(input="i", output="o", model="m", resize="native")
    spec = load(folders["naflex"]).spec
    with pytest.raises(UsageError) as refused:
        resolve_run(config, spec, "float32", by_patch(spec), is_plain=False)
    assert str(refused.value) == (
        "--resize native: hf:test gives each image a size of its own, which is not done here; "
        "nearest to it is --resize keep --max_tokens 256"
    )


def test_one_set_of_weights_gives_one_map_through_clip_and_through_transformers(
    tmp_path: Path,
) -> None:
    file = write_checkpoint(TINY["clip"], tmp_path)
    clip = load_encoder(ModelName("clip", "test", str(file)), LoadOptions())
    state = torch.load(file, weights_only=True)
    hf = load(to_transformers(state, tmp_path / "hf"))
    other = load(to_transformers(state, tmp_path / "gelu", "gelu"))
    assert (hf.spec.mean, hf.spec.std, hf.spec.projected_dim) == (
        clip.spec.mean,
        clip.spec.std,
        clip.spec.projected_dim,
    )
    for height, width in ((224, 224), (70, 126), (280, 280), (28, 14)):
        pixels = images(2, height, width)
        for want in (Want(), PROJECTED):
            ours, theirs = (one.encode(pixels, want).map for one in (hf, clip))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    # PITFALLS 12: the activation is config.json's, and shows.
    assert np.abs(other.encode(pixels, Want()).map - hf.encode(pixels, Want()).map).max() > 1e-2
    assert other.digest != hf.digest


# --- which map


LAST_BLOCK = {"vit": "layers", "vit classifier": "layers", "dinov3": "model.layer",
              "dinov3 gated": "model.layer", "dinov3 convnext": "model.stages",
              "dinov2": "encoder.layer", "registers": "encoder.layer"}  # fmt: skip
LAST_NORM = {"vit": "layernorm", "vit classifier": "layernorm", "dinov3": "norm",
             "dinov3 gated": "norm", "dinov3 convnext": "layer_norm", "dinov2": "layernorm",
             "registers": "layernorm"}  # fmt: skip


def test_the_map_is_the_last_block_normed_where_the_family_means_it_so(
    kind: str, folders: dict[str, Path]
) -> None:
    """PITFALLS 1, 2, 3."""
    encoder, kept = load(folders[kind]), []
    path = LAST_BLOCK.get(kind, "encoder.layers")
    if path == "layers" and not hasattr(encoder.model, "layers"):
        path = "encoder.layer"  # transformers 5.6
    blocks = encoder.model.get_submodule(path)
    norm = encoder.model.get_submodule(LAST_NORM.get(kind, "post_layernorm"))
    blocks[-1].register_forward_hook(lambda *call: kept.append(call[-1]))
    ours = cells_of(encoder, images(1, 64, 96))
    raw = kept[0][0].flatten(1).T if kind == "dinov3 convnext" else kept[0][0][-len(ours) :]
    with torch.inference_mode():
        normed = norm(raw)
    is_normed = kind not in ("clip", "altclip")
    assert encoder.spec.final_norm == is_normed
    torch.testing.assert_close(ours, normed if is_normed else raw, rtol=0, atol=1e-5)
    assert (ours - (raw if is_normed else normed)).abs().mean() > 0.03


def test_tokens_before_the_cells_are_counted_and_are_no_part_of_the_map(
    kind: str, folders: dict[str, Path]
) -> None:
    """PITFALLS 6: SigLIP has none, DINOv3 five, DINOv3 ConvNeXt its pooled vector."""
    encoder = load(folders[kind])
    p = encoder.spec.patch
    pixels = images(1, 2 * p, 3 * p)
    with torch.inference_mode():
        out = encoder.model(pixel_values=encoder.normalise(pixels), **encoder._flags)
    prefix = {"siglip": 0, "registers": 5, "dinov3": 5, "dinov3 gated": 5}.get(kind, 1)
    assert encoder.prefix == prefix
    assert encoder.tokens(2 * p, 3 * p) == out.last_hidden_state.shape[1:] == (prefix + 6, 64)
    assert torch.equal(cells_of(encoder, pixels), out.last_hidden_state[0, prefix:])


def test_a_bright_cell_shows_at_its_own_row_and_column(kind: str, folders: dict[str, Path]) -> None:
    """PITFALLS 22; the first cell too, which [:, 1:] would take from SigLIP."""
    encoder = load(folders[kind])
    p = encoder.spec.patch
    dark = np.zeros((1, 3, 3 * p, 5 * p), np.uint8)
    for row, column in ((0, 0), (1, 4)):
        lit = dark.copy()
        lit[:, :, row * p : (row + 1) * p, column * p : (column + 1) * p] = 255
        maps = [encoder.encode(pixels, Want()).map for pixels in (lit, dark)]
        change = np.abs(maps[0] - maps[1]).sum(1)[0]
        assert np.unravel_index(change.argmax(), change.shape) == (row, column)


@pytest.mark.parametrize("kind", PROJECTING)
def test_projected_is_the_last_norm_and_the_checkpoints_projection_of_each_cell(
    kind: str, folders: dict[str, Path]
) -> None:
    encoder, pixels = load(folders[kind], want=PROJECTED), images(1)
    cells, projected = (cells_of(encoder, pixels, want) for want in (Want(), PROJECTED))
    tensors = load_file(folders[kind] / "model.safetensors")
    layer = "vision_proj" if kind == "blip" else "visual_projection"
    with torch.inference_mode():
        normed = cells if kind == "blip" else encoder.model.post_layernorm(cells)
        expected = normed @ tensors[f"{layer}.weight"].T + tensors.get(f"{layer}.bias", 0)
    assert projected.shape == (15, 256 if kind == "blip" else 24)
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PROJECTING])
def test_a_family_without_a_projection_of_cells_refuses_projected(
    kind: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(UsageError) as caught:
        load(folders[kind], want=PROJECTED)
    assert str(caught.value) == (
        "--feature projected: hf:test has no projection; allowed is --feature patch"
    )


def test_a_native_size_that_the_patch_does_not_divide_leaves_its_own_positions(
    tmp_path: Path,
) -> None:
    """SigLIP so400m: 384 is 27 cells of 14 and six pixels, right and below."""
    encoder = load(write_folder(small(64, 62, hf_known.siglip(14, 64, 2, 128, 62)), tmp_path))
    assert (encoder.spec.native_size, encoder.grid(62, 62)) == ((62, 62), (4, 4))
    pixels = images(1, 62, 62)
    cut = pixels.copy()
    cut[..., 56:, :] = cut[..., 56:] = 0
    assert np.array_equal(encoder.encode(pixels, Want()).map, encoder.encode(cut, Want()).map)
    with torch.inference_mode():
        plain = encoder.model(pixel_values=encoder.normalise(pixels)).last_hidden_state
    assert torch.equal(cells_of(encoder, pixels), plain[0])


@pytest.mark.parametrize("kind", ["dinov3", "siglip", "clip"])
def test_hub_positions_are_dinov2s_alone(kind: str, folders: dict[str, Path]) -> None:
    encoder = load(folders[kind], pos_embed="hub")
    assert encoder.encode(images(1, *encoder.spec.native_size), Want()).map.shape[0] == 1
    with pytest.raises(UsageError, match="has no such interpolation; allowed is transformers"):
        encoder.encode(images(1, 48, 80), Want())


# --- what the files say


PUBLISHED = {
    "facebook/dinov3-vits16-pretrain-lvd1689m": (384, 12, 16, 224, None, 4),
    "facebook/dinov3-vits16plus-pretrain-lvd1689m": (384, 12, 16, 224, None, 4),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": (768, 12, 16, 224, None, 4),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": (1024, 24, 16, 224, None, 4),
    "facebook/dinov3-vith16plus-pretrain-lvd1689m": (1280, 32, 16, 224, None, 4),
    "facebook/dinov3-vit7b16-pretrain-lvd1689m": (4096, 40, 16, 224, None, 4),
    "facebook/dinov3-vitl16-pretrain-sat493m": (1024, 24, 16, 224, None, 4),
    "facebook/dinov3-vit7b16-pretrain-sat493m": (4096, 40, 16, 224, None, 4),
    "facebook/dinov3-convnext-tiny-pretrain-lvd1689m": (768, 4, 32, 224, None, 0),
    "facebook/dinov3-convnext-small-pretrain-lvd1689m": (768, 4, 32, 224, None, 0),
    "facebook/dinov3-convnext-base-pretrain-lvd1689m": (1024, 4, 32, 224, None, 0),
    "facebook/dinov3-convnext-large-pretrain-lvd1689m": (1536, 4, 32, 224, None, 0),
    "openai/clip-vit-base-patch32": (768, 12, 32, 224, 512, 0),
    "openai/clip-vit-base-patch16": (768, 12, 16, 224, 512, 0),
    "openai/clip-vit-large-patch14": (1024, 24, 14, 224, 768, 0),
    "openai/clip-vit-large-patch14-336": (1024, 24, 14, 336, 768, 0),
    "BAAI/AltCLIP": (1024, 24, 14, 224, 768, 0),
    "google/siglip-base-patch16-224": (768, 12, 16, 224, None, 0),
    "google/siglip-base-patch16-256": (768, 12, 16, 256, None, 0),
    "google/siglip-base-patch16-384": (768, 12, 16, 384, None, 0),
    "google/siglip-base-patch16-512": (768, 12, 16, 512, None, 0),
    "google/siglip-large-patch16-256": (1024, 24, 16, 256, None, 0),
    "google/siglip-large-patch16-384": (1024, 24, 16, 384, None, 0),
    "google/siglip-so400m-patch14-224": (1152, 27, 14, 224, None, 0),
    "google/siglip-so400m-patch14-384": (1152, 27, 14, 384, None, 0),
    "google/siglip2-base-patch16-224": (768, 12, 16, 224, None, 0),
    "google/siglip2-base-patch16-256": (768, 12, 16, 256, None, 0),
    "google/siglip2-base-patch16-384": (768, 12, 16, 384, None, 0),
    "google/siglip2-base-patch16-512": (768, 12, 16, 512, None, 0),
    "google/siglip2-large-patch16-256": (1024, 24, 16, 256, None, 0),
    "google/siglip2-large-patch16-384": (1024, 24, 16, 384, None, 0),
    "google/siglip2-large-patch16-512": (1024, 24, 16, 512, None, 0),
    "google/siglip2-so400m-patch14-224": (1152, 27, 14, 224, None, 0),
    "google/siglip2-so400m-patch14-384": (1152, 27, 14, 384, None, 0),
    "google/siglip2-so400m-patch16-256": (1152, 27, 16, 256, None, 0),
    "google/siglip2-so400m-patch16-384": (1152, 27, 16, 384, None, 0),
    "google/siglip2-so400m-patch16-512": (1152, 27, 16, 512, None, 0),
    "google/siglip2-base-patch32-256": (768, 12, 32, 256, None, 0),
    "google/siglip2-base-patch16-naflex": (768, 12, 16, 256, None, 0),
    "google/siglip2-so400m-patch16-naflex": (1152, 27, 16, 256, None, 0),
    "Salesforce/blip-image-captioning-base": (768, 12, 16, 384, None, 0),
    "Salesforce/blip-image-captioning-large": (1024, 24, 16, 384, None, 0),
    "Salesforce/blip-itm-base-coco": (768, 12, 16, 384, 256, 0),
    "Salesforce/blip-itm-base-flickr": (768, 12, 16, 384, 256, 0),
    "Salesforce/blip-itm-large-coco": (1024, 24, 16, 384, 256, 0),
    "Salesforce/blip-itm-large-flickr": (1024, 24, 16, 384, 256, 0),
    "google/vit-base-patch16-224-in21k": (768, 12, 16, 224, None, 0),
    "google/vit-base-patch32-224-in21k": (768, 12, 32, 224, None, 0),
    "google/vit-large-patch16-224-in21k": (1024, 24, 16, 224, None, 0),
    "google/vit-huge-patch14-224-in21k": (1280, 32, 14, 224, None, 0),
    "google/vit-base-patch16-224": (768, 12, 16, 224, None, 0),
    "google/vit-base-patch16-384": (768, 12, 16, 384, None, 0),
    "google/vit-large-patch16-224": (1024, 24, 16, 224, None, 0),
    "google/vit-large-patch16-384": (1024, 24, 16, 384, None, 0),
}


def test_the_dimensions_are_the_published_ones() -> None:
    assert {
        id: (s.hidden_dim, s.depth, s.patch, s.native_size[0], s.projected_dim, s.registers)
        for id, s in hf_known.KNOWN.items()
        if "dinov2" not in id
    } == PUBLISHED


@pytest.mark.parametrize("id", list(hf_known.FILES))
def test_a_known_name_is_described_as_its_files_describe_it_to_transformers(
    id: str, tmp_path: Path
) -> None:
    config, processor = hf_known.FILES[id]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    spec = hf_known.KNOWN[id]
    assert describe(ModelName("hf", id, str(tmp_path))) == spec
    theirs: Any = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, getattr(transformers, config["architectures"][0]).config_class)
    tower = getattr(theirs, "vision_config", theirs)
    widths = getattr(tower, "hidden_sizes", None) or [tower.hidden_size]
    side = getattr(tower, "image_size", None) or 16 * tower.num_patches**0.5  # NaFlex
    assert (widths[-1], side) == (spec.hidden_dim, spec.native_size[0])
    assert tower.hidden_act == {
        "clip": "quick_gelu", "altclip": "quick_gelu",
        "siglip": "gelu_pytorch_tanh", "siglip2": "gelu_pytorch_tanh",
    }.get(config["model_type"], "gelu")  # fmt: skip


@pytest.mark.parametrize(
    ("id", "resize", "crop", "kernel", "mean"),
    [
        ("openai/clip-vit-large-patch14-336", 336, 336, "bicubic", 0.48145466),
        ("BAAI/AltCLIP", 224, 224, "bicubic", 0.48145466),
        ("google/siglip-so400m-patch14-384", (384, 384), 384, "bicubic", 0.5),
        ("google/siglip2-base-patch16-224", (224, 224), 224, "bilinear", 0.5),
        ("Salesforce/blip-itm-base-coco", (384, 384), 384, "bicubic", 0.48145466),
        ("google/vit-base-patch16-224-in21k", (224, 224), 224, "bilinear", 0.5),
        ("facebook/dinov3-vits16-pretrain-lvd1689m", (224, 224), 224, "bilinear", 0.485),
        ("facebook/dinov3-vitl16-pretrain-sat493m", (224, 224), 224, "bilinear", 0.430),
        ("facebook/dinov3-convnext-tiny-pretrain-lvd1689m", (224, 224), 224, "bilinear", 0.485),
    ],
)
def test_the_recipe_of_a_known_name_is_the_published_one(
    id: str, resize: Any, crop: int, kernel: str, mean: float
) -> None:
    spec = hf_known.KNOWN[id]
    assert (spec.recipe.resize, spec.recipe.crop) == (resize, (crop, crop))
    assert (spec.recipe.kernel, spec.recipe.rounding) == (kernel, "transformers")
    assert spec.mean[0] == mean


def described(config: dict[str, Any], **processor: Any) -> EncoderSpec:
    return spec_of("hf:test", config, processor)


def test_what_a_processors_file_leaves_out_its_class_decides() -> None:
    (clip, _), (vit, _), (siglip, _) = SMALL["clip"], SMALL["vit"], SMALL["siglip"]
    plain = described(vit, image_processor_type="ViTImageProcessor").recipe
    assert (plain.resize, plain.crop, plain.kernel) == ((224, 224), (224, 224), "bilinear")
    # An old file: `"size": 384` is a square for ViT, the short side for CLIP.
    old = described(vit, feature_extractor_type="ViTFeatureExtractor", size=384).recipe
    assert (old.resize, old.crop) == ((384, 384), (384, 384))
    old = described(clip, feature_extractor_type="CLIPFeatureExtractor", size=300).recipe
    assert (old.resize, old.crop) == (300, (224, 224))
    spec = described(siglip, image_processor_type="SiglipImageProcessorFast", resample=2)
    assert (spec.recipe.resize, spec.recipe.kernel, spec.mean) == (
        (224, 224), "bilinear", (0.5, 0.5, 0.5)
    )  # fmt: skip
    none = described(
        SMALL["dinov3"][0],
        image_processor_type="DINOv3ViTImageProcessorFast",
        do_center_crop=None,
        crop_size=None,
        size={"height": 256, "width": 512},
    )
    assert (none.recipe.resize, none.recipe.crop) == ((256, 512), (256, 512))
    # null is off, and no default: this CLIP is not cropped.
    uncropped = described(clip, do_center_crop=None, crop_size=None, size={"height": 9, "width": 8})
    assert (uncropped.recipe.resize, uncropped.recipe.crop) == ((9, 8), (9, 8))
    with pytest.raises(ValueError, match=r"^size None; allowed is a number"):
        described(clip, size=None)
    assert described(clip).mean[0] == 0.48145466  # no class named: the model type's own
    with pytest.raises(ValueError, match=r"^image processor ConvNext; allowed are Bit, CLIP, Sig"):
        described(vit, image_processor_type="ConvNextImageProcessor")


def test_a_tower_that_leaves_everything_out_has_its_classs_defaults() -> None:
    """As google/siglip-base-patch16-224's own file does."""
    spec = described(
        {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}
    )
    assert (spec.hidden_dim, spec.depth, spec.patch, spec.native_size) == (768, 12, 16, (224, 224))
    assert described({"model_type": "blip"}).native_size == (384, 384)
    assert described({"model_type": "dinov3_convnext"}).hidden_dim == 768


def test_an_older_clips_vision_config_dict_counts_as_in_transformers(tmp_path: Path) -> None:
    config, processor = SMALL["clip"]
    tower = config["vision_config"]
    older = {**config, "vision_config_dict": tower, "vision_config": {**tower, "patch_size": 8}}
    folder = write_folder((older, processor), tmp_path)
    theirs: Any = transformers.AutoConfig.from_pretrained(folder)
    assert (theirs.vision_config.patch_size, load(folder).grid(64, 64)) == (16, (4, 4))


def test_foreign_types_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_folder(SMALL["siglip"], tmp_path)
    types = (
        "dinov2 or dinov2_with_registers or dinov3_vit or dinov3_convnext or vit or clip or "
        "clip_vision_model or altclip or altclip_vision_model or siglip or siglip_vision_model or "
        "siglip2 or siglip2_vision_model or blip or blip_vision_model, such as "
        "hf:facebook/dinov2-base"
    )
    change_json(folder / "config.json", model_type="swin")
    assert refusal(folder) == (
        f"hf:test: {folder / 'config.json'} is of model type swin; allowed is {types}"
    )


# --- what is loaded


def test_a_lacking_tensor_of_the_tower_is_an_error(kind: str, tmp_path: Path) -> None:
    """PITFALLS 27."""
    folder = write_folder(SMALL[kind], tmp_path)
    last = {"dinov3 convnext": "stages.3.layers.0.gamma"}.get(kind, "norm2.weight")
    last = {"vit": "layernorm_after.weight", "vit classifier": "layernorm_after.weight"}.get(
        kind, last
    )
    if kind in (*PROJECTING, "siglip", "blip caption"):
        last = "layer_norm2.weight"
    (key, *_) = [key for key in load_file(folder / "model.safetensors") if key.endswith(last)]
    change(folder, lambda tensors: tensors.pop(key))
    message = refusal(folder)
    assert message.startswith(f"hf:test: {folder} lacks ")
    assert message.endswith(f"{last}, on which the map depends; get a whole copy of the checkpoint")


def test_a_block_that_config_json_does_not_tell_of_is_an_error(kind: str, tmp_path: Path) -> None:
    folder = write_folder(SMALL[kind], tmp_path)
    config, _ = SMALL[kind]
    tower = config.get("vision_config", config)
    fewer = {"depths": [1, 1, 1, 1]} if "depths" in tower else {"num_hidden_layers": 1}
    shorter = {"vision_config": {**tower, **fewer}} if "vision_config" in config else fewer
    change_json(folder / "config.json", **shorter)
    assert refusal(folder).endswith(
        ", of which its config.json says nothing; put the config.json of that checkpoint there"
    )


HEADS = {
    "clip": ["text_model.", "logit_scale"],
    "siglip": ["text_model.", "logit_", "vision_model.head."],
    "vit": ["pooler."],
    "vit classifier": ["classifier."],
    "dinov3": ["embeddings.mask_token"],
}


@pytest.mark.parametrize("kind", list(HEADS))
def test_text_towers_and_heads_may_be_there_or_not(kind: str, tmp_path: Path) -> None:
    folder = write_folder(SMALL[kind], tmp_path)
    pixels = images(1)
    before = load(folder)

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        heads = [key for key in tensors if key.startswith(tuple(HEADS[kind]))]
        assert heads
        for key in heads:
            del tensors[key]

    change(folder, drop)
    after = load(folder)
    assert after.digest == before.digest
    assert np.array_equal(after.encode(pixels, Want()).map, before.encode(pixels, Want()).map)


def test_a_counter_of_positions_that_older_files_hold_is_passed_over(tmp_path: Path) -> None:
    folder = write_folder(SMALL["clip"], tmp_path)
    before = load(folder).digest
    counter = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    change(folder, lambda tensors: tensors.update(counter))
    assert load(folder).digest == before


def test_the_names_that_transformers_5_gives_altclips_blocks_are_read_too(tmp_path: Path) -> None:
    folder = write_folder(SMALL["altclip"], tmp_path)
    before = load(folder).digest

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if ".layers." in key]:
            tensors[key.replace(".layers.", ".layer.")] = tensors.pop(key)

    change(folder, rename)
    assert load(folder).digest == before


def test_the_digest_is_over_the_projection_too(tmp_path: Path) -> None:
    folder = write_folder(SMALL["clip"], tmp_path)
    before = load(folder).digest
    change(folder, lambda tensors: tensors["visual_projection.weight"].mul_(2))
    assert load(folder).digest != before


def test_a_projection_that_lacks_or_does_not_fit_is_an_error(tmp_path: Path) -> None:
    folder = write_folder(SMALL["clip"], tmp_path)
    change_json(folder / "config.json", projection_dim=32)
    message = refusal(folder, want=PROJECTED)
    start = f"hf:test: the projection in {folder} does not fit its config.json: "
    assert message.startswith(start)
    assert "size mismatch for weight" in message
    change(folder, lambda tensors: tensors.pop("visual_projection.weight"))
    assert refusal(folder, want=PROJECTED).startswith(start)


VISION_ONLY = {
    "clip": "CLIPVisionModelWithProjection",
    "altclip": "AltCLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "blip caption": "BlipVisionModel",
}


@pytest.mark.parametrize("kind", list(VISION_ONLY))
def test_a_tower_saved_alone_and_a_model_saved_anew_give_the_same_map(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """In whatever names the installed transformers writes."""
    whole, pixels = load(folders[kind]), images(1)
    ours = whole.encode(pixels, Want()).map
    config, processor = SMALL[kind]
    full_class: Any = getattr(transformers, config["architectures"][0])
    tower_class: Any = getattr(transformers, VISION_ONLY[kind])
    with quiet_transformers():
        full = full_class.from_pretrained(folders[kind])
        full.save_pretrained(tmp_path / "anew")
        tower = tower_class(full.config.vision_config).eval()
        if kind == "clip":
            tower.visual_projection.load_state_dict(full.visual_projection.state_dict())
        inner = tower.vision_model if kind == "clip" else tower
        inner.load_state_dict(full.vision_model.state_dict(), strict=kind != "siglip")
        tower.save_pretrained(tmp_path / "tower")
    for folder in (tmp_path / "anew", tmp_path / "tower"):
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        again = load(folder)
        np.testing.assert_array_equal(again.encode(pixels, Want()).map, ours)
        is_projecting = folder.name == "anew" or kind == "clip"
        assert again.spec.projected_dim == (whole.spec.projected_dim if is_projecting else None)


# --- which command takes it


def test_the_dino_script_takes_dinov2_and_dinov3_alone(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    vits16 = "facebook/dinov3-vits16-pretrain-lvd1689m"
    assert resolve(vits16, "dino") == ModelName("hf", vits16, None, is_plain=True, kinds=DINO)
    for value in ("google/siglip-base-patch16-224", "hf:google/siglip-base-patch16-224"):
        with pytest.raises(UsageError) as caught:
            resolve(value, "dino")
        message = str(caught.value)
        assert message.startswith(
            "--model hf:google/siglip-base-patch16-224: this command takes DINOv2 and DINOv3; "
            "allowed is facebook/dinov2-small, "
        )
        assert message.endswith(
            "; for this one use featprep encode --model hf:google/siglip-base-patch16-224"
        )
    path = folders["siglip"]
    for value in (str(path), f"hf:mine={path}"):
        id = "mine" if "=" in value else "siglip"
        chosen = resolve(value, "dino")
        with pytest.raises(UsageError) as caught:
            describe(chosen)
        assert str(caught.value) == (
            f"--model {path}: {path / 'config.json'} is of model type siglip; this command takes "
            f"dinov2, dinov2_with_registers, dinov3_vit, dinov3_convnext; for this one use "
            f"featprep encode --model hf:{id}={path}"
        )
        with pytest.raises(UsageError):
            load_encoder(chosen, LoadOptions())
    for kind in ("dinov2", "registers", "dinov3", "dinov3 convnext"):
        assert describe(resolve(str(folders[kind]), "dino")) is not None
    assert describe(resolve(f"hf:mine={path}", "any")) is not None


def test_plain_names_mean_224_where_a_script_takes_them_and_their_own_size_elsewhere() -> None:
    for plain in ("facebook/dinov2-base", "facebook/dinov3-vits16-pretrain-lvd1689m", "ViT-L/14"):
        assert resolve(plain, "any").is_plain
    for own in ("google/siglip-so400m-patch14-384", "openai/clip-vit-large-patch14-336"):
        assert resolve(own, "any") == ModelName("hf", own)
