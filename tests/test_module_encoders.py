"""timm's and torchvision's encoders: contract, parity, sizes, recipes, strict loading.

Checkpoints are random, in each library's own format: timm's test architectures, and ViTs of two
blocks, as folders; torchvision's are whole, as it has no format that says another depth.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from featprep import certify
from featprep.certify_cases import Case, kinds, main_kinds
from featprep.config import EncodeConfig
from featprep.encoders import describe, load_encoder, resolve, terms_of
from featprep.encoders.base import (
    Encoder,
    LoadOptions,
    ModelName,
    Terms,
    Want,
    predict_grid,
)
from featprep.encoders.module_encoder import Ask, measure_unit, outline, trace
from featprep.encoders.random_modules import write_timm, write_torchvision
from featprep.encoders.timm_building import can_resize, read_card, sketch_model
from featprep.encoders.timm_catalogue import KNOWN as TIMM
from featprep.encoders.timm_catalogue import make_recipe
from featprep.encoders.timm_networks import make_network as timm_network
from featprep.encoders.timm_networks import make_spec
from featprep.encoders.torchvision_catalogue import ARCHITECTURES, KNOWN, tag_of
from featprep.encoders.torchvision_models import HEADS, make_network
from featprep.errors import UsageError, WeightsError
from featprep.resolve import by_patch
from featprep.resolve import resolve as resolve_config
from safetensors.torch import load_file, save_file
from torchvision import models

SHALLOW = {"depth": 2, "embed_dim": 64, "num_heads": 2}
# Of timm: ViT, with the GAP norm, registers, no CLS and a native size that the patch does not
# divide; Eva with RoPE and without positions; CNNs that round up and down; fixed windows.
OF_TIMM: dict[str, dict[str, Any]] = {
    "test_vit": {},
    "vit_small_patch14_reg4_dinov2": {**SHALLOW, "img_size": 70},
    "vit_so400m_patch14_siglip_384": {**SHALLOW, "img_size": 96},
    "deit_tiny_distilled_patch16_224": {"depth": 1},
    "vit_small_patch16_dinov3": {**SHALLOW, "img_size": 96},
    "eva02_tiny_patch14_224": {"depth": 2},
    "test_resnet": {},
    "test_efficientnet": {},
    "test_convnext": {},
    "test_maxvit": {},
    "test_vit_relpos": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": [1, 1, 2, 1]},
}
OF_TORCHVISION = (
    "resnet18",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_32",
    "swin_t",
)
Made = Callable[[str], ModelName]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """made("timm:test_vit"): the architecture's random weights as local ones, written once."""
    names: dict[str, ModelName] = {}

    def make(name: str) -> ModelName:
        if name not in names:
            family, _, id = name.partition(":")
            folder = tmp_path_factory.mktemp("weights")
            if family == "timm":
                path = write_timm(id, folder, **OF_TIMM.get(id, {}))
            else:
                path = write_torchvision(id, folder)
            names[name] = ModelName(family, id, str(path))
        return names[name]

    return make


@pytest.fixture(
    scope="module",
    params=[*(f"timm:{id}" for id in OF_TIMM), *(f"torchvision:{id}" for id in OF_TORCHVISION)],
)
def local(request: pytest.FixtureRequest, made: Made) -> ModelName:
    return made(request.param)


@pytest.fixture(scope="module")
def encoder(local: ModelName) -> Any:
    return load(local)


def load(name: ModelName) -> Any:
    return load_encoder(name, LoadOptions())


def images(count: int, height: int, width: int) -> np.ndarray[Any, Any]:
    return certify.generate_images(count, height, width)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises((UsageError, WeightsError)) as refusal:
        call()
    return str(refusal.value)


def sizes_of(encoder: Encoder) -> list[tuple[int, int]]:
    p = encoder.spec.patch
    if encoder.spec.fixed_size:
        return [encoder.spec.native_size]
    odd = [(3 * p + 1, 2 * p - 1)] if encoder.spec.unit else []
    return [(2 * p, 3 * p), *odd]


