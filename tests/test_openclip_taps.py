"""Layers, norms, facets, value path, prefix and pooled vector of open_clip's towers.

The references are open_clip's own models, loaded and hooked its own way, and formulas over the
checkpoint's tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import open_clip_towers
import pytest
import torch
from featprep import certify
from featprep.encoders import load_encoder
from featprep.encoders.base import LoadOptions, ModelName, Want
from featprep.encoders.openclip_cards import WEIGHTS
from featprep.encoders.tiny import write_openclip
from featprep.errors import UsageError
from safetensors.torch import load_file
from torch.nn.functional import layer_norm, linear

OWN = ["vit", "clipa", "coca"]
TIMM = ["siglip", "eva", "eva02", "pe", "bare"]
CNNS = ["resnet", "convnext"]
KINDS = [*OWN, *TIMM, *CNNS]
SIZE = (48, 64)  # of images off the native size
NATIVE = {"resnet": (96, 96), "convnext": (96, 96), "relpos": (160, 160)}
Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("towers")

    def write(kind: str) -> Path:
        tower = open_clip_towers.TOWERS[f"openclip:small/{kind}"]
        return root / kind if (root / kind).exists() else write_openclip(tower, root / kind)

    return write


def load(folder: Path, **options: Any) -> Any:
    return load_encoder(ModelName("openclip", "test", str(folder)), LoadOptions(**options))


def pair(folder: Path, kind: str) -> tuple[Any, Any, Any]:
    """(our encoder, open_clip's model, pixels): at a non-square size, where open_clip has one."""
    if kind in NATIVE:
        model = open_clip.create_model(f"local-dir:{folder}")
        size = NATIVE[kind]
    else:
        model = open_clip.create_model(f"local-dir:{folder}", force_image_size=SIZE)
        size = SIZE
    return load(folder, pos_embed="hub"), model.eval(), certify.generate_images(2, *size)


def blocks_of(visual: Any) -> Any:
    if hasattr(visual, "attnpool"):
        return [visual.layer1, visual.layer2, visual.layer3, visual.layer4]
    if not hasattr(visual, "trunk"):
        return visual.transformer.resblocks
    return getattr(visual.trunk, "blocks", None) or visual.trunk.stages


def hear(encoder: Any, model: Any, pixels: Any, *modules: Any) -> list[torch.Tensor]:
    """What these modules of open_clip's model gave in encode_image."""
    heard: dict[int, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, out, at=at: heard.__setitem__(at, out))
        for at, module in enumerate(modules)
    ]
    with torch.inference_mode():
        model.encode_image(encoder.normalise(pixels))
    for handle in handles:
        handle.remove()
    return [heard[at] for at in range(len(modules))]


def taken_tokens(encoder: Any, pixels: Any, **want: Any) -> torch.Tensor:
    """Prefix, if there is one, and cells of one layer, (B, tokens, C)."""
    has_prefix = bool(encoder.spec.cls + encoder.spec.registers)
    taken = encoder.encode(pixels, Want(prefix=has_prefix, **want))
    cells = torch.from_numpy(taken.map).flatten(2).mT
    return torch.cat((torch.from_numpy(taken.prefix), cells), 1) if has_prefix else cells


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / WEIGHTS[0])
    return {key.removeprefix("visual."): item for key, item in tensors.items()}


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-5)
    assert ours.std() > 0.01


# --- the certificate


@pytest.mark.parametrize("kind", ["coca", "eva", "eva02", "bare", "resnet", "relpos"])
def test_every_kind_of_feature_is_certified_against_open_clip(kind: str, folder: Folders) -> None:
    verdicts = certify.certify(ModelName("openclip", "test", str(folder(kind))))
    assert [verdict for verdict in verdicts if not verdict.is_within] == []
    asked = {verdict.case.text(verdict.part).partition(" ")[0] for verdict in verdicts}
    assert "pooled" in asked
    assert ({"query@0", "key@1"} <= asked) == (kind not in ("resnet", "relpos"))
    assert ("value" in asked) == (kind not in ("coca", "relpos"))


# --- layers, prefix, norms


@pytest.mark.parametrize("kind", [*OWN, *TIMM])
def test_every_layer_is_a_block_of_open_clips_own_model_with_its_prefix(
    kind: str, folder: Folders
) -> None:
    encoder, model, pixels = pair(folder(kind), kind)
    heard = hear(encoder, model, pixels, *blocks_of(model.visual))
    assert encoder.spec.cls == (kind not in ("siglip", "bare"))
    for layer, expected in enumerate(heard):
        close(taken_tokens(encoder, pixels, layers=(layer,), norm="none"), expected)
    assert (heard[0] - heard[1]).abs().mean() > 0.05


