"""`featprep fetch`: what it brings is loaded by the line it prints, without a network."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import text_checkpoints
from featprep import encoders
from featprep.cli import main
from featprep.encoders import copies, openai_clip, openclip_cards
from featprep.encoders.base import LoadOptions, ModelName
from featprep.encoders.tiny import write_openclip, write_tiny
from hub_server import COMMIT, hub_of, in_process

RUN = "from featprep.cli import main; raise SystemExit(main({words!r}))"
WHOLE = ["config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny("hf", tmp_path / "hf")


@pytest.fixture
def endpoint(folder: Path) -> Iterator[str]:
    with hub_of(folder) as (address, _):
        yield address


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What clip:ViT-B/32 is published as."""
    file = write_tiny("clip", tmp_path / "tiny")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    source = tmp_path / "server" / sha256 / "ViT-B-32.pt"
    source.parent.mkdir(parents=True)
    shutil.copy(file, source)
    monkeypatch.setattr(openai_clip, "PUBLISHED", {"ViT-B/32": source.as_uri()})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return source


def fetch(*words: str, **environment: str) -> tuple[int, list[str], list[str]]:
    """(exit code, lines on stdout, on stderr)"""
    done = in_process(
        RUN.format(words=["fetch", *words]), HF_HUB_DISABLE_PROGRESS_BARS="1", **environment
    )
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def typed(line: str) -> ModelName:
    """What the printed line names."""
    found = re.fullmatch(r"  type     --model (.*)", line)
    assert found, line
    return encoders.resolve(shlex.split(found[1])[0], "any")