# --- the contract


def test_every_kind_of_feature_equals_upstreams_at_native_other_and_odd_sizes(
    local: ModelName, encoder: Encoder
) -> None:
    """Layers, several of them, norms, facets, prefix and pooled: what the spec says there is."""
    native, (first, *others) = encoder.spec.native_size, sizes_of(encoder)
    cases = [Case(*first, 1, want) for want in kinds(encoder.spec)]
    cases += [
        Case(*size, 1, want) for size in (native, *others) for want in main_kinds(encoder.spec)
    ]
    verdicts = certify.certify(local, list(dict.fromkeys(cases)))
    assert [v for v in verdicts if not v.is_within] == []
    assert min(verdict.difference.cosine for verdict in verdicts) > 1 - 1e-7


def test_a_map_is_of_the_grid_asked_and_varies_from_cell_to_cell(encoder: Encoder) -> None:
    for height, width in sizes_of(encoder):
        rows, columns = encoder.grid(height, width)
        assert (rows, columns) == predict_grid(encoder.spec, height, width)
        maps = encoder.encode(images(2, height, width), Want())
        assert list(maps.maps) == [encoder.spec.depth - 1]
        assert maps.map.shape == (2, encoder.spec.hidden_dim, rows, columns)
        assert maps.map.dtype == np.float32
        assert maps.map.flags.c_contiguous
        assert maps.map.std(axis=(2, 3)).mean() > 0.1  # else parity would prove little
        tokens, dim = encoder.tokens(height, width)
        assert (tokens - rows * columns, dim) == (encoder.prefix, encoder.spec.hidden_dim)  # type: ignore[attr-defined]


def test_a_row_depends_on_its_image_alone(encoder: Encoder) -> None:
    height, width = sizes_of(encoder)[0]
    pixels = images(3, height, width)
    alone = np.zeros_like(pixels)
    alone[0] = pixels[0]
    together, padded = (encoder.encode(batch, Want()).map for batch in (pixels, alone))
    assert np.array_equal(together[0], padded[0])
    turned = encoder.encode(pixels[::-1].copy(), Want()).map
    assert np.abs(turned[::-1] - together).max() <= 1e-4 * max(1, np.abs(together).max())


@pytest.mark.parametrize(
    "name",
    ["timm:test_vit", "timm:test_convnext", "timm:test_maxvit", "timm:test_resnet"],
)
def test_bfloat16_points_the_same_way_as_float32(made: Made, name: str) -> None:
    encoder, half = load(made(name)), load_encoder(made(name), LoadOptions(compute="bfloat16"))
    pixels = images(1, *sizes_of(encoder)[0])
    ours, exact = (one.encode(pixels, Want()).map.ravel() for one in (half, encoder))
    assert ours @ exact / np.linalg.norm(ours) / np.linalg.norm(exact) >= 0.999
    assert half.digest == encoder.digest


def test_a_cnn_in_bfloat16_is_what_upstream_makes_of_it(made: Made) -> None:
    """Thirty random layers, none with a norm of the image's own: a cosine of 0.99 in both."""
    local = made("torchvision:efficientnet_b0")
    half, pixels = load_encoder(local, LoadOptions(compute="bfloat16")), images(1, 64, 96)
    model = models.get_model("efficientnet_b0", weights=None)
    model.load_state_dict(torch.load(str(local.path), weights_only=True))
    with torch.inference_mode():
        theirs = model.eval().bfloat16().features(half.normalise(pixels)).float()  # type: ignore[attr-defined]
    assert np.array_equal(half.encode(pixels, Want()).map, theirs.numpy())


