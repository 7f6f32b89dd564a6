"""OpenAI CLIP's ResNets: their stages, their value path and their pooled vector, against formulas.

Small ones, in OpenAI's own formats; the published dimensions are held against open_clip's.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from featprep import certify
from featprep.encoders import load_encoder
from featprep.encoders.base import LoadOptions, ModelName, Want
from featprep.encoders.openai_clip import import_clip
from featprep.encoders.openai_clip_cards import KNOWN, RESNET_BLOCKS, make_resnet_spec
from featprep.encoders.openclip_cards import KNOWN as OPEN_CLIP
from featprep.encoders.openclip_cards import WEIGHTS, card_of
from featprep.encoders.openclip_files import architectures
from featprep.encoders.tiny import write_openclip, write_resnet
from featprep.errors import UsageError, WeightsError
from featprep.references.base import transformers_positions
from featprep.references.conversions import conversions_of
from open_clip_towers import card
from safetensors.torch import save_file
from test_weights import archive

SPEC = make_resnet_spec("test", width=16, side=96, projected=32)
PATCH, VALUE, PROJECTED = Want(), Want(feature="value"), Want(feature="projected")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_resnet(SPEC, tmp_path_factory.mktemp("resnet"), (1, 2, 1, 2))


@pytest.fixture(scope="module")
def encoder(file: Path) -> Any:
    return load(file)


def clip_load(file: Path) -> Any:
    with warnings.catch_warnings():  # of torch.jit, which clip.load tries first
        warnings.simplefilter("ignore")
        return import_clip().load(str(file), device="cpu")[0]


def load(path: Path, family: str = "clip", **options: Any) -> Any:
    return load_encoder(ModelName(family, "test", str(path)), LoadOptions(**options))


def images(count: int = 2, height: int = 64, width: int = 160) -> np.ndarray[Any, Any]:
    return certify.generate_images(count, height, width)


def cells_of(encoder: Any, pixels: Any, want: Want = PATCH) -> torch.Tensor:
    return torch.from_numpy(encoder.encode(pixels, want).map).flatten(2).mT


# --- names


@pytest.mark.parametrize("id", list(RESNET_BLOCKS))
def test_the_published_models_are_those_of_open_clips_configurations(id: str) -> None:
    theirs = OPEN_CLIP[f"{id}/openai"]
    vision = architectures()[id]["vision_cfg"]
    ours = KNOWN[id]
    assert theirs is not None
    same = ("patch", "hidden_dim", "depth", "native_size", "recipe", "mean", "std", "projected_dim")
    assert [getattr(ours, key) for key in same] == [getattr(theirs, key) for key in same]
    assert RESNET_BLOCKS[id] == tuple(vision["layers"])
    channels = [vision["width"] * factor for factor in (4, 8, 16, 32)]
    assert [(stage.stride, stage.channels) for stage in ours.stages] == list(
        zip((4, 8, 16, 32), channels, strict=True)
    )


def test_a_resnet_of_another_shape_than_its_name_says_is_an_error(file: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load_encoder(ModelName("clip", "RN50", str(file)), LoadOptions())
    assert str(caught.value) == (
        f"clip:RN50: {file} holds another architecture (patch 32, width 512, 4 stages, side 96, "
        f"projected to 32); give it as clip:YOUR_NAME={file}"
    )


# --- checkpoints


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_state_dict_and_an_archive_of_one_resnet_are_one_encoder(
    file: Path, encoder: Any, tmp_path: Path
) -> None:
    archive(file, tmp_path / "archive.pt")
    other = load(tmp_path / "archive.pt", trust_weights=True)
    assert (other.digest, other.spec) == (encoder.digest, encoder.spec)
    assert encoder.spec == SPEC
    tensors = torch.load(file, weights_only=True)
    tensors["visual.layer1.0.bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save(tensors, tmp_path / "counted.pt")
    assert load(tmp_path / "counted.pt").digest == encoder.digest


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("visual.layer3.0.bn2.running_var", None),
        ("visual.attnpool.v_proj.weight", None),
        ("visual.layer4.1.conv2.weight", torch.zeros(1)),
        ("visual.layer4.1.extra", torch.zeros(1)),
        ("visual.attnpool.positional_embedding", torch.zeros(12, 512)),
    ],
)
def test_a_lacking_strange_or_misshapen_tensor_is_an_error(
    key: str, tensor: torch.Tensor | None, file: Path, tmp_path: Path
) -> None:
    tensors = torch.load(file, weights_only=True)
    tensors.pop(key, None)
    if tensor is not None:
        tensors[key] = tensor
    torch.save(tensors, tmp_path / "changed.pt")
    with pytest.raises(WeightsError) as caught:
        load(tmp_path / "changed.pt")
    start = f"clip:test: {tmp_path / 'changed.pt'} does not fit clip, get a whole copy: "
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


def test_one_weight_set_gives_one_map_through_clip_and_through_open_clip(
    file: Path, encoder: Any, tmp_path: Path
) -> None:
    vision = {"image_size": 96, "layers": [1, 2, 1, 2], "width": 16, "head_width": 64}
    folder = write_openclip(card(vision), tmp_path)
    tensors = torch.load(file, weights_only=True)
    visual = {key: item for key, item in tensors.items() if key.startswith("visual.")}
    save_file(visual, folder / WEIGHTS[0])
    theirs = load(folder, "openclip")
    for size in ((96, 96), (64, 160)):
        for want in (PATCH, PROJECTED, Want(pooled=True), Want(layers=(1,))):
            one, other = (each.encode(images(2, *size), want) for each in (encoder, theirs))
            np.testing.assert_allclose(one.map, other.map, rtol=0, atol=2e-5)
            if want.pooled:
                np.testing.assert_allclose(one.pooled, other.pooled, rtol=0, atol=2e-5)
    assert card_of(ModelName("openclip", "RN50/openai")).is_resnet


def test_it_is_certified_through_clip_and_through_open_clip_and_transformers_has_none(
    file: Path,
) -> None:
    name = ModelName("clip", "test", str(file))
    whole, converted = certify.certify(name), certify.certify_conversion(name, "openclip")
    assert [verdict for verdict in (*whole, *converted) if not verdict.is_within] == []
    asked = {verdict.case.text(verdict.part).partition(" ")[0] for verdict in converted}
    assert asked == {"patch@0", "patch@2", "patch@3", "projected", "value", "pooled"}
    assert conversions_of(name) == ["openclip"]


# --- what is taken


@pytest.mark.parametrize("size", [(96, 96), (64, 160)])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_layer_is_a_stage_with_its_own_grid(
    layer: int, size: tuple[int, int], encoder: Any, file: Path
) -> None:
    """Of clip.load's own model, whose pooling takes no other size."""
    heard: list[torch.Tensor] = []
    model = clip_load(file)
    stage = getattr(model.visual, f"layer{layer + 1}")
    stage.register_forward_hook(lambda _m, _i, out: heard.append(out))
    pixels = images(2, *size)
    model.visual.attnpool = torch.nn.Identity()
    with torch.inference_mode():
        model.encode_image(encoder.normalise(pixels))
    ours = encoder.encode(pixels, Want(layers=(layer,))).map
    stride = 4 << layer
    assert ours.shape == (2, 64 << layer, size[0] // stride, size[1] // stride)
    assert encoder.grid(*size, layer) == ours.shape[2:]
    torch.testing.assert_close(torch.from_numpy(ours), heard[0], rtol=0, atol=1e-5)


def test_several_stages_come_from_one_pass_in_the_order_asked(encoder: Any) -> None:
    calls: list[int] = []
    handle = encoder.visual.conv1.register_forward_hook(lambda *_: calls.append(1))
    taken = encoder.encode(images(), Want(layers=(-1, 0, 2), pooled=True))
    handle.remove()
    assert (list(taken.maps), len(calls)) == ([3, 0, 2], 1)
    for layer, ours in taken.maps.items():
        assert np.array_equal(ours, encoder.encode(images(), Want(layers=(layer,))).map)


def test_value_is_c_proj_of_v_proj_without_position_embedding(encoder: Any, file: Path) -> None:
    """MaskCLIP's reading: neither query nor key, and projected is the same formula."""
    tensors = torch.load(file, weights_only=True)
    pool = {key.removeprefix("visual.attnpool."): item for key, item in tensors.items()}
    cells = cells_of(encoder, images())
    value = cells @ pool["v_proj.weight"].T + pool["v_proj.bias"]
    expected = value @ pool["c_proj.weight"].T + pool["c_proj.bias"]
    ours = cells_of(encoder, images(), VALUE)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert torch.equal(cells_of(encoder, images(), PROJECTED), ours)
    assert ours.std() > 0.01


def attention_pooling(cells: torch.Tensor, positions: torch.Tensor, file: Path) -> torch.Tensor:
    """clip's AttentionPool2d written out: the mean asks, the mean and all cells answer."""
    tensors = torch.load(file, weights_only=True)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        prefix = f"visual.attnpool.{name}"
        return x @ tensors[f"{prefix}.weight"].T + tensors[f"{prefix}.bias"]

    x = torch.cat((cells.mean(1, keepdim=True), cells), 1) + positions
    query, key, value = (
        linear(f"{name}_proj", x).unflatten(-1, (-1, 64)).transpose(1, 2) for name in "qkv"
    )
    weights = torch.softmax(query[:, :, :1] @ key.mT / 8, dim=-1)
    return linear("c_proj", (weights @ value).transpose(1, 2).flatten(2))[:, 0]


@pytest.mark.parametrize("size", [(96, 96), (64, 160)])
def test_pooled_is_what_encode_image_gives_and_goes_on_to_other_sizes(
    size: tuple[int, int], encoder: Any, file: Path
) -> None:
    pixels = images(2, *size)
    ours = torch.from_numpy(encoder.encode(pixels, Want(pooled=True)).pooled)
    own = torch.load(file, weights_only=True)["visual.attnpool.positional_embedding"]
    grid = (size[0] // 32, size[1] // 32)
    positions = transformers_positions(own, (3, 3), grid, prefix=1)
    expected = attention_pooling(cells_of(encoder, pixels), positions, file)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    if size == (96, 96):
        model = clip_load(file)
        with torch.inference_mode():
            image = model.encode_image(encoder.normalise(pixels))
        torch.testing.assert_close(ours, image, rtol=1e-4, atol=1e-5)


def test_what_a_resnet_lacks_is_refused_with_what_there_is(encoder: Any) -> None:
    for want, message in (
        (
            Want(facet="key"),
            "--facet key: clip:test has no attention that gives one; allowed is --facet token",
        ),
        (
            Want(prefix=True),
            "--prefix: clip:test has no CLS or register tokens; there is --pooled or --masked_pool",
        ),
        (
            Want(norm="final"),
            "--norm final: clip:test has no other map of it; allowed is --norm auto or none",
        ),
        (
            Want(layers=(4,)),
            "--layer 4: clip:test has 4 stages; allowed are 0 to 3, or -1 (the last) to -4",
        ),
    ):
        with pytest.raises(UsageError) as refusal:
            encoder.encode(images(), want)
        assert str(refusal.value) == message
