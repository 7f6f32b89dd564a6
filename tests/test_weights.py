"""Weights: what is read, what is refused, what identifies a checkpoint. Real files, no network."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from featprep.encoders import describe, digests, load_encoder, load_text, openai_clip
from featprep.encoders.base import LoadOptions, ModelName
from featprep.encoders.openai_clip import import_clip
from featprep.encoders.tiny import TINY, write_checkpoint, write_tiny
from featprep.errors import WeightsError
from hub_server import in_process
from safetensors.torch import load_file, save_file

URL = "https://openaipublic.azureedge.net/clip/models/{sha}/{file}"


def name(path: Path, family: str) -> ModelName:
    return ModelName(family, "test", str(path))


def load(path: Path, family: str, **options: Any) -> Any:
    return load_encoder(name(path, family), LoadOptions(**options))


def refusal(path: Path, family: str) -> str:
    with pytest.raises(WeightsError) as caught:
        load(path, family)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    return write_tiny("clip", tmp_path / "clip")


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    return write_tiny("hf", tmp_path / "hf")


def change_hf(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / "model.safetensors")


def change_clip(file: Path, change: Any) -> None:
    tensors = torch.load(file, weights_only=True)
    change(tensors)
    torch.save(tensors, file)


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# --- identity


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_one_set_of_clip_weights_has_one_digest_in_every_container(
    clip_file: Path, tmp_path: Path
) -> None:
    tensors = torch.load(clip_file, weights_only=True)
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save({key: item.half() for key, item in tensors.items()}, tmp_path / "half.pt")
    archive(clip_file, tmp_path / "archive.pt")
    digest = load(clip_file, "clip").digest
    assert load(tmp_path / "x.safetensors", "clip").digest == digest
    assert load(tmp_path / "half.pt", "clip").digest == digest
    assert load(tmp_path / "archive.pt", "clip", trust_weights=True).digest == digest
    change_clip(clip_file, lambda tensors: tensors["visual.proj"].mul_(2))
    assert load(clip_file, "clip").digest != digest


def test_one_set_of_dinov2_weights_has_one_digest_in_every_container(hf_folder: Path) -> None:
    digest = load(hf_folder, "hf").digest
    file = hf_folder / "model.safetensors"
    tensors = load_file(file)
    file.unlink()

    torch.save(tensors, hf_folder / "pytorch_model.bin")
    assert load(hf_folder, "hf").digest == digest
    (hf_folder / "pytorch_model.bin").unlink()

    keys = sorted(tensors)
    shards = {"one.safetensors": keys[::2], "two.safetensors": keys[1::2]}
    for shard, own in shards.items():
        save_file({key: tensors[key] for key in own}, hf_folder / shard, {"format": "pt"})
    where = {key: shard for shard, own in shards.items() for key in own}
    index = {"metadata": {}, "weight_map": where}
    (hf_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load(hf_folder, "hf").digest == digest

    classifier = {f"dinov2.{key}": item for key, item in tensors.items()}
    classifier["classifier.weight"] = torch.zeros(2, 128)
    save_file(classifier, file, {"format": "pt"})
    assert load(hf_folder, "hf").digest == digest


def test_the_digest_passes_over_what_the_map_does_not_depend_on(
    hf_folder: Path, clip_file: Path
) -> None:
    before = load(hf_folder, "hf").digest, load(clip_file, "clip").digest
    change_hf(hf_folder, lambda tensors: tensors["embeddings.mask_token"].add_(1))
    change_clip(clip_file, lambda tensors: tensors["token_embedding.weight"].add_(1))
    assert (load(hf_folder, "hf").digest, load(clip_file, "clip").digest) == before
    change_json(hf_folder / "config.json", layer_norm_eps=1e-5)
    assert load(hf_folder, "hf").digest != before[0]


def test_half_precision_checkpoints_are_widened_and_float32_ones_untouched(
    hf_folder: Path,
) -> None:
    file = load_file(hf_folder / "model.safetensors")
    assert not torch.equal(file["layernorm.weight"], file["layernorm.weight"].half().float())
    change_json(hf_folder / "config.json", dtype="float16", torch_dtype="float16")
    loaded = load(hf_folder, "hf").model
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.layernorm.weight, file["layernorm.weight"])
    change_hf(hf_folder, lambda t: t.update({key: item.bfloat16() for key, item in t.items()}))
    assert load(hf_folder, "hf").model.dtype == torch.float32


# --- what can run code


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize(
    "save", [torch.save, lambda item, file: file.write_bytes(pickle.dumps(item))]
)
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(
    hf_folder: Path, tmp_path: Path, save: Any
) -> None:
    marker = tmp_path / "was-run"
    hostile = {"layernorm.weight": torch.ones(64), "x": Payload(marker)}
    save(hostile, tmp_path / "hostile.pt")
    assert refusal(tmp_path / "hostile.pt", "clip") == (
        f"clip:test: {tmp_path / 'hostile.pt'} refused: not tensors alone, or broken; allowed is a "
        "file made with torch.save(model.state_dict(), FILE), or safetensors (it holds more than "
        "tensors)"
    )
    (hf_folder / "model.safetensors").unlink()
    save(hostile, hf_folder / "pytorch_model.bin")
    assert refusal(hf_folder, "hf").startswith(
        f"hf:test: {hf_folder / 'pytorch_model.bin'} refused: not tensors alone, or broken; allowed"
    )
    assert not marker.exists()


def test_code_that_a_checkpoint_brings_is_never_run(hf_folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    (hf_folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    change_json(
        hf_folder / "config.json",
        auto_map={"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"},
        _attn_implementation="someone/kernel",
    )
    load(hf_folder, "hf")
    assert not marker.exists()


def archive(state_dict: Path, file: Path) -> None:
    """A TorchScript archive as OpenAI's: the model, and three numbers in its state dict."""
    model: Any = torch.nn.Module()
    for key, item in torch.load(state_dict, weights_only=True).items():
        *rooms, last = key.split(".")
        room = model
        for part in rooms:
            if not hasattr(room, part):
                room.add_module(part, torch.nn.Module())
            room = getattr(room, part)
        room.register_parameter(last, torch.nn.Parameter(item))
    for key, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
        model.register_buffer(key, torch.tensor(value))
    torch.jit.script(model).save(str(file))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_archive_opens_only_if_published_or_trusted(
    clip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "archive.pt"
    archive(clip_file, file)
    opened: list[Path] = []
    real: Any = torch.jit.load

    def spy(path: Path, **options: Any) -> Any:
        opened.append(path)
        return real(path, **options)

    monkeypatch.setattr(torch.jit, "load", spy)
    assert refusal(file, "clip") == (
        f"clip:test: {file} is a TorchScript archive, which can run code, and not one that OpenAI "
        "published; if you trust who made it, add --trust_weights"
    )
    assert opened == []
    assert load(file, "clip", trust_weights=True).spec.native_size == (224, 224)
    assert opened == [file]
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    url = URL.format(sha=sha, file="archive.pt")
    monkeypatch.setattr(openai_clip, "PUBLISHED", {"ViT-X": url})
    assert load(file, "clip").spec.hidden_dim == 64


# --- incomplete and mistaken checkpoints


def test_a_lacking_tensor_is_an_error_and_never_drawn_at_random(
    hf_folder: Path, clip_file: Path
) -> None:
    change_hf(hf_folder, lambda tensors: tensors.pop("encoder.layer.1.norm2.bias"))
    assert refusal(hf_folder, "hf") == (
        f"hf:test: {hf_folder} lacks encoder.layer.1.norm2.bias, on which the map depends; get a "
        "whole copy of the checkpoint"
    )
    change_clip(clip_file, lambda tensors: tensors.pop("visual.ln_pre.bias"))
    message = refusal(clip_file, "clip")
    assert message.startswith(f"clip:test: {clip_file} does not fit clip, get a whole copy: ")
    assert "visual.ln_pre.bias" in message


def test_a_mask_token_may_be_lacking_for_no_map_depends_on_it(hf_folder: Path) -> None:
    change_hf(hf_folder, lambda tensors: tensors.pop("embeddings.mask_token"))
    assert load(hf_folder, "hf").spec.depth == 3


def test_a_misshapen_tensor_is_an_error(hf_folder: Path, clip_file: Path) -> None:
    change_hf(hf_folder, lambda t: t.update({"layernorm.bias": torch.zeros(65)}))
    assert refusal(hf_folder, "hf").startswith(f"hf:test: transformers refuses {hf_folder}: ")
    change_clip(clip_file, lambda t: t.update({"visual.ln_post.bias": torch.zeros(65)}))
    assert "visual.ln_post.bias" in refusal(clip_file, "clip")


def test_a_config_that_says_less_than_the_tensors_is_an_error(hf_folder: Path) -> None:
    """Else registers, or the last blocks, would silently be left out."""
    change_json(hf_folder / "config.json", num_hidden_layers=2)
    message = refusal(hf_folder, "hf")
    assert message.startswith(f"hf:test: {hf_folder} holds encoder.layer.2.attention.")
    assert message.endswith(
        ", of which its config.json says nothing; put the config.json of that checkpoint there"
    )
    assert TINY["hf"].depth == 3


def test_another_architecture_than_the_name_says_is_an_error(clip_file: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load_encoder(ModelName("clip", "ViT-B/32", str(clip_file)), LoadOptions())
    assert str(caught.value) == (
        f"clip:ViT-B/32: {clip_file} holds another architecture (patch 14, width 64, 3 blocks, "
        f"side 224, projected to 32); give it as clip:YOUR_NAME={clip_file}"
    )


BLOCKS = {
    "clip": "visual.transformer.resblocks.0.mlp.c_fc.weight",
    "hf": "encoder.layer.0.mlp.fc1.weight",
    "openclip": "visual.transformer.resblocks.0.mlp.c_fc.weight",
}
TWICE = {"hf": "dinov2.", "openclip": "module."}  # what training may put before every name


def changed(family: str, folder: Path, change: Any) -> tuple[Path, Path]:
    """(what to load, what is refused): a tiny checkpoint of which one tensor is another."""
    path = write_tiny(family, folder)
    if family == "clip":
        change_clip(path, change)
        return path, path
    (file,) = path.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, file, {"format": "pt"})
    return path, path if family == "hf" else file


@pytest.mark.parametrize("family", BLOCKS)
@pytest.mark.parametrize("kind", ["int8", "uint8", "float8_e4m3fn", "complex64"])
def test_numbers_that_are_no_weights_by_themselves_are_refused(
    family: str, kind: str, tmp_path: Path
) -> None:
    """torch would take int8 100 for 100.0, and the real part of a complex number for all of it."""
    key = BLOCKS[family]
    path, named = changed(
        family, tmp_path, lambda t: t.update({key: (t[key] * 99).to(getattr(torch, kind))})
    )
    assert refusal(path, family) == (
        f"{family}:test: {named} holds {key} as {kind}, which is quantised or no weight; allowed "
        "is float32, bfloat16 or float16: get the checkpoint as it was published"
    )


@pytest.mark.parametrize("family", TWICE)
def test_two_tensors_for_one_name_are_an_error_unless_they_are_equal(
    family: str, tmp_path: Path
) -> None:
    key, other = BLOCKS[family], TWICE[family] + BLOCKS[family]
    path, named = changed(family, tmp_path / "a", lambda t: t.update({other: t[key] * 2}))
    assert refusal(path, family) == (
        f"{family}:test: {named} holds two tensors for {key}; get a clean copy"
    )
    path, _ = changed(family, tmp_path / "b", lambda t: t.update({other: t[key]}))
    assert load(path, family).spec.depth == 3


def test_a_tensor_that_clip_does_not_know_is_an_error(clip_file: Path) -> None:
    change_clip(clip_file, lambda t: t.update({"visual.extra": torch.zeros(1)}))
    message = refusal(clip_file, "clip")
    assert message.startswith(f"clip:test: {clip_file} does not fit clip, get a whole copy: ")
    assert message.endswith('Unexpected key(s) in state_dict: "visual.extra".')


def test_shards_that_are_lacking_are_named(hf_folder: Path) -> None:
    (hf_folder / "model.safetensors").unlink()
    shards = {str(number): f"model-{number}-of-5.safetensors" for number in range(1, 6)}
    (hf_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (hf_folder / "model-2-of-5.safetensors").write_bytes(b"")
    assert refusal(hf_folder, "hf") == (
        f"hf:test: {hf_folder} lacks model-1-of-5.safetensors, model-3-of-5.safetensors, "
        "model-4-of-5.safetensors and 1 more, which its index names; put all of them there"
    )


@pytest.mark.parametrize("family", BLOCKS)
def test_a_file_that_is_cut_off_says_so(family: str, tmp_path: Path) -> None:
    path = write_tiny(family, tmp_path)
    (file,) = [path] if path.is_file() else path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert refusal(path, family) == (
        f"{family}:test: {file} is cut off at {file.stat().st_size:,} bytes, as an interrupted "
        "copy is; get a whole one"
    )


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("model_state_dict", ""),  # openai/CLIP's issue 83, which most fine-tuning code follows
        ("state_dict", "module."),  # DistributedDataParallel
        ("state_dict", "model._orig_mod."),  # Lightning, torch.compile
        ("model", "clip_model."),
        ("", "module."),
    ],
)
def test_what_fine_tuning_of_clip_saves_is_read_as_it_is(
    clip_file: Path, tmp_path: Path, key: str, prefix: str
) -> None:
    tensors = torch.load(clip_file, weights_only=True)
    saved: Any = {prefix + name: item for name, item in tensors.items()}
    optimizer = {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"betas": (0.9, 0.98)}]}
    if key:
        saved = {"epoch": 3, key: saved, "optimizer_state_dict": optimizer, "loss": torch.ones(1)}
    torch.save(saved, tmp_path / "mine.pt")
    assert load(tmp_path / "mine.pt", "clip").digest == load(clip_file, "clip").digest
    text = load_text(name(tmp_path / "mine.pt", "clip"), LoadOptions())
    assert text.digest == load_text(name(clip_file, "clip"), LoadOptions()).digest