@pytest.mark.parametrize("kind", ["vit", "clipa", *TIMM])
def test_the_final_norm_can_be_put_on_every_layer(kind: str, folder: Folders) -> None:
    encoder, model, pixels = pair(folder(kind), kind)
    tensors = tensors_of(folder(kind))
    name = "trunk.fc_norm" if kind == "bare" else "trunk.norm" if kind in TIMM else "ln_post"
    gain, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    heard = hear(encoder, model, pixels, *blocks_of(model.visual))
    for layer, block in enumerate(heard):
        ours = taken_tokens(encoder, pixels, layers=(layer,), norm="final")
        close(ours, layer_norm(block, (64,), gain, bias, 1e-6 if kind in TIMM else 1e-5))
    auto = taken_tokens(encoder, pixels)
    own = "final" if kind in ("siglip", "pe") else "none"
    assert torch.equal(auto, taken_tokens(encoder, pixels, norm=own))


@pytest.mark.parametrize("kind", KINDS)
def test_several_layers_come_from_one_pass_in_the_order_asked(kind: str, folder: Folders) -> None:
    encoder, pixels = load(folder(kind)), certify.generate_images(2, 96, 64)
    ran: list[int] = []
    blocks = encoder.tower.blocks
    handles = [
        block.register_forward_hook(lambda *_, at=at: ran.append(at))
        for at, block in enumerate(blocks)
    ]
    taken = encoder.encode(pixels, Want(layers=(1, 0))).maps
    assert (list(taken), ran) == ([1, 0], [0, 1])  # nothing beyond what is wanted is run
    for handle in handles:
        handle.remove()
    for layer, ours in taken.items():
        assert np.array_equal(ours, encoder.encode(pixels, Want(layers=(layer,))).map)


# --- facets and the value path


def attention_input(kind: str, encoder: Any, model: Any, pixels: Any, layer: int) -> torch.Tensor:
    block = blocks_of(model.visual)[layer]
    return hear(encoder, model, pixels, block.ln_1 if kind in OWN else block.norm1)[0]


def projections(kind: str, tensors: dict[str, torch.Tensor], layer: int) -> Any:
    """(weight, bias) of query, key and value, by the names in the checkpoint."""
    if kind in OWN:
        name = f"transformer.resblocks.{layer}.attn.in_proj"
        weight, bias = tensors[f"{name}_weight"], tensors[f"{name}_bias"]
        return list(zip(weight.chunk(3), bias.chunk(3), strict=True))
    name = f"trunk.blocks.{layer}.attn"
    if kind == "eva02":
        return [
            (tensors[f"{name}.{part}_proj.weight"], tensors.get(f"{name}.{part}_proj.bias"))
            for part in "qkv"
        ]
    weight = tensors[f"{name}.qkv.weight"].chunk(3)
    if kind == "eva":
        biases = [tensors[f"{name}.q_bias"], torch.zeros(64), tensors[f"{name}.v_bias"]]
    else:
        biases = list(tensors[f"{name}.qkv.bias"].chunk(3))
    return list(zip(weight, biases, strict=True))


@pytest.mark.parametrize("kind", [*OWN, *TIMM])
def test_a_facet_is_a_projection_of_what_the_attention_is_given(kind: str, folder: Folders) -> None:
    """Before rotation and scaling, heads side by side."""
    encoder, model, pixels = pair(folder(kind), kind)
    tensors = tensors_of(folder(kind))
    for layer in (0, 1):
        given = attention_input(kind, encoder, model, pixels, layer)
        rows = projections(kind, tensors, layer)
        for facet, (weight, bias) in zip(("query", "key", "value"), rows, strict=True):
            ours = taken_tokens(encoder, pixels, layers=(layer,), facet=facet)
            close(ours, linear(given, weight, bias))


def test_value_of_open_clips_own_vit_is_f3rms_formula(folder: Folders) -> None:
    encoder, model, pixels = pair(folder("vit"), "vit")
    tensors = tensors_of(folder("vit"))
    given = attention_input("vit", encoder, model, pixels, 1)
    value = linear(given, *projections("vit", tensors, 1)[2])
    out = "transformer.resblocks.1.attn.out_proj"
    moved = linear(value, tensors[f"{out}.weight"], tensors[f"{out}.bias"])
    normed = layer_norm(moved, (64,), tensors["ln_post.weight"], tensors["ln_post.bias"])
    close(taken_tokens(encoder, pixels, feature="value"), normed @ tensors["proj"])


