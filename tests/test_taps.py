"""Layers, norms, facets, value path, prefix and pooled vector, against upstream's own modules.

The references here hook upstream's parts by their names, or ask for hidden states; ours do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from featprep import certify
from featprep.encoders import load_encoder
from featprep.encoders.base import LoadOptions, ModelName, Want
from featprep.encoders.openai_clip import model_room
from featprep.encoders.taps import find_attention
from featprep.encoders.tiny import write_folder, write_tiny
from test_huggingface import KINDS, PROJECTING, SMALL

VITS = [kind for kind in KINDS if kind != "dinov3 convnext"]
POOLED = [kind for kind in KINDS if kind != "vit classifier"]
EVERYTHING = Want(layers=(-1, 0), prefix=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("taps")
    return {kind: write_folder(files, root / kind) for kind, files in SMALL.items()}


@pytest.fixture(scope="module")
def clip_encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = write_tiny("clip", tmp_path_factory.mktemp("clip"))
    return load_encoder(ModelName("clip", "test", str(file)), LoadOptions())


def load(folder: Path, **options: Any) -> Any:
    return load_encoder(ModelName("hf", "test", str(folder)), LoadOptions(**options))


def images(count: int = 2, height: int = 48, width: int = 80) -> np.ndarray[Any, Any]:
    return certify.generate_images(count, height, width)


def tokens_of(maps: Any, layer: int) -> torch.Tensor:
    """prefix and cells of a layer together, (B, tokens, C)."""
    cells = torch.from_numpy(maps.maps[layer]).flatten(2).mT
    return torch.cat((torch.from_numpy(maps.prefix), cells), dim=1)


def hear(module: Any, run: Any) -> torch.Tensor:
    """What a module gave in a forward pass."""
    heard: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda _m, _i, out: heard.append(out))
    with torch.inference_mode():
        run()
    handle.remove()
    return heard[-1][0] if isinstance(heard[-1], tuple) else heard[-1]


def forward(encoder: Any, pixels: Any, **more: Any) -> Any:
    with torch.inference_mode():
        return encoder.model(encoder.normalise(pixels), **encoder._flags, **more)


def part(encoder: Any, *names: str, block: int) -> Any:
    """The module of a block whose name ends in one of these."""
    (found,) = [
        module
        for name, module in encoder.blocks[block].named_modules()
        if name.endswith(tuple(f".{ending}" for ending in names))
    ]
    return found


# --- transformers


@pytest.mark.parametrize("kind", VITS)
def test_every_layer_is_a_hidden_state_and_the_last_is_normed_as_its_family_has_it(
    kind: str, folders: dict[str, Path]
) -> None:
    encoder, pixels = load(folders[kind]), images()
    if not encoder.prefix:
        wanted = Want(layers=(1, 0))
        maps = encoder.encode(pixels, wanted).maps
        ours = {layer: torch.from_numpy(item).flatten(2).mT for layer, item in maps.items()}
    else:
        taken = encoder.encode(pixels, Want(layers=(1,), prefix=True))
        first = encoder.encode(pixels, Want(layers=(0,), prefix=True))
        ours = {1: tokens_of(taken, 1), 0: tokens_of(first, 0)}
    out = forward(encoder, pixels, output_hidden_states=True)
    assert torch.equal(ours[0], out.hidden_states[1])
    assert torch.equal(ours[1], out.last_hidden_state)
    assert (ours[1] - ours[0]).abs().mean() > 0.05


@pytest.mark.parametrize("kind", VITS)
def test_the_norm_is_put_on_or_left_off_any_layer(kind: str, folders: dict[str, Path]) -> None:
    encoder, pixels = load(folders[kind]), images(1)
    out = forward(encoder, pixels, output_hidden_states=True)
    norms = [getattr(encoder.model, name, None) for name in ("layernorm", "norm", "post_layernorm")]
    norm = next(item for item in norms if item is not None)
    cells = -encoder.grid(48, 80)[0] * encoder.grid(48, 80)[1]
    for layer in (0, 1):
        bare = encoder.encode(pixels, Want(layers=(layer,), norm="none")).map
        normed = encoder.encode(pixels, Want(layers=(layer,), norm="final")).map
        block = hear(encoder.blocks[layer], lambda: forward(encoder, pixels))
        with torch.inference_mode():
            expected = norm(block)[:, cells:]
        assert torch.equal(torch.from_numpy(bare).flatten(2).mT, block[:, cells:])
        assert torch.equal(torch.from_numpy(normed).flatten(2).mT, expected)
    assert torch.equal(out.hidden_states[1][:, cells:], hear(
        encoder.blocks[0], lambda: forward(encoder, pixels))[:, cells:])  # fmt: skip


@pytest.mark.parametrize("kind", VITS)
@pytest.mark.parametrize("facet", ["query", "key", "value"])
def test_a_facet_is_what_the_attentions_own_linear_layer_gives(
    kind: str, facet: str, folders: dict[str, Path]
) -> None:
    encoder, pixels = load(folders[kind]), images()
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    for layer in (0, 1):
        if kind.startswith("blip"):
            fused = hear(part(encoder, "qkv", block=layer), lambda: forward(encoder, pixels))
            expected = fused.chunk(3, dim=-1)[list(names).index(facet)]
        else:
            linear = part(encoder, names[facet], facet, block=layer)
            expected = hear(linear, lambda: forward(encoder, pixels))
        ours = encoder.encode(pixels, Want(layers=(layer,), facet=facet)).map  # type: ignore[arg-type]
        rows, columns = encoder.grid(48, 80)
        cells = expected[:, -rows * columns :]
        torch.testing.assert_close(torch.from_numpy(ours).flatten(2).mT, cells, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", PROJECTING)
def test_value_is_the_value_path_of_the_last_block_normed_and_projected(
    kind: str, folders: dict[str, Path]
) -> None:
    """F3RM's reading of MaskCLIP: out_proj(v_proj(ln_1(x))), no residual, no MLP."""
    encoder, pixels = load(folders[kind], want=Want(feature="value")), images()
    attention = encoder.blocks[1].self_attn
    given = hear(encoder.blocks[1].layer_norm1, lambda: forward(encoder, pixels))
    with torch.inference_mode():
        if kind == "blip":
            value = attention.projection(attention.qkv(given).chunk(3, dim=-1)[2])
        else:
            value = attention.out_proj(attention.v_proj(given))
        expected = encoder.projection(encoder.model.post_layernorm(value))[:, 1:]
    ours = torch.from_numpy(encoder.encode(pixels, Want(feature="value")).map).flatten(2).mT
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    projected = encoder.encode(pixels, Want(feature="projected")).map
    assert np.abs(projected - ours.mT.reshape(projected.shape).numpy()).mean() > 0.01