def test_a_clip_resnet_a_foreign_file_and_a_whole_training_state_are_told_apart(
    tmp_path: Path,
) -> None:
    file = tmp_path / "x.pt"
    torch.save({"visual.layer1.0.conv1.weight": torch.zeros(1)}, file)
    assert refusal(file, "clip").startswith(
        f"clip:test: {file} is no OpenAI CLIP state dict, it lacks visual.layer2.0.conv1.weight, "
    )
    torch.save({"vision_model.x": torch.zeros(1)}, file)
    assert refusal(file, "clip") == (
        f"clip:test: {file} is no OpenAI CLIP state dict, it lacks visual.conv1.weight, "
        "visual.positional_embedding, visual.proj, text_projection, positional_embedding, "
        "token_embedding.weight, ln_final.weight; allowed is clip's model.state_dict()"
    )
    torch.save({"epoch": 3, "sums": {}, "ema": {"a": torch.zeros(1)}}, file)
    assert refusal(file, "clip") == (
        f"clip:test: {file} holds more than tensors; allowed is a plain state dict: "
        "torch.save(torch.load(FILE)['ema'], NEW_FILE)"
    )
    torch.save([1, 2], file)
    assert "holds more than tensors" in refusal(file, "clip")
    file.write_bytes(b"no weights at all")
    assert "refused: not tensors alone, or broken" in refusal(file, "clip")
    assert refusal(tmp_path / "absent.pt", "clip") == (
        f"clip:test: no file {tmp_path / 'absent.pt'}; give the path of a .pt or .safetensors file"
    )