def test_other_sizes_are_refused_where_the_windows_are_fixed(made: Made) -> None:
    for id, side in (("test_maxvit", 160), ("swin_tiny_patch4_window7_224", 224)):
        encoder = load_encoder(made(f"timm:{id}"), LoadOptions())
        assert encoder.spec.fixed_size
        assert refused(lambda encoder=encoder: encoder.grid(256, 256)) == (
            f"--size 256,256: timm:{id} takes {side},{side} only; drop --size"
        )


def test_a_patch_must_fit(made: Made) -> None:
    encoder = load(made("timm:test_vit"))
    assert refused(lambda: encoder.grid(15, 160)) == (
        "--size 15,160: smaller than a patch of timm:test_vit; allowed are multiples of 16"
    )


def test_a_size_of_which_a_cnn_makes_nothing_is_refused_in_one_line(made: Made) -> None:
    encoder = load_encoder(made("torchvision:convnext_tiny"), LoadOptions())
    message = refused(lambda: encoder.grid(20, 224))
    assert message.startswith("--size 20,224: torchvision:convnext_tiny refuses it (")
    assert message.endswith("); its own is --size 224,224")
    spec = KNOWN["convnext_tiny"]
    config = EncodeConfig(
        input="in", output="out", model="torchvision:convnext_tiny", size=(20, 224), resize="crop"
    )
    assert refused(
        lambda: resolve_config(config, spec, "float32", by_patch(spec), is_plain=False)
    ) == ("--size 20,224: torchvision:convnext_tiny makes no cell of it; allowed is 32 or more")


@pytest.mark.parametrize(
    ("name", "grid"), [("resnet18", (4, 8)), ("convnext_tiny", (3, 7)), ("swin_t", (4, 7))]
)
def test_sizes_of_cnns_need_not_be_multiples_and_the_grid_is_the_models(
    name: str, grid: tuple[int, int]
) -> None:
    """ResNet rounds up at every step, ConvNeXt down, Swin first down by 4, then up."""
    spec = KNOWN[name]
    with torch.device("meta"):
        network = make_network(models.get_model(name, weights=None).eval())
    last = Ask((spec.depth - 1,))
    assert outline(network, 100, 225, last).maps[spec.depth - 1].shape[1:] == (
        spec.hidden_dim,
        *grid,
    )
    config = EncodeConfig(input="in", output="out", model=name, size=(100, 225), resize="crop")
    resolved = resolve_config(config, spec, "float32", by_patch(spec), is_plain=True)
    assert (resolved.geometry.size, resolved.geometry.grid) == ((100, 225), grid)


def test_a_plain_name_of_torchvisions_has_its_own_size() -> None:
    for id in ("resnet152", "efficientnet_b7", "vit_b_16"):
        assert resolve(id, "any") == ModelName("torchvision", id)
    spec = KNOWN["efficientnet_b7"]
    config = EncodeConfig(input="in", output="out", model="efficientnet_b7", resize="crop")
    resolved = resolve_config(config, spec, "float32", by_patch(spec), is_plain=False)
    assert resolved.map_shape == (2560, 19, 19)


def test_every_name_that_torchvision_has_for_its_default_weights_means_them(made: Made) -> None:
    path = made("torchvision:resnet18").path
    for id in KNOWN:
        architecture, tag = tag_of(id)
        default = models.get_model_weights(architecture).DEFAULT.name
        assert (id == architecture) == (tag == default)
        for more in (f"{architecture}/{default}", f"{architecture}/DEFAULT"):
            for typed in (more, f"torchvision:{more}"):
                assert resolve(typed, "any") == ModelName("torchvision", architecture)
            local = f"torchvision:{more}={path}"
            assert resolve(local, "any") == ModelName("torchvision", architecture, path)


# --- position embeddings