def test_the_cache_is_filled_once_and_the_name_alone_is_typed(
    endpoint: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    snapshot = cache / "models--org--model/snapshots" / COMMIT
    lines = [f"  lies in  {snapshot}", "  type     --model hf:org/model"]
    where = {"HF_HUB_CACHE": str(cache)}
    assert fetch("hf:org/model", HF_ENDPOINT=endpoint, **where) == (
        0,
        [f"hf:org/model  1.1 MB in 3 files, downloaded from {endpoint}", *lines],
        [],
    )
    assert fetch("hf:org/model", HF_HUB_OFFLINE="1", **where) == (
        0,
        ["hf:org/model  1.1 MB in 3 files, already there (hub cache)", *lines],
        [],
    )
    assert sorted(path.name for path in snapshot.iterdir()) == WHOLE


def test_a_copy_loads_where_there_is_no_network_and_no_cache(
    endpoint: str, folder: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to carry"
    code, lines, _ = fetch(
        "hf:org/model", "--to", str(to), HF_ENDPOINT=endpoint, HF_HUB_CACHE=str(tmp_path / "cache")
    )
    copied = to / "hf--org--model"
    assert (code, lines[0].endswith(f"downloaded from {endpoint}")) == (0, True)
    assert lines[1:] == [
        f"  lies in  {copied}",
        f"  type     --model 'hf:org/model={copied}'",
    ]
    assert sorted(path.name for path in copied.iterdir()) == WHOLE
    assert not any(path.is_symlink() for path in copied.iterdir())
    shutil.rmtree(tmp_path / "cache")
    encoder = encoders.load_encoder(typed(lines[2]), LoadOptions())
    reference = encoders.load_encoder(ModelName("hf", "x", str(folder)), LoadOptions())
    assert (encoder.digest, encoder.spec.name) == (reference.digest, "hf:org/model")
    again = fetch("hf:org/model", "--to", str(to), HF_HUB_OFFLINE="1", HF_HUB_CACHE="/nowhere")
    assert (again[0], again[1][1:], again[2]) == (0, lines[1:], [])
    assert again[1][0].endswith("in 3 files, already there")


def test_a_model_of_images_and_texts_comes_with_its_tokenizer(tmp_path: Path) -> None:
    folder, to = text_checkpoints.write("siglip", tmp_path / "hf"), tmp_path / "to"
    cache = str(tmp_path / "cache")
    with hub_of(folder) as (address, _):
        code, lines, errors = fetch(
            "hf:org/model", "--to", str(to), HF_ENDPOINT=address, HF_HUB_CACHE=cache
        )
    assert (code, errors) == (0, [])
    assert sorted(path.name for path in (to / "hf--org--model").iterdir()) == [
        *WHOLE,
        *("spiece.model", "tokenizer_config.json"),
    ]
    tower = encoders.load_text(typed(lines[2]), LoadOptions())
    assert tower.encode_text(["a cat"]).shape == (1, 32)


def test_open_clips_model_comes_with_a_tokenizer_of_the_hub(tmp_path: Path) -> None:
    """It loads from the cache and from a copy, where there is no network."""
    text = {"context_length": 16, "vocab_size": 400, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1}
    config = {
        "embed_dim": 24,
        "vision_cfg": vision,
        "text_cfg": text | {"hf_tokenizer_name": "org/words"},
    }
    folder = write_openclip(openclip_cards.Card(config, {}, None), tmp_path / "hf", has_text=True)
    for file in text_checkpoints.write("blip", tmp_path / "blip").glob("token*"):
        shutil.copy(file, folder)
    cache, to = {"HF_HUB_CACHE": str(tmp_path / "cache")}, str(tmp_path / "to")
    asked = "openclip:hf-hub:org/model"
    with hub_of(folder) as (address, _):
        code, lines, errors = fetch(asked, "--to", to, HF_ENDPOINT=address, **cache)
    assert (code, errors) == (0, [])
    program = (
        "from featprep import encoders\n"
        "from featprep.encoders.base import LoadOptions\n"
        f"for name in ({asked!r}, {str(typed(lines[2]).typed)!r}):\n"
        "    tower = encoders.load_text(encoders.resolve(name, 'any'), LoadOptions())\n"
        "    print(tower.encode_text(['a cat']).round(4).tolist())\n"
    )
    done = in_process(program, HF_HUB_OFFLINE="1", **cache)
    first, second = done.stdout.splitlines()
    assert (first, done.stderr) == (second, "")


def test_a_dino_named_plainly_is_told_the_size_that_the_plain_name_has(
    endpoint: str, tmp_path: Path
) -> None:
    _, lines, _ = fetch(
        "facebook/dinov2-base", HF_ENDPOINT=endpoint, HF_HUB_CACHE=str(tmp_path / "cache")
    )
    assert lines[2] == (
        "  type     --model hf:facebook/dinov2-base --size 224   (what its plain name stands for)"
    )


def test_one_that_cannot_be_had_does_not_keep_the_others_from_it(
    endpoint: str, tmp_path: Path
) -> None:
    where = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(tmp_path / "cache")}
    code, lines, errors = fetch("hf:org/gated", "tiny", "hf:tiny", "hf:org/model", **where)
    assert (code, len(errors)) == (2, 1)
    assert errors[0].startswith("featprep: hf:org/gated: org/gated is gated: accept its terms at ")
    assert lines[:2] == ["tiny needs no weights: they are made where they are used"] * 2
    assert lines[2].endswith(f"in 3 files, downloaded from {endpoint}")


def test_a_copy_of_a_tag_keeps_what_the_tag_says(endpoint: str, tmp_path: Path) -> None:
    """Its activation, mean and std: a file by itself says none of them."""
    weights = tmp_path / "hf/model.safetensors"
    weights.rename(weights.with_name("open_clip_model.safetensors"))
    asked = ["openclip:ViT-L-14/laion2b_s32b_b82k", "openclip:ViT-B-32/openai"]
    where = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(tmp_path / "cache")}
    code, lines, errors = fetch(*asked, "--to", str(tmp_path / "to"), **where)
    assert (code, errors) == (0, [])
    names = [typed(line) for line in lines if "type" in line]
    files = [
        "openclip--ViT-L-14--laion2b_s32b_b82k.safetensors",
        "openclip--ViT-B-32--openai.safetensors",
    ]
    assert [name.path for name in names] == [str(tmp_path / "to" / file) for file in files]
    specs = [encoders.describe(name) for name in names]
    assert [spec and spec.mean for spec in specs] == [
        (0.5, 0.5, 0.5),
        (0.48145466, 0.4578275, 0.40821073),
    ]
    assert [openclip_cards.card_of(name).quick_gelu for name in names] == [False, True]