def test_a_folder_that_is_not_whole_says_which_file_it_wants(hf_folder: Path) -> None:
    folder = hf_folder
    change_json(folder / "config.json", model_type="swin")
    assert refusal(folder, "hf").startswith(
        f"hf:test: {folder / 'config.json'} is of model type swin; allowed is dinov2 or "
        "dinov2_with_registers or "
    )
    change_json(folder / "config.json", model_type="dinov2")
    change_json(folder / "preprocessor_config.json", rescale_factor=1.0)
    assert refusal(folder, "hf") == (
        f"hf:test: cannot use {folder / 'config.json'} with preprocessor_config.json: "
        "rescale_factor 1.0; allowed is 1/255; put the checkpoint's own there"
    )
    (folder / "preprocessor_config.json").unlink()
    assert refusal(folder, "hf") == (
        f"hf:test: cannot read {folder / 'preprocessor_config.json'} (No such file or directory); "
        "put preprocessor_config.json of the checkpoint there"
    )
    write_tiny("hf", folder)
    (folder / "model.safetensors").unlink()
    assert refusal(folder, "hf") == (
        f"hf:test: {folder} holds no weights; put model.safetensors there"
    )
    (folder / "config.json").write_text("{")
    assert "is not JSON" in refusal(folder, "hf")
    assert refusal(folder / "config.json", "hf") == (
        f"hf:test: no folder {folder / 'config.json'}; give one that holds config.json, "
        "preprocessor_config.json and model.safetensors"
    )