def test_positions_are_not_antialiased_unless_timms_own_way_is_asked(made: Made) -> None:
    """PITFALLS 4 and 30: timm antialiases; transformers does not."""
    ours, hub = (
        load_encoder(made("timm:test_vit"), LoadOptions(pos_embed=way))
        for way in ("transformers", "hub")
    )
    small, native = images(1, 96, 48), images(1, 160, 160)
    assert np.abs(hub.encode(small, Want()).map - ours.encode(small, Want()).map).max() > 1e-2
    assert np.array_equal(hub.encode(native, Want()).map, ours.encode(native, Want()).map)
    source = f"local-dir:{made('timm:test_vit').path}"
    model = timm.create_model(source, pretrained=True, dynamic_img_size=True)
    with torch.inference_mode():
        own = model.eval().forward_features(hub.normalise(small))  # type: ignore[attr-defined]
    theirs = own[:, 1:].mT.unflatten(2, (6, 3))
    assert np.array_equal(hub.encode(small, Want()).map, theirs.numpy())


def test_as_many_cells_in_another_shape_are_resampled_all_the_same(made: Made) -> None:
    """10 × 10 and 20 × 5 positions have one length."""
    encoder: Any = load(made("timm:test_vit"))
    own = encoder.network.model.pos_embed
    assert encoder._positions.at((10, 10)) is own
    assert not torch.equal(encoder._positions.at((20, 5)), own)
    (verdict,) = certify.certify(made("timm:test_vit"), [Case(320, 80, 1)])
    assert verdict.is_within


# --- weights


@pytest.mark.parametrize("container", ["safetensors", "pth"])
def test_a_file_under_timms_name_is_the_same_as_its_folder(
    made: Made, tmp_path: Path, container: str
) -> None:
    folder = Path(str(made("timm:test_resnet").path))
    tensors, file = load_file(folder / "model.safetensors"), tmp_path / f"x.{container}"
    if container == "pth":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)
    one = load_encoder(ModelName("timm", "test_resnet.r160_in1k", str(file)), LoadOptions())
    other = load_encoder(made("timm:test_resnet"), LoadOptions())
    assert one.digest == other.digest
    pixels = images(1, 64, 96)
    assert np.array_equal(one.encode(pixels, Want()).map, other.encode(pixels, Want()).map)


@pytest.mark.parametrize(
    ("name", "needed", "idle"),
    [
        ("timm:test_vit", "blocks.5.mlp.fc2.weight", "head.weight"),
        ("timm:test_efficientnet", "bn1.running_mean", "bn2.running_mean"),
        ("torchvision:resnet18", "layer4.1.bn2.running_var", "fc.weight"),
    ],
)
def test_a_lacking_tensor_is_an_error_unless_no_map_depends_on_it(
    made: Made, tmp_path: Path, name: str, needed: str, idle: str
) -> None:
    local = made(name)
    source = Path(str(local.path))
    tensors = (
        torch.load(source, weights_only=True)
        if source.is_file()
        else load_file(source / "model.safetensors")
    )
    file = tmp_path / "cut.pth"
    torch.save({key: item for key, item in tensors.items() if key != idle}, file)
    cut = replace(local, path=str(file))
    assert load(cut).digest == load(local).digest
    torch.save({key: item for key, item in tensors.items() if key != needed}, file)
    holder = "the weights lack" if name.startswith("timm") else f"{file} lacks"
    assert refused(lambda: load(cut)) == (
        f"{name}: {holder} {needed}, on which what is wanted depends; get a whole copy of the "
        "checkpoint"
    )


def test_what_only_the_pooled_vector_depends_on_may_lack_unless_it_is_wanted(
    made: Made, tmp_path: Path
) -> None:
    local = made("timm:test_convnext")
    tensors, file = load_file(Path(str(local.path)) / "model.safetensors"), tmp_path / "cut.pth"
    torch.save(
        {key: item for key, item in tensors.items() if not key.startswith("head.norm.")}, file
    )
    cut = replace(local, path=str(file))
    assert load(cut).digest == load(local).digest
    pooled = LoadOptions(want=Want(pooled=True))
    assert refused(lambda: load_encoder(cut, pooled)) == (
        "timm:test_convnext: the weights lack head.norm.bias, head.norm.weight, on which what is "
        "wanted depends; get a whole copy of the checkpoint"
    )