@pytest.mark.parametrize("kind", ["eva", "eva02", "bare"])
def test_value_of_timms_vits_is_their_attention_where_every_token_sees_itself_alone(
    kind: str, folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, model, pixels = pair(folder(kind), kind)
    trunk, functional = model.visual.trunk, torch.nn.functional
    attend, is_last = functional.scaled_dot_product_attention, [False]
    trunk.blocks[0].register_forward_pre_hook(lambda *_: is_last.__setitem__(0, False))
    trunk.blocks[1].register_forward_pre_hook(lambda *_: is_last.__setitem__(0, True))

    def identity(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> torch.Tensor:
        return value if is_last[0] else attend(query, key, value, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", identity)
        moved = hear(encoder, model, pixels, trunk.blocks[1].attn)[0]
    with torch.inference_mode():
        expected = model.visual.head(trunk.head(trunk.fc_norm(trunk.norm(moved))))
    close(taken_tokens(encoder, pixels, feature="value"), expected)
    projected = taken_tokens(encoder, pixels, feature="projected")
    assert (projected - expected).abs().mean() > 0.05


# --- pooled


@pytest.mark.parametrize("kind", [*KINDS, "relpos"])
def test_pooled_is_what_encode_image_gives(kind: str, folder: Folders) -> None:
    encoder, model, pixels = pair(folder(kind), kind)
    with torch.inference_mode():
        image = model.encode_image(encoder.normalise(pixels))
    taken = encoder.encode(pixels, Want(pooled=True))
    close(torch.from_numpy(taken.pooled), image[0] if kind == "coca" else image)
    np.testing.assert_allclose(taken.map, encoder.encode(pixels, Want()).map, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "eva", "eva02"])
def test_the_prefix_is_projected_as_the_cells_are(kind: str, folder: Folders) -> None:
    """So CLS is the image embedding, where the head takes it."""
    encoder, pixels = load(folder(kind)), certify.generate_images(2, *SIZE)
    taken = encoder.encode(pixels, Want(feature="projected", prefix=True, pooled=True))
    np.testing.assert_allclose(taken.prefix[:, 0], taken.pooled, rtol=0, atol=1e-5)


# --- CNNs


@pytest.mark.parametrize("kind", CNNS)
def test_a_layer_of_a_cnn_is_a_stage_with_its_own_grid(kind: str, folder: Folders) -> None:
    encoder, model, pixels = pair(folder(kind), kind)
    heard = hear(encoder, model, pixels, *blocks_of(model.visual))
    for layer, expected in enumerate(heard):
        ours = encoder.encode(pixels, Want(layers=(layer,))).map
        stage = encoder.spec.stages[layer]
        side = 96 // stage.stride
        assert ours.shape == (2, stage.channels, side, side)
        assert encoder.grid(96, 64, layer) == (side, 64 // stage.stride)
        close(torch.from_numpy(ours), expected)
    assert [stage.stride for stage in encoder.spec.stages] == [4, 8, 16, 32]


def test_the_norm_of_a_convnext_is_its_heads_over_channels(folder: Folders) -> None:
    encoder, model, pixels = pair(folder("convnext"), "convnext")
    (stage,) = hear(encoder, model, pixels, blocks_of(model.visual)[-1])
    tensors = tensors_of(folder("convnext"))
    gain, bias = (tensors[f"trunk.head.norm.{part}"] for part in ("weight", "bias"))
    expected = layer_norm(stage.movedim(1, -1), gain.shape, gain, bias, 1e-6).movedim(-1, 1)
    close(torch.from_numpy(encoder.encode(pixels, Want(norm="final")).map), expected)


def test_value_of_a_resnet_is_its_attention_poolings_value_path(folder: Folders) -> None:
    encoder, model, pixels = pair(folder("resnet"), "resnet")
    (stage,) = hear(encoder, model, pixels, model.visual.layer4)
    tensors = tensors_of(folder("resnet"))
    cells = stage.flatten(2).mT
    for name in ("attnpool.v_proj", "attnpool.c_proj"):
        cells = linear(cells, tensors[f"{name}.weight"], tensors[f"{name}.bias"])
    for feature in ("value", "projected"):
        close(taken_tokens(encoder, pixels, feature=feature), cells)


# --- what is lacking


@pytest.mark.parametrize(
    ("kind", "want", "message"),
    [
        ("siglip", {"prefix": True}, "--prefix: openclip:test has no CLS or register tokens; "
         "there is --pooled or --masked_pool"),
        ("siglip", {"feature": "value"}, "--feature value: openclip:test has no value path to a "
         "projection; allowed is --feature patch"),
        ("convnext", {"feature": "value"}, "--feature value: openclip:test has no value path to a "
         "projection; allowed is --feature patch or projected"),
        ("convnext", {"facet": "key"}, "--facet key: openclip:test has no attention that gives "
         "one; allowed is --facet token"),
        ("resnet", {"norm": "final"}, "--norm final: openclip:test has no other map of it; allowed "
         "is --norm auto or none"),
        ("coca", {"norm": "final"}, "--norm final: openclip:test has no other map of it; allowed "
         "is --norm auto or none"),
        ("relpos", {"layers": (0,)}, "--layer 0: of openclip:test, allowed is -1 (or 8), the last "
         "block"),
        ("relpos", {"facet": "key"}, "--facet key: openclip:test has no attention that gives one; "
         "allowed is --facet token"),
        ("vit", {"layers": (2,)}, "--layer 2: openclip:test has 2 blocks; allowed are 0 to 1, or "
         "-1 (the last) to -2"),
    ],
)  # fmt: skip
def test_what_a_tower_lacks_is_refused_with_what_there_is(
    kind: str, want: dict[str, Any], message: str, folder: Folders
) -> None:
    with pytest.raises(UsageError) as refusal:
        load(folder(kind), want=Want(**want))
    assert str(refusal.value) == message