def test_an_index_cannot_lead_out_of_its_folder(hf_folder: Path) -> None:
    (hf_folder / "model.safetensors").rename(hf_folder.parent / "outside.safetensors")
    index = hf_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    assert refusal(hf_folder, "hf") == (
        f"{index} names a file outside its folder: ../outside.safetensors; get a clean copy"
    )


def test_a_config_may_leave_out_what_is_the_default_of_its_class(hf_folder: Path) -> None:
    config = json.loads((hf_folder / "config.json").read_text())
    for key in ("patch_size", "mlp_ratio", "use_swiglu_ffn"):
        del config[key]
    (hf_folder / "config.json").write_text(json.dumps(config))
    spec = describe(name(hf_folder, "hf"))
    assert spec is not None
    assert (spec.patch, load(hf_folder, "hf").grid(28, 42)) == (14, (2, 3))


@pytest.mark.parametrize(
    ("processor", "resize", "crop", "kernel"),
    [
        ({}, 256, (224, 224), "bicubic"),
        ({"size": {"height": 100, "width": 90}, "resample": 2}, (100, 90), (224, 224), "bilinear"),
        ({"size": {"height": 9, "width": 8}, "do_center_crop": False}, (9, 8), (9, 8), "bicubic"),
        ({"do_resize": False, "do_center_crop": False}, 518, (518, 518), "bicubic"),
        ({"size": 300, "crop_size": 280, "resample": 1}, 300, (280, 280), "lanczos"),
    ],
)
def test_the_recipe_is_the_checkpoints_own(
    hf_folder: Path, processor: dict[str, Any], resize: Any, crop: Any, kernel: str
) -> None:
    change_json(hf_folder / "preprocessor_config.json", **processor)
    spec = describe(name(hf_folder, "hf"))
    assert spec is not None
    assert (spec.recipe.resize, spec.recipe.crop) == (resize, crop)
    assert (spec.recipe.kernel, spec.recipe.rounding) == (kernel, "transformers")