def test_openais_file_is_copied_under_the_name_that_loads_it(
    clip: Path, tmp_path: Path, capfd: Any
) -> None:
    to = tmp_path / "to"
    assert main(["fetch", "clip:ViT-B/32", "--to", str(to)]) == 0
    copied = to / "clip--ViT-B--32.pt"
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].endswith(f", downloaded from {clip.as_uri()}")
    assert lines[1:] == [f"  lies in  {copied}", f"  type     --model clip:ViT-B/32={copied}"]
    assert copied.read_bytes() == clip.read_bytes()
    assert main(["fetch", "ViT-B/32"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].endswith(", already there (clip cache)")
    assert lines[2] == "  type     --model clip:ViT-B/32"


def test_a_copy_that_was_cut_off_is_made_again(clip: Path, tmp_path: Path, capfd: Any) -> None:
    to, copied = tmp_path / "to", tmp_path / "to/clip--ViT-B--32.pt"
    main(["fetch", "clip:ViT-B/32", "--to", str(to)])
    copied.write_bytes(clip.read_bytes()[:1000])
    capfd.readouterr()
    assert main(["fetch", "clip:ViT-B/32", "--to", str(to)]) == 0
    assert copied.read_bytes() == clip.read_bytes()
    assert capfd.readouterr().out.splitlines()[0].endswith(", copied from the clip cache")


def test_a_full_disk_leaves_no_half_file_and_the_same_command_goes_on(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    to = tmp_path / "to"
    words = ["fetch", "clip:ViT-B/32", "--to", str(to)]

    def fill_up(source: Path, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(copies.shutil, "copyfile", fill_up)
        assert main(words) == 4
    assert list(to.iterdir()) == []
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"featprep: --to {to}: cannot write {to / 'clip--ViT-B--32.pt'} (No space left on device); "
        "what is whole stays, and the same command goes on"
    )
    killed, working = to / ".featprep-killed", to / ".featprep-working"
    for left in (killed, working):
        left.write_bytes(b"half")
    os.utime(killed, (0, 0))
    assert main(words) == 0
    assert sorted(path.name for path in to.iterdir()) == [working.name, "clip--ViT-B--32.pt"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["clip:ViT-B/23"],
            "clip:ViT-B/23: no such encoder; allowed is ViT-B/32, ViT-B/16, ViT-L/14 … tiny (all "
            "10: featprep models clip:), or clip:NAME=PATH, PATH a .pt file. Did you mean "
            "clip:ViT-B/32?",
        ),
        (
            ["clip:mine={file}"],
            "clip:mine={file}: these weights are local already; nothing to fetch",
        ),
        (["tiny", "--to", "{file}"], "--to {file}: not a folder; give a folder"),
        ([], "the following arguments are required: model; see featprep fetch --help"),
    ],
)
def test_what_cannot_be_fetched_is_refused_before_anything_is(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert main(["fetch", *(word.format(file=file) for word in words)]) == 2
    assert capsys.readouterr() == ("", f"featprep: {said.format(file=file)}\n")


def test_help_answers_without_torch() -> None:
    done = in_process(
        "import sys\nfrom featprep.cli import main\n"
        "try: main(['fetch', '--help'])\n"
        "except SystemExit: print({'torch', 'clip', 'huggingface_hub'} & set(sys.modules))"
    )
    assert (done.stderr, done.stdout.splitlines()[-1]) == ("", "set()")