def test_tensors_that_the_architecture_has_not_are_an_error(made: Made, tmp_path: Path) -> None:
    tensors = load_file(Path(str(made("timm:test_vit").path)) / "model.safetensors")
    file = tmp_path / "more.safetensors"
    save_file({**tensors, "blocks.6.norm1.weight": torch.ones(64)}, file)
    assert refused(lambda: load(ModelName("timm", "test_vit", str(file)))) == (
        "timm:test_vit: the weights hold blocks.6.norm1.weight, which test_vit has not; give them "
        "under the name of their own architecture"
    )


def test_weights_of_another_size_are_never_resampled_in_silence(made: Made, tmp_path: Path) -> None:
    tensors = load_file(Path(str(made("timm:test_vit").path)) / "model.safetensors")
    file = tmp_path / "larger.safetensors"
    save_file({**tensors, "pos_embed": torch.zeros(1, 145, 64)}, file)
    assert refused(lambda: load(ModelName("timm", "test_vit", str(file)))) == (
        "timm:test_vit: the weights are of another size, positions (1, 145, 64) and not "
        "(1, 101, 64); give them under the name of their own size"
    )


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "evil.pth"
    torch.save({"x": Evil()}, file)
    for name in ("timm:test_vit", "torchvision:resnet18"):
        family, _, id = name.partition(":")
        message = refused(lambda f=family, i=id: load(ModelName(f, i, str(file))))
        assert message.startswith(f"{name}: {file} refused: not tensors alone, or broken;")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/nowhere/evil",)


def test_the_weights_of_another_torchvision_model_are_refused(made: Made) -> None:
    path = made("torchvision:resnet18").path
    message = refused(lambda: load(ModelName("torchvision", "resnet50", path)))
    assert message.startswith(f"torchvision:resnet50: {path} lacks layer1.0.bn3.bias, ")
    assert refused(lambda: load(ModelName("torchvision", "mine", path))) == (
        "torchvision:mine: a state dict does not say its architecture; give it as "
        "torchvision:resnet50=FILE, with torchvision's name of it"
    )


