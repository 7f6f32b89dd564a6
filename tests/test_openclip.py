"""open_clip's names, tags and checkpoints: what is read, what is corrected, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import open_clip_towers
import pytest
import torch
from featprep import certify, cli
from featprep.encoders import ALIASES, describe, list_encoders, load_encoder, resolve
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName, Recipe, Want
from featprep.encoders.openclip_cards import (
    CONFIG,
    KNOWN,
    WEIGHTS,
    Card,
    card_of,
    make_spec,
    shape_of,
)
from featprep.encoders.openclip_files import tags
from featprep.encoders.openclip_towers import make_tower, module_shape
from featprep.encoders.positions import resample
from featprep.encoders.taps import has_attention
from featprep.encoders.tiny import TINY, write_openclip, write_random, write_tiny
from featprep.errors import UsageError, WeightsError
from safetensors.torch import load_file, save_file

OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SCRIPT = "clip"
VIT = open_clip_towers.TOWERS["openclip:small/vit"]


def spec(id: str) -> EncoderSpec:
    found = KNOWN[id]
    assert found is not None
    return found


def load(path: Path, id: str = "test", **options: Any) -> Any:
    return load_encoder(ModelName("openclip", id, str(path)), LoadOptions(**options))


def refusal(path: Path, id: str = "test", **options: Any) -> str:
    with pytest.raises((UsageError, WeightsError)) as caught:
        load(path, id, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(file: Path, edit: Any) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


@pytest.fixture(scope="module")
def vit_b32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve narrow blocks cannot be ViT-B-32; these are whole ones, of open_clip's own making."""
    folder = tmp_path_factory.mktemp("b32")
    return write_random("openclip:ViT-B-32/openai", folder)


# --- names and what is said of them


def test_the_table_is_open_clips_own() -> None:
    assert tags() == open_clip.pretrained._PRETRAINED
    assert set(KNOWN) == {f"{arch}/{tag}" for arch, tag in open_clip.list_pretrained()}
    assert len(KNOWN) >= 196
    assert [name for name in KNOWN if KNOWN[name] is None] == []


def test_what_a_tag_says_of_pixels_is_what_open_clip_would_do() -> None:
    for id, found in KNOWN.items():
        said = open_clip.get_pretrained_cfg(*id.split("/"))
        assert found is not None
        size = found.native_size
        squash = said["resize_mode"] == "squash"
        recipe = Recipe(size if squash else size[0], size, said["interpolation"])
        assert (found.mean, found.std, found.recipe) == (said["mean"], said["std"], recipe), id


def test_the_published_dimensions() -> None:
    rows = {
        "ViT-H-14/laion2b_s32b_b79k": (1280, 32, 14, 224, 1024, *OPENAI, 224, "none"),
        "ViT-L-14/laion2b_s32b_b82k": (1024, 24, 14, 224, 768, *HALF, 224, "none"),
        "RN50x4/openai": (2560, 4, 32, 288, 640, *OPENAI, 288, "none"),
        "convnext_large_d_320/laion2b_s29b_b131k_ft_soup":
            (1536, 4, 32, 320, 768, *OPENAI, 320, "none"),
        "ViT-B-16-SigLIP2-512/webli": (768, 12, 16, 512, None, *HALF, (512, 512), "final"),
        "ViT-SO400M-14-SigLIP-384/webli": (1152, 27, 14, 384, None, *HALF, (384, 384), "final"),
        "coca_ViT-L-14/laion2b_s13b_b90k": (1024, 24, 14, 224, None, *OPENAI, 224, "none"),
        "ViT-H-14-378/dfn5b": (1280, 32, 14, 378, 1024, *OPENAI, (378, 378), "none"),
        "ViTamin-XL-384/datacomp1b": (1152, 32, 16, 384, 1152, *OPENAI, 384, "none"),
    }  # fmt: skip
    for id, row in rows.items():
        s = spec(id)
        assert row == (
            s.hidden_dim, s.depth, s.patch, s.native_size[0], s.projected_dim, s.mean, s.std,
            s.recipe.resize, "final" if s.final_norm else "none",
        ), id  # fmt: skip