def test_mean_and_deviation_come_from_the_checkpoint(hf_folder: Path) -> None:
    plain = load(hf_folder, "hf").digest
    change_json(
        hf_folder / "preprocessor_config.json", image_mean=[0.5] * 3, image_std=[0.25, 0.5, 1]
    )
    encoder = load(hf_folder, "hf")
    assert (encoder.spec.mean, encoder.spec.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    assert encoder.digest != plain


# --- noise


def test_loading_says_nothing_of_its_own(tmp_path: Path) -> None:
    program = (
        "from featprep.encoders import load_encoder, resolve\n"
        "from featprep.encoders.base import LoadOptions\n"
        "for name in ('clip:tiny', 'hf:tiny'):\n"
        "    load_encoder(resolve(name, 'any'), LoadOptions())\n"
    )
    done = in_process(program, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


# --- OpenAI's published archives


@pytest.fixture
def published(
    clip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, Path]:
    """(url, source, cache): a file behind a URL that carries its sha256, as OpenAI's do."""
    sha = hashlib.sha256(clip_file.read_bytes()).hexdigest()
    source = tmp_path / "server" / sha / "ViT-T-14.pt"
    source.parent.mkdir(parents=True)
    source.write_bytes(clip_file.read_bytes())
    cache = tmp_path / "home/.cache/clip"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    url = source.as_uri()
    monkeypatch.setattr(openai_clip, "PUBLISHED", {"ViT-T/14": url})
    return url, source, cache


PUBLISHED = ModelName("clip", "ViT-T/14")


def test_a_published_clip_is_fetched_by_clip_itself_and_then_found_in_its_cache(
    published: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    url, source, cache = published
    encoder = load_encoder(PUBLISHED, LoadOptions())
    assert encoder.origin == f"downloaded from {url}"
    assert encoder.weights_files == {"ViT-T-14.pt": url.split("/")[-2]}
    assert (cache / "ViT-T-14.pt").read_bytes() == source.read_bytes()
    assert [path.name for path in cache.iterdir()] == ["ViT-T-14.pt"]
    source.unlink()
    assert load_encoder(PUBLISHED, LoadOptions()).origin == "clip cache"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_encoder(PUBLISHED, LoadOptions()).origin == "clip cache"


def test_missing_clip_weights_say_which_file_to_put_where(
    published: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    url, source, cache = published
    source.unlink()
    with pytest.raises(WeightsError) as caught:
        load_encoder(PUBLISHED, LoadOptions())
    way_out = (
        f"put ViT-T-14.pt from {url} into {cache}, or give --model clip:ViT-T/14=FILE (featprep "
        "fetch clip:ViT-T/14 --to DIR, where there is a network, writes it)"
    )
    message = str(caught.value)
    assert message.startswith("clip:ViT-T/14: download failed (")
    assert message.endswith(f"); {way_out}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError) as caught:
        load_encoder(PUBLISHED, LoadOptions())
    assert str(caught.value) == (
        f"clip:ViT-T/14: {cache / 'ViT-T-14.pt'} is not there and HF_HUB_OFFLINE closes downloads; "
        f"unset it, {way_out}"
    )
    assert capfd.readouterr() == ("", "")


def test_a_broken_download_in_the_cache_is_not_used(
    published: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    url, source, cache = published
    cache.mkdir(parents=True)
    (cache / "ViT-T-14.pt").write_bytes(source.read_bytes()[:1000])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="is not the published file and HF_HUB_OFFLINE"):
        load_encoder(PUBLISHED, LoadOptions())
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert load_encoder(PUBLISHED, LoadOptions()).origin == f"downloaded from {url}"
    source.write_bytes(b"not what the URL says")
    (cache / "ViT-T-14.pt").unlink()
    with pytest.raises(WeightsError, match=r"download failed .*checksum"):
        load_encoder(PUBLISHED, LoadOptions())


def test_a_download_that_stops_leaves_nothing_under_the_final_name(
    published: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """clip writes under it from the first byte on: it is given another folder."""
    url, _, cache = published
    seen: list[bool] = []

    def fill_up(url: str, folder: str) -> str:
        (Path(folder) / "ViT-T-14.pt").write_bytes(b"half")
        seen.append((cache / "ViT-T-14.pt").exists())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(import_clip(), "_download", fill_up)
    with pytest.raises(WeightsError) as caught:
        load_encoder(PUBLISHED, LoadOptions())
    assert str(caught.value) == (
        f"clip:ViT-T/14: no room left in {cache}: free some; put ViT-T-14.pt from {url} into "
        f"{cache}, or give --model clip:ViT-T/14=FILE (featprep fetch clip:ViT-T/14 --to DIR, "
        "where there is a network, writes it)"
    )
    assert (seen, list(cache.iterdir())) == ([False], [])


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_whether_an_archive_may_run_is_never_decided_by_a_kept_sha256(
    published: tuple[str, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "KEPT_FROM", 0)
    file = tmp_path / "archive.pt"
    archive(published[1], file)
    content = file.read_bytes()
    url = URL.format(sha=hashlib.sha256(content).hexdigest(), file="archive.pt")
    monkeypatch.setattr(openai_clip, "PUBLISHED", {"ViT-T/14": url})
    cache = published[2]
    cache.mkdir(parents=True)
    target = shutil.copy2(file, cache / "archive.pt")
    assert load_encoder(PUBLISHED, LoadOptions()).origin == "clip cache"
    before = target.stat()
    middle = len(content) // 2
    target.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(WeightsError, match="is a TorchScript archive, which can run code, and not"):
        load_encoder(PUBLISHED, LoadOptions())


def test_the_published_addresses_are_clips_own() -> None:
    assert openai_clip.PUBLISHED == import_clip()._MODELS


def test_checkpoints_of_any_width_and_depth_can_be_made(tmp_path: Path) -> None:
    spec = dataclasses.replace(TINY["clip"], hidden_dim=128, depth=1, patch=32, projected_dim=16)
    encoder = load(write_checkpoint(spec, tmp_path), "clip")
    assert (encoder.spec.hidden_dim, encoder.spec.depth, encoder.spec.patch) == (128, 1, 32)
    assert encoder.spec.projected_dim == 16