def test_torchvisions_cache_is_used_only_if_the_hash_is_the_names(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    name = ModelName("torchvision", "resnet18")
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    way_out = (
        f"and HF_HUB_OFFLINE closes downloads; unset it, put resnet18-f37072fd.pth from {url} into "
        f"{file.parent}, or give --model torchvision:resnet18=FILE (featprep fetch "
        "torchvision:resnet18 --to DIR, where there is a network, writes it)"
    )
    assert refused(lambda: load(name)) == f"torchvision:resnet18: {file} is not there {way_out}"
    file.parent.mkdir(parents=True)
    file.write_bytes(Path(str(made("torchvision:resnet18").path)).read_bytes())
    assert (
        refused(lambda: load(name))
        == f"torchvision:resnet18: {file} is not the published file {way_out}"
    )
    monkeypatch.setattr(
        "featprep.encoders.downloads.kept_sha256", lambda path: "f37072fd" + 56 * "0"
    )
    assert load(name).origin == "checkpoints cache"
    assert load(name).digest == load(made("torchvision:resnet18")).digest


def test_timms_hub_cache_is_used_and_what_is_missing_named(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    name = ModelName("timm", "test_vit.r160_in1k")
    files = "model.safetensors (or pytorch_model.bin)"
    assert refused(lambda: load(name)) == (
        f"timm:test_vit.r160_in1k: {tmp_path} holds nothing of "
        "timm/test_vit.r160_in1k and HF_HUB_OFFLINE closes downloads; unset it, or put config.json "
        f"and {files} of timm/test_vit.r160_in1k into a folder and give --model "
        "timm:test_vit.r160_in1k=FOLDER (featprep fetch timm:test_vit.r160_in1k --to DIR, where "
        "there is a network, writes it)"
    )
    snapshot = tmp_path / "models--timm--test_vit.r160_in1k/snapshots/abc"
    snapshot.mkdir(parents=True)
    for file in Path(str(made("timm:test_vit").path)).iterdir():
        (snapshot / file.name).symlink_to(file)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    encoder = load(name)
    assert encoder.origin == "hub cache"
    assert encoder.digest == load(made("timm:test_vit")).digest


def test_the_digest_tells_architectures_apart_and_folders_from_their_arguments(
    made: Made, tmp_path: Path
) -> None:
    folder = made("timm:test_vit")
    path = tmp_path / "copy"
    path.mkdir()
    for file in Path(str(folder.path)).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (path / "config.json").write_text(json.dumps(config))
    other = load_encoder(ModelName("timm", "copy", str(path)), LoadOptions())
    assert other.spec.mean == (0.1, 0.2, 0.3)
    assert other.digest != load_encoder(folder, LoadOptions()).digest


# --- names


@pytest.mark.parametrize(
    ("id", "message"),
    [
        (
            "resnet50x.a1",
            f"--model timm:resnet50x.a1: timm {timm.__version__} has no model resnet50x.a1; "
            "allowed is what timm.list_models() gives. Did you mean timm:resnet50?",
        ),
        (
            "resnet50.no_such",
            "--model timm:resnet50.no_such: timm does not build it (Invalid pretrained tag "
            "(no_such) for resnet50.); allowed is what timm.list_models(pretrained=True) gives",
        ),
        (
            "inception_v3.tv_in1k",
            "timm:inception_v3.tv_in1k: its 8×8 cells at 299×299 do not lie 32 pixels apart from "
            "the upper left corner, so a mask could not follow them; take another model",
        ),
    ],
)
def test_what_timm_has_not_is_refused(id: str, message: str) -> None:
    assert refused(lambda: load_encoder(resolve(f"timm:{id}", "any"), LoadOptions())) == message


def test_a_name_that_cannot_be_timms_is_refused_at_once() -> None:
    assert refused(lambda: resolve("timm:a b", "any")).startswith(
        "--model timm:a b: no such encoder; allowed is vit_tiny_patch16_224.augreg_in21k, "
    )
    assert refused(lambda: resolve("torchvision:vgg16", "any")) == (
        "--model torchvision:vgg16: no such encoder; allowed is resnet18, resnet34, resnet50 … "
        "(all 49: featprep models torchvision:), or "
        "torchvision:NAME=PATH, PATH a .pth file, under torchvision's NAME of it."
    )
    assert refused(lambda: resolve("torchvision:tiny", "any")).startswith(
        "--model torchvision:tiny: no such encoder; "
    )


def test_the_reference_of_a_vit_draws_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    from featprep.references import torchvision_models

    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}
    model = models.VisionTransformer(image_size=32, patch_size=16, **sizes)
    assert len(torchvision_models._in_transformers(model).state_dict()) == 22
    assert capsys.readouterr() == ("", "")


# --- the tables


@pytest.mark.parametrize("id", KNOWN)
def test_torchvisions_table_is_torchvisions(id: str) -> None:
    name, tag = tag_of(id)
    published, spec = models.get_model_weights(name)[tag], KNOWN[id]
    licence = published.meta.get("license", "unknown")
    assert terms_of(ModelName("torchvision", id)) == Terms(licence, is_gated=False)
    recipe = published.transforms()
    assert (recipe.resize_size, recipe.crop_size) == ([spec.recipe.resize], [spec.recipe.crop[0]])
    assert recipe.interpolation.value == spec.recipe.kernel
    assert (tuple(recipe.mean), tuple(recipe.std)) == (spec.mean, spec.std)
    assert spec.recipe.crop == spec.native_size
    assert len(published.url.rpartition("-")[2].partition(".")[0]) == 8  # its sha256 begins so
    assert ("/" in id) == (published != models.get_model_weights(name).DEFAULT)


def test_all_published_weights_of_the_five_families_are_there() -> None:
    kinds = ("resne", "wide_resnet", "efficientnet", "convnext", "vit", "swin")
    names = [name for name in models.list_models(module=models) if name.startswith(kinds)]
    assert sorted(names) == sorted(ARCHITECTURES)
    for name in names:
        tags = {member.name for member in models.get_model_weights(name)}
        assert tags == {row.tag for row in ARCHITECTURES[name].published}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torchvisions_widths_depths_and_patches_are_those_of_the_table(name: str) -> None:
    spec = KNOWN[name]
    with torch.device("meta"):
        model = models.get_model(name, weights=None)
    head = next(getattr(model, head) for head in HEADS if hasattr(model, head))
    last = head if isinstance(head, torch.nn.Linear) else head[-1]
    assert last.in_features == spec.hidden_dim
    if hasattr(model, "encoder"):
        assert (spec.patch, spec.depth) == (model.patch_size, len(model.encoder.layers))
    elif name.startswith("efficientnet"):
        assert spec.depth == len(model.features) - 1  # the stem is no stage
    else:
        assert spec.depth == 4


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if KNOWN[name].stages])
def test_torchvisions_stages_are_those_of_the_table(name: str) -> None:
    spec, layers = KNOWN[name], tuple(range(KNOWN[name].depth))
    with torch.device("meta"):
        network = make_network(models.get_model(name, weights=None).eval())
    maps = outline(network, 64, 64, Ask(layers)).maps
    assert [(64 // item.shape[2], item.shape[1]) for _, item in sorted(maps.items())] == [
        (stage.stride, stage.channels) for stage in spec.stages
    ]


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "swin_t"]
)
def test_the_unit_of_a_kind_is_measured(name: str) -> None:
    with torch.device("meta"):
        network = make_network(models.get_model(name, weights=None).eval())
    last = Ask((KNOWN[name].depth - 1,))
    assert measure_unit(network, last, 32, 96, 96) == KNOWN[name].unit