def test_shapes_said_without_torch_are_those_of_the_modules() -> None:
    """One architecture of every row of the table; fastvit takes seconds to build, so one of it."""
    seen: set[tuple[object, ...]] = set()
    for arch in tags():
        card = card_of(ModelName("openclip", arch))
        shape = shape_of(card)
        assert shape is not None
        key = (shape.width, shape.depth, shape.patch, (card.trunk or "")[:12])
        if key in seen or ("fastvit" in (card.trunk or "") and "S0" not in arch):
            continue
        seen.add(key)
        with torch.device("meta"):
            model = open_clip.CLIP(
                embed_dim=card.config["embed_dim"],
                vision_cfg={**card.vision, "timm_model_pretrained": False},
                text_cfg={"width": 8, "heads": 1, "layers": 1, "vocab_size": 1},
            )
        assert module_shape(model.visual) == shape, arch
        name = ModelName("openclip", arch)
        tower = make_tower(model.visual, model.visual, "transformers")
        assert make_spec(name, card, shape).has_facets == all(map(has_attention, tower.blocks))
    assert len(seen) > 25


@pytest.mark.parametrize(
    ("id", "quick_gelu"),
    [
        ("ViT-B-32/openai", True),  # its architecture alone says GELU: PITFALLS 12, 29
        ("ViT-B-32-quickgelu/openai", True),
        ("ViT-B-32/laion2b_s34b_b79k", False),
        ("ViT-H-14/dfn5b", True),
        ("roberta-ViT-B-32/laion2b_s12b_b32k", True),  # its tag is silent, its architecture not
        ("ViT-B-32", None),
        ("ViT-B-32-quickgelu", True),
    ],
)
def test_the_activation_comes_from_the_tag(id: str, quick_gelu: bool | None) -> None:
    assert card_of(ModelName("openclip", id)).quick_gelu is quick_gelu


def test_without_a_tag_preprocessing_is_what_all_tags_share_or_the_default() -> None:
    siglip = card_of(ModelName("openclip", "ViT-B-16-SigLIP")).preprocess
    assert (siglip["mean"], siglip["resize_mode"]) == (HALF[0], "squash")
    mixed = card_of(ModelName("openclip", "ViT-L-14")).preprocess  # one of its tags has 0.5
    assert (mixed["mean"], mixed["std"]) == OPENAI


def test_aliases_of_the_integration_guide_mean_what_they_say() -> None:
    for alias, name in ALIASES.items():
        for family in ("any", SCRIPT):
            assert str(resolve(alias, family)) == name
            assert not resolve(alias, family).is_plain
    assert str(resolve("open_clip_vit_l14_laion2b", "any")) == (
        "openclip:ViT-L-14/laion2b_s32b_b82k"
    )


def test_an_alias_may_bear_weights_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "a=b.pt"
    path.touch()
    for family in ("any", SCRIPT):
        name = resolve(f"openai_clip_vit_b32={path}", family)
        assert name == ModelName("clip", "ViT-B/32", str(path))