@pytest.mark.parametrize("kind", POOLED)
def test_pooled_is_the_image_embedding_or_the_pooler_output(
    kind: str, folders: dict[str, Path]
) -> None:
    """Of transformers' whole class, loaded its own way."""
    import transformers

    library: Any = transformers
    encoder, pixels = load(folders[kind], want=Want(pooled=True)), images()
    ours = torch.from_numpy(encoder.encode(pixels, Want(pooled=True)).pooled)
    config = library.AutoConfig.from_pretrained(folders[kind])
    whole = getattr(library, config.architectures[0]).from_pretrained(folders[kind]).eval()
    with torch.inference_mode():
        normal = encoder.normalise(pixels)
        if kind in ("clip", "altclip"):
            out = whole.get_image_features(normal, **encoder._flags)
            expected = getattr(out, "pooler_output", out)
        elif kind == "blip":
            states = whole.vision_model(normal, **encoder._flags).last_hidden_state
            expected = whole.vision_proj(states[:, 0])
        else:
            expected = getattr(whole, "vision_model", whole)(normal, **encoder._flags).pooler_output
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert ours.std() > 0.01


def test_a_classifiers_file_has_no_pooler_and_says_so(folders: dict[str, Path]) -> None:
    """PITFALLS 27: transformers would draw it at random."""
    from featprep.errors import UsageError

    with pytest.raises(UsageError) as refusal:
        load(folders["vit classifier"], want=Want(pooled=True))
    assert (
        str(refusal.value)
        == "--pooled: hf:test has no pooled vector; there is --prefix or --masked_pool"
    )


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_convnexts_layers_are_its_stages_with_their_own_grids(
    layer: int, folders: dict[str, Path]
) -> None:
    encoder, pixels = load(folders["dinov3 convnext"]), images(2, 64, 96)
    taken = encoder.encode(pixels, Want(layers=(layer,), prefix=True))
    stage = hear(encoder.model.model.stages[layer], lambda: forward(encoder, pixels))
    side = 4 * 2**layer
    assert taken.map.shape == (2, (16, 24, 32, 64)[layer], 64 // side, 96 // side)
    assert encoder.grid(64, 96, layer) == (64 // side, 96 // side)
    if layer == 3:
        expected = forward(encoder, pixels).last_hidden_state
        torch.testing.assert_close(tokens_of(taken, 3), expected, rtol=0, atol=1e-5)
    else:
        assert np.array_equal(taken.map, stage.numpy())
        mean = stage.mean((2, 3))[:, None]
        torch.testing.assert_close(torch.from_numpy(taken.prefix), mean, rtol=0, atol=1e-5)


def test_several_layers_come_from_one_forward_pass_in_the_order_asked(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, pixels = load(folders["dinov3"]), images()
    singles = [encoder.encode(pixels, Want(layers=(layer,))).map for layer in (1, 0)]
    calls: list[int] = []
    run = encoder._run
    monkeypatch.setattr(encoder, "_run", lambda pixels: (calls.append(1), run(pixels))[1])
    taken = encoder.encode(pixels, EVERYTHING)
    assert (list(taken.maps), len(calls)) == ([1, 0], 1)
    for ours, single in zip(taken.maps.values(), singles, strict=True):
        assert np.array_equal(ours, single)
    assert taken.prefix.shape == (2, 5, 64)  # CLS, then four registers, of the first layer listed
    assert np.array_equal(taken.prefix, forward(encoder, pixels).last_hidden_state[:, :5].numpy())


# --- clip


def clip_forward(encoder: Any, pixels: Any) -> torch.Tensor:
    with torch.inference_mode():
        return encoder._run(encoder.normalise(pixels))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_of_clip_is_its_residual_block(clip_encoder: Any, layer: int) -> None:
    pixels = images(2, 42, 70)
    taken = clip_encoder.encode(pixels, Want(layers=(layer,), prefix=True))
    block = clip_encoder.visual.transformer.resblocks[layer]
    heard = hear(block, lambda: clip_forward(clip_encoder, pixels)).transpose(0, 1)
    assert torch.equal(tokens_of(taken, layer), heard)
    normed = clip_encoder.encode(pixels, Want(layers=(layer,), norm="final")).map
    with torch.inference_mode():
        expected = clip_encoder.visual.ln_post(heard)[:, 1:]
    assert torch.equal(torch.from_numpy(normed).flatten(2).mT, expected)


@pytest.mark.parametrize("facet", ["query", "key", "value"])
def test_a_facet_of_clip_is_a_third_of_its_in_projection(clip_encoder: Any, facet: str) -> None:
    pixels, block = images(2, 42, 70), clip_encoder.visual.transformer.resblocks[1]
    given = hear(block.ln_1, lambda: clip_forward(clip_encoder, pixels))
    place = ("query", "key", "value").index(facet)
    rows = slice(64 * place, 64 * (place + 1))
    attention = block.attn
    expected = given @ attention.in_proj_weight[rows].T + attention.in_proj_bias[rows]
    ours = clip_encoder.encode(pixels, Want(layers=(1,), facet=facet)).map  # type: ignore[arg-type]
    expected = expected.transpose(0, 1)[:, 1:]
    torch.testing.assert_close(torch.from_numpy(ours).flatten(2).mT, expected, rtol=0, atol=1e-5)


def test_value_of_clip_is_f3rms_formula(clip_encoder: Any) -> None:
    pixels, visual = images(2, 42, 70), clip_encoder.visual
    block = visual.transformer.resblocks[-1]
    given = hear(block.ln_1, lambda: clip_forward(clip_encoder, pixels))
    with torch.inference_mode():
        value = given @ block.attn.in_proj_weight[-64:].T + block.attn.in_proj_bias[-64:]
        expected = visual.ln_post(block.attn.out_proj(value).transpose(0, 1))[:, 1:] @ visual.proj
    ours = clip_encoder.encode(pixels, Want(feature="value")).map
    torch.testing.assert_close(torch.from_numpy(ours).flatten(2).mT, expected, rtol=0, atol=1e-5)


def test_pooled_of_clip_is_what_encode_image_gives(tmp_path: Path, clip_encoder: Any) -> None:
    file = write_tiny("clip", tmp_path)
    tensors = torch.load(file, weights_only=True)
    model = model_room().build_model(dict(tensors)).float()
    model.load_state_dict({key: item.float() for key, item in tensors.items()})
    pixels = images(2, 224, 224)
    ours = clip_encoder.encode(pixels, Want(feature="projected", prefix=True, pooled=True))
    with torch.inference_mode():
        expected = model.encode_image(clip_encoder.normalise(pixels))
    torch.testing.assert_close(torch.from_numpy(ours.pooled), expected, rtol=0, atol=1e-5)
    # The prefix is projected as the cells are, so CLS is the image embedding.
    np.testing.assert_allclose(ours.prefix[:, 0], ours.pooled, atol=1e-5)


def test_a_block_without_attention_is_told_by_its_class() -> None:
    with pytest.raises(ValueError, match=r"^Sequential has no attention that is known$"):
        find_attention(torch.nn.Sequential(torch.nn.Linear(2, 2)))