@pytest.mark.parametrize("id", TIMM)
def test_timms_table_is_timms(id: str) -> None:
    name = ModelName("timm", id)
    model = sketch_model(name, read_card(name))
    network = timm_network(name, model, swaps=False)
    assert make_spec(name, model, network, can_resize(model)) == TIMM[id]
    assert describe(name) == TIMM[id]
    assert terms_of(name) == Terms(model.pretrained_cfg["license"])
    assert timm.get_pretrained_cfg(id).hf_hub_id == f"timm/{id}"


@pytest.mark.parametrize(
    "id", ["vit_base_patch16_224.mae", "eva02_base_patch14_448.mim_in22k_ft_in1k"]
)
def test_the_recipe_is_timms_transform(id: str) -> None:
    config = timm.get_pretrained_cfg(id)
    side = config.input_size[1]
    recipe = make_recipe(ModelName("timm", id), config.to_dict(), (side, side))
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    resize, crop = timm.data.create_transform(**data).transforms[:2]
    size = resize.size if isinstance(resize.size, int) else tuple(resize.size)
    assert (recipe.resize, recipe.crop) == (size, tuple(crop.size))
    assert recipe.kernel == resize.interpolation.value


def test_what_the_map_does_not_depend_on_is_found_by_asking() -> None:
    with torch.device("meta"):
        network = make_network(models.get_model("resnet18", weights=None).eval())
    used = trace(network, 64, 64, Ask((3,))).tensors
    assert {"model.conv1.weight", "model.layer4.1.bn2.running_var"} <= used
    assert not any(key.startswith("model.fc") or "num_batches" in key for key in used)