def test_the_clip_command_takes_both_families_and_its_own_first() -> None:
    assert resolve("tiny", SCRIPT).family == "clip"
    assert resolve("ViT-L/14", SCRIPT) == ModelName("clip", "ViT-L/14", is_plain=True)
    tag = "ViT-H-14/laion2b_s32b_b79k"
    assert resolve(tag, SCRIPT) == ModelName("openclip", tag, is_plain=True)
    assert resolve(f"openclip:{tag}", SCRIPT) == ModelName("openclip", tag)
    with pytest.raises(UsageError) as caught:
        resolve("hf:facebook/dinov2-base", SCRIPT)
    assert str(caught.value).startswith(
        "--model hf:facebook/dinov2-base: this command takes clip: and openclip: encoders; allowed"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "openclip:ViT-H-14/laion2b",
            f"--model openclip:ViT-H-14/laion2b: no such encoder; allowed is "
            f"RN50/openai, RN50/yfcc15m, RN50/cc12m … tiny (all {len(KNOWN) + 1}: featprep models "
            "openclip:), openclip:hf-hub:ORG/NAME of the hub, or "
            "openclip:NAME=PATH, PATH a checkpoint, or a folder with open_clip_config.json; NAME "
            "is ARCH/TAG or ARCH. Did you mean openclip:ViT-H-14/laion2b_s32b_b79k?",
        ),
        ("openclip:x=/nowhere", "--model openclip:x=/nowhere: no such path; allowed is "
         "openclip:NAME=PATH, PATH a checkpoint, or a folder with open_clip_config.json; NAME is "
         "ARCH/TAG or ARCH"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_in_one_line(value: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(value, "any")
    assert str(caught.value) == message


def test_an_id_of_the_hub_needs_its_prefix() -> None:
    name = resolve("openclip:hf-hub:laion/CLIP-x", "any")
    assert name == ModelName("openclip", "hf-hub:laion/CLIP-x")
    assert describe(name) is None  # nothing of it is in the cache
    with pytest.raises(UsageError, match="no such encoder"):
        resolve("openclip:laion/CLIP-x", "any")


def test_describing_loads_no_torch_and_no_open_clip(vit_b32: Path) -> None:
    program = (
        "import sys\n"
        "from featprep.encoders import describe, list_encoders, resolve\n"
        "all(describe(resolve(name, 'any')) for name in list_encoders())\n"
        "print(describe(resolve(f'openclip:x={sys.argv[1]}', 'any')).hidden_dim)\n"
        "print(sorted({'torch', 'open_clip', 'timm'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(vit_b32)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "768\n[]\n"


def test_models_shows_one_tag_of_each_architecture_unless_asked(capsys: Any) -> None:
    assert cli.main(["models"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) < len(list_encoders()) - 60
    (row,) = [row for row in rows if row.startswith("openclip:ViT-B-16/")]
    count = len(tags()["ViT-B-16"])
    assert (
        row.split()
        == (
            "openclip:ViT-B-16/openai 768 16 224×224 512 yes unknown unknown "
            f"1 of {count} tags: featprep models openclip:ViT-B-16/"
        ).split()
    )
    assert cli.main(["models", "openclip:ViT-B-16/"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + count


# --- checkpoints


def test_one_set_of_weights_has_one_digest_in_every_container(
    vit_b32: Path, tmp_path: Path
) -> None:
    """A folder, a file named by its tag, and what open_clip's training saves."""
    tensors = load_file(vit_b32 / WEIGHTS[0])
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tensors.items()}},
               tmp_path / "epoch_3.pt")  # fmt: skip
    digest = load(vit_b32).digest
    tagged = load(vit_b32 / WEIGHTS[0], "ViT-B-32/openai")
    assert tagged.digest == digest
    assert tagged.spec == spec("ViT-B-32/openai")
    assert load(tmp_path / "epoch_3.pt", "ViT-B-32", quick_gelu=True).digest == digest
    assert load(tmp_path / "epoch_3.pt", "ViT-B-32", quick_gelu=False).digest != digest


def test_a_tag_runs_with_its_own_activation(vit_b32: Path) -> None:
    """PITFALLS 12 and 29: open_clip only warns."""
    pixels = certify.generate_images(1, 64, 96)
    file = vit_b32 / WEIGHTS[0]
    maps = {
        id: load(file, id, **options).encode(pixels, Want()).map
        for id, options in {
            "ViT-B-32/openai": {},
            "ViT-B-32-quickgelu": {},
            "ViT-B-32/laion2b_s34b_b79k": {},
        }.items()
    }
    quick, named, plain = maps.values()
    assert np.array_equal(quick, named)
    assert np.abs(quick - plain).max() > 1e-2


def test_a_file_of_a_tag_equals_open_clips_own(vit_b32: Path) -> None:
    name = ModelName("openclip", "ViT-B-32/openai", str(vit_b32 / WEIGHTS[0]))
    for verdict in certify.certify(name, [certify.Case(224, 224, 1), certify.Case(96, 160, 2)]):
        assert verdict.is_within, verdict


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_file_without_a_tag_is_certified_with_the_activation_that_is_said(
    vit_b32: Path, quick_gelu: bool, caplog: pytest.LogCaptureFixture
) -> None:
    name = ModelName("openclip", "ViT-B-32", str(vit_b32 / WEIGHTS[0]))
    options = LoadOptions(quick_gelu=quick_gelu)
    (verdict,) = certify.certify(name, [certify.Case(96, 160)], options)
    assert verdict.is_within, verdict
    assert caplog.records == []


@pytest.mark.parametrize("trunk", ["fastvit_mci0"])
def test_mobileclips_convolutions_equal_upstreams(trunk: str, tmp_path: Path) -> None:
    card = open_clip_towers.card(open_clip_towers.trunk(trunk, "avg", None, 256), 512)
    name = ModelName("openclip", "test", str(write_openclip(card, tmp_path)))
    for verdict in certify.certify(name, [certify.Case(96, 160, 1)]):
        assert verdict.is_within, verdict


def test_without_a_tag_the_activation_must_be_said(vit_b32: Path) -> None:
    file = vit_b32 / WEIGHTS[0]
    assert refusal(file, "ViT-B-32") == (
        "--model openclip:ViT-B-32: a checkpoint does not say its activation; add --quick_gelu "
        "(OpenAI's, DFN's and most MetaCLIP weights) or --no_quick_gelu (LAION's and DataComp's), "
        "or name its tag, openclip:ViT-B-32/TAG=FILE"
    )
    assert refusal(file, "ViT-B-32/openai", quick_gelu=False) == (
        "--no_quick_gelu: openclip:ViT-B-32/openai was trained with QuickGELU; drop it"
    )
    assert refusal(file, "RN50", quick_gelu=True) == (
        "--quick_gelu: openclip:RN50 has an activation of its own; drop it"
    )
    with pytest.raises(UsageError) as caught:
        load_encoder(ModelName("hf", "tiny"), LoadOptions(quick_gelu=True))
    assert str(caught.value) == ("--quick_gelu: it is for openclip:ARCH=FILE; drop it for hf:tiny")


def test_a_checkpoint_of_big_vision_is_refused_with_what_to_take(tmp_path: Path) -> None:
    """No tag's file is one."""
    files = [row[key] for by_tag in tags().values() for row in by_tag.values() for key in row
             if key in ("url", "hf_hub")]  # fmt: skip
    assert not any(str(file).endswith((".npz", ".npy")) for file in files)
    file = tmp_path / "siglip.npz"
    np.savez(file, params=np.zeros(1))
    assert refusal(file, "ViT-B-16-SigLIP/webli") == (
        f"openclip:ViT-B-16-SigLIP/webli: {file} is a checkpoint of big_vision, which is not read; "
        "allowed is what open_clip makes of it, such as open_clip_model.safetensors of the tag's "
        "repository"
    )


def test_a_lacking_strange_or_misshapen_tensor_is_an_error(tmp_path: Path) -> None:
    file = write_openclip(VIT, tmp_path) / WEIGHTS[0]
    whole = file.read_bytes()
    for edit, named in [
        (lambda t: t.pop("visual.ln_post.bias"), "visual.ln_post.bias"),
        (lambda t: t.update({"visual.extra": torch.zeros(1)}), "extra"),
        (lambda t: t.update({"visual.positional_embedding": torch.zeros(5, 64)}), "positional"),
    ]:
        file.write_bytes(whole)
        change(file, edit)
        message = refusal(tmp_path)
        assert message.startswith(f"openclip:test: {file} does not fit open_clip's architecture, ")
        assert named.removeprefix("visual.") in message
    file.write_bytes(whole)
    digest = load(tmp_path).digest
    change(file, lambda t: t.pop("token_embedding.weight"))  # of the text tower
    assert load(tmp_path).digest == digest
    file.unlink()
    assert refusal(tmp_path) == (
        f"openclip:test: {tmp_path} holds no weights; put open_clip_model.safetensors there"
    )


def test_a_config_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    write_openclip(VIT, tmp_path)
    whole = json.loads((tmp_path / CONFIG).read_text())

    def rewrite(**vision: Any) -> str:
        changed = {**whole, "model_cfg": {**whole["model_cfg"], "vision_cfg": vision}}
        (tmp_path / CONFIG).write_text(json.dumps(changed))
        return refusal(tmp_path)

    vision = whole["model_cfg"]["vision_cfg"]
    assert rewrite(**vision, surprise=1).startswith(
        "openclip:test: open_clip cannot build this tower ("
    )
    assert rewrite(image_size=64, timm_model_name="hf-hub:someone/evil") == (
        "openclip:test: hf-hub:someone/evil is no architecture of timm"
    )
    (tmp_path / CONFIG).write_text("{}")
    assert refusal(tmp_path) == (
        f"openclip:test: {tmp_path / CONFIG} has no model_cfg with embed_dim and vision_cfg; put "
        "the checkpoint's own there"
    )
    (tmp_path / CONFIG).write_text(
        json.dumps({**whole, "preprocess_cfg": {"resize_mode": "longest"}})
    )
    assert refusal(tmp_path) == (
        "openclip:test: resize_mode longest with bicubic; allowed is shortest or squash, with "
        "bicubic or bilinear"
    )


def test_missing_weights_say_which_file_to_put_where(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from featprep.encoders import load_encoder, resolve\n"
        "from featprep.encoders.base import LoadOptions\n"
        "from featprep.errors import WeightsError\n"
        "for name in sys.argv[1:]:\n"
        "    try: load_encoder(resolve(name, 'any'), LoadOptions())\n"
        "    except WeightsError as error: print(error)\n"
    )
    names = ["openclip:ViT-B-32/openai", "openclip:hf-hub:org/model"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *names],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    closed = "and HF_HUB_OFFLINE closes downloads; unset it, or"
    file = "open_clip_model.safetensors (or open_clip_pytorch_model.bin)"
    both = f"open_clip_config.json and {file} of org/model"
    elsewhere = "(featprep fetch {} --to DIR, where there is a network, writes it)"
    base = "timm/vit_base_patch32_clip_224.openai"
    own = f"{file} of {base}"
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"{names[0]}: {tmp_path} holds nothing of {base} {closed} get {own} and give --model "
        f"{names[0]}=FILE {elsewhere.format(names[0])}",
        f"{names[1]}: {tmp_path} holds nothing of org/model {closed} put {both} into a folder and "
        f"give --model {names[1]}=FOLDER {elsewhere.format(names[1])}",
    ]


def test_a_model_of_the_hub_is_found_in_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_openclip(VIT, tmp_path)
    monkeypatch.setattr(
        "featprep.encoders.hub._standing",
        lambda repo, file: path if (path := tmp_path / file).is_file() else None,
    )
    name = resolve("openclip:hf-hub:org/model", "any")
    encoder = load_encoder(name, LoadOptions())
    assert (encoder.origin, encoder.digest) == ("hub cache", load(tmp_path).digest)
    assert describe(name) == encoder.spec


# --- the right map, at any size


def test_siglip_gives_its_tokens_after_the_final_norm_and_drops_none(tmp_path: Path) -> None:
    """PITFALLS 1, 3 and 6: there is no class token, and the norm belongs to the map."""
    folder = write_openclip(open_clip_towers.TOWERS["openclip:small/siglip"], tmp_path)
    encoder = load(folder)
    pixels = certify.generate_images(1, 80, 80)
    with torch.inference_mode():
        tokens = encoder.visual.trunk.forward_features(encoder.normalise(pixels))
    ours = torch.from_numpy(encoder.encode(pixels, Want()).map).flatten(2).mT
    assert tokens.shape == (1, 25, 64)
    torch.testing.assert_close(ours, tokens, rtol=0, atol=1e-5)
    assert encoder.tokens(80, 80) == (25, 64)


@pytest.mark.parametrize("kind", ["vit", "eva", "siglip"])
def test_hub_positions_are_those_of_open_clip_itself(kind: str, tmp_path: Path) -> None:
    """open_clip and timm antialias; transformers does not: with it, smaller grids differ."""
    folder = write_openclip(open_clip_towers.TOWERS[f"openclip:small/{kind}"], tmp_path)
    model = open_clip.create_model(f"local-dir:{folder}", force_image_size=(48, 64)).eval()
    hub, plain = (load(folder, pos_embed=one) for one in ("hub", "transformers"))
    pixels = certify.generate_images(1, 48, 64)
    kept: list[Any] = []
    blocks = model.visual.trunk.blocks if kind != "vit" else model.visual.transformer.resblocks
    blocks[-1].register_forward_hook(lambda *call: kept.append(call[-1]))
    with torch.inference_mode():
        model.encode_image(hub.normalise(pixels))
        (tokens,) = kept
        if kind == "siglip":
            tokens = model.visual.trunk.norm(tokens)
    ours, other = (
        torch.from_numpy(one.encode(pixels, Want()).map).flatten(2).mT for one in (hub, plain)
    )
    torch.testing.assert_close(ours, tokens[:, -12:], rtol=0, atol=1e-5)
    assert (ours - other).abs().max() > 1e-3
    assert hub.digest == plain.digest


@pytest.mark.parametrize("kind", ["vit", "eva", "siglip", "bare"])
def test_sizes_leave_no_trace(kind: str, tmp_path: Path) -> None:
    """Position embeddings are swapped in the module: the native ones must come back, to the bit."""
    encoder = load(write_openclip(open_clip_towers.TOWERS[f"openclip:small/{kind}"], tmp_path))
    native, long = certify.generate_images(1, 80, 80), certify.generate_images(1, 32, 96)
    first, other = encoder.encode(native, Want()).map, encoder.encode(long, Want()).map
    for columns in range(1, 12):
        encoder.encode(certify.generate_images(1, 16, 16 * columns), Want())
    assert np.array_equal(encoder.encode(native, Want()).map, first)
    assert np.array_equal(encoder.encode(long, Want()).map, other)
    positions = getattr(encoder.tower, "_positions", None)
    assert positions is None or len(positions.grids) <= 8


def test_a_trunk_made_for_one_size_refuses_others_and_names_its_own(tmp_path: Path) -> None:
    encoder = load(write_openclip(open_clip_towers.TOWERS["openclip:small/relpos"], tmp_path))
    assert (encoder.spec.fixed_size, encoder.spec.projected_dim) == (True, None)
    pixels = certify.generate_images(1, 160, 160)
    assert encoder.encode(pixels, Want()).map.shape == (1, 96, 10, 10)
    with pytest.raises(UsageError) as caught:
        encoder.encode(pixels[:, :, :96], Want())
    assert str(caught.value) == "--size 96,160: openclip:test takes 160,160 only; drop --size"


def test_resampling_keeps_the_prefix_and_tells_rows_from_columns() -> None:
    """PITFALLS 22."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    table = torch.stack((rows, columns), -1).reshape(16, 2)
    prefix = torch.full((1, 2), 9.0)
    own = torch.cat((prefix, table))
    assert resample(own, (4, 4), (4, 4), antialias=False) is own
    placed = resample(own, (4, 4), (2, 8), antialias=False)
    assert torch.equal(placed[:1], prefix)
    grid = placed[1:].reshape(2, 8, 2)
    assert torch.equal(grid[:, 0, 0], grid[:, 5, 0])
    assert torch.equal(grid[0, :, 1], grid[1, :, 1])
    assert torch.equal(resample(table[None], (4, 4), (2, 8), antialias=False)[0], placed[1:])


def test_openais_clip_and_open_clips_give_one_map_from_one_set_of_weights(tmp_path: Path) -> None:
    """The same tensors through clip and through open_clip, native and resampled."""
    file = write_tiny("clip", tmp_path / "clip")
    folder = write_tiny("openclip", tmp_path / "open_clip")
    tensors = torch.load(file, weights_only=True)
    visual = {key: item for key, item in tensors.items() if key.startswith("visual.")}
    save_file(visual, folder / WEIGHTS[0])
    ours = load(folder)
    theirs = load_encoder(ModelName("clip", "test", str(file)), LoadOptions())
    for height, width in ((224, 224), (70, 112)):
        pixels = certify.generate_images(2, height, width)
        for want in (Want(), Want(feature="projected")):
            np.testing.assert_allclose(
                ours.encode(pixels, want).map, theirs.encode(pixels, want).map, rtol=0, atol=2e-5
            )
    assert dataclasses.replace(TINY["openclip"], name="x") != TINY["clip"]


def test_a_card_says_whether_one_cell_can_be_projected() -> None:
    for id, projects in {
        "ViT-B-32/openai": True, "RN50/openai": True, "convnext_base/laion400m_s13b_b51k": True,
        "EVA02-B-16/merged2b_s8b_b131k": True, "ViTamin-S/datacomp1b": True,
        "ViT-B-16-SigLIP/webli": False, "PE-Core-B-16/meta": False,
        "coca_ViT-B-32/laion2b_s13b_b90k": False, "MobileCLIP2-S0/dfndr2b": False,
    }.items():  # fmt: skip
        card: Card = card_of(ModelName("openclip", id))
        assert card.projects is projects, id
