"""The hub's cache and its client, held with the real client against a server of this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from featprep.encoders import load_encoder
from featprep.encoders.base import LoadOptions, ModelName
from featprep.encoders.tiny import write_tiny
from hub_server import COMMIT, TOKEN, hub_of, in_process
from safetensors.torch import load_file, save_file

ASK = """
import time
from featprep.encoders import hub
from featprep.encoders.base import ModelName
from featprep.errors import WeightsError
for asked in {asked!r}:
    start = time.monotonic()
    try:
        found = hub.folder(ModelName("hf", asked))
        print(found.path, found.origin, dict(found.sha256))
    except WeightsError as error:
        print(error)
    assert time.monotonic() - start < 10
"""
FILES = "config.json, preprocessor_config.json and model.safetensors (or pytorch_model.bin)"


def way_out(repo: str) -> str:
    return (
        f"put {FILES} of {repo} into a folder and give --model hf:{repo}=FOLDER (featprep fetch "
        f"hf:{repo} --to DIR, where there is a network, writes it)"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny("hf", tmp_path / "hf")


@pytest.fixture
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    with hub_of(folder) as served:
        yield served


def ask(
    cache: Path, *repos: str, endpoint: str = "", before: str = "", **environment: str
) -> list[str]:
    """What `hub.folder` says of each repository: one line each, and nothing beside."""
    done = in_process(
        before + ASK.format(asked=list(repos)),
        **({"HF_ENDPOINT": endpoint} if endpoint else {}),
        HF_HUB_CACHE=str(cache),
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        **environment,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def snapshot(cache: Path, repo: str = "model") -> Path:
    return cache / f"models--org--{repo}/snapshots" / COMMIT


# --- what is there


def test_a_mirror_is_asked_once_and_its_files_are_found_again_offline(
    hub: tuple[str, list[str]], folder: Path, tmp_path: Path
) -> None:
    endpoint, asked = hub
    cache = tmp_path / "cache"
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    known = {"model.safetensors": sha256}
    assert ask(cache, "org/model", "org/model", endpoint=endpoint) == [
        f"{snapshot(cache)} downloaded from {endpoint} {known}",
        f"{snapshot(cache)} hub cache {known}",
    ]
    gets = [line.rsplit("/", 1)[-1] for line in asked if line.startswith("GET /cdn/model")]
    assert gets == ["model.safetensors"]
    offline = ask(cache, "org/model", HF_HUB_OFFLINE="1")
    assert offline == [f"{snapshot(cache)} hub cache {known}"]
    encoder = load_encoder(ModelName("hf", "x", str(snapshot(cache))), LoadOptions())
    copy = load_encoder(ModelName("hf", "x", str(folder)), LoadOptions())
    assert encoder.digest == copy.digest
    assert (encoder.weights_files, copy.weights_files) == (known, {})


def test_shards_are_fetched_by_their_index_and_each_has_its_sha256(
    hub: tuple[str, list[str]], folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {"one.safetensors": sorted(tensors)[::2], "two.safetensors": sorted(tensors)[1::2]}
    for file, keys in names.items():
        save_file({key: tensors[key] for key in keys}, folder / file, {"format": "pt"})
    index = {"weight_map": {key: file for file, keys in names.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    cache = tmp_path / "cache"
    known = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in names}
    assert ask(cache, "org/model", "org/model", endpoint=hub[0]) == [
        f"{snapshot(cache)} downloaded from {hub[0]} {known}",
        f"{snapshot(cache)} hub cache {known}",
    ]
    (snapshot(cache) / "two.safetensors").unlink()
    assert ask(cache, "org/model", HF_HUB_OFFLINE="1") == [
        f"hf:org/model: {cache} lacks model.safetensors (or pytorch_model.bin) of org/model and "
        f"HF_HUB_OFFLINE closes downloads; unset it, or {way_out('org/model')}"
    ]
    assert ask(cache, "org/model", endpoint=hub[0])[0].startswith(f"{snapshot(cache)} downloaded")


def test_a_download_that_breaks_off_goes_on_where_it_stopped(
    hub: tuple[str, list[str]], folder: Path, tmp_path: Path
) -> None:
    size = (folder / "model.safetensors").stat().st_size
    small = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 1000"
    said = ask(tmp_path / "cache", "org/breaks", endpoint=hub[0], before=small)
    assert said[0].startswith(f"{snapshot(tmp_path / 'cache', 'breaks')} downloaded from {hub[0]} ")
    gets = [line for line in hub[1] if line.startswith("GET /cdn/breaks/")]
    assert len(gets) == 2
    start = int(gets[1].rpartition("=")[2].rstrip("-"))
    assert size // 2 - 1000 <= start <= size // 2


# --- what is lacking, and why


def test_what_the_hub_refuses_is_one_line_with_what_to_do(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    endpoint, cache = hub[0], tmp_path / "cache"
    repos = ["private", "gated", "unborn", "bare", "huge", "down"]
    private, gated, unborn, bare, huge, down = ask(
        cache, *(f"org/{repo}" for repo in repos), endpoint=endpoint
    )
    assert private == (
        f"hf:org/private: {endpoint} has no org/private, or it is private: check the name, type hf "
        f"auth login or set HF_TOKEN; or {way_out('org/private')}"
    )
    assert gated == (
        "hf:org/gated: org/gated is gated: accept its terms at https://huggingface.co/org/gated, "
        "then type hf auth login or set HF_TOKEN to a token of that account; or "
        f"{way_out('org/gated')}"
    )
    assert unborn == (
        f"hf:org/unborn: {endpoint} has org/unborn but no revision main of it: check the name; or "
        f"{way_out('org/unborn')}"
    )
    assert bare == (
        "hf:org/bare: org/bare does not hold model.safetensors (or pytorch_model.bin); or "
        f"{way_out('org/bare')}"
    )
    assert huge.startswith(f"hf:org/huge: model.safetensors takes 1,000,000.0 GB and {cache} has ")
    assert huge.endswith(
        " GB left: free some, or set HF_HUB_CACHE to a folder with more room; or "
        f"{way_out('org/huge')}"
    )
    assert down.startswith(f"hf:org/down: download from {endpoint} failed (Server error '500 ")
    assert down.endswith(
        f"): check the network, or set HF_ENDPOINT to a mirror; or {way_out('org/down')}"
    )
    assert not list(cache.rglob("*.incomplete"))


def test_a_token_opens_what_its_account_accepted_and_another_is_told_so(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    gated, private, locked = ask(
        tmp_path / "cache",
        "org/gated",
        "org/private",
        "org/locked",
        endpoint=hub[0],
        HF_TOKEN="hf_other",
    )
    assert gated.startswith("hf:org/gated: org/gated is gated: accept its terms at https://hugging")
    assert private.startswith(f"hf:org/private: {hub[0]} has no org/private, or it is private: ")
    assert locked == (
        f"hf:org/locked: {hub[0]} refuses the token: type hf auth login, or correct HF_TOKEN; or "
        f"{way_out('org/locked')}"
    )
    said = ask(tmp_path / "cache", "org/gated", endpoint=hub[0], HF_TOKEN=TOKEN)
    assert said[0].startswith(f"{snapshot(tmp_path / 'cache', 'gated')} downloaded from {hub[0]} ")


def test_an_unreachable_hub_is_one_line_within_seconds_and_without_noise(tmp_path: Path) -> None:
    assert ask(tmp_path, "facebook/dinov2-base", endpoint="http://127.0.0.1:9") == [
        "hf:facebook/dinov2-base: download from http://127.0.0.1:9 failed ([Errno 111] Connection "
        "refused): check the network, or set HF_ENDPOINT to a mirror; or "
        f"{way_out('facebook/dinov2-base')}"
    ]


def test_offline_closes_downloads_and_says_which_files_to_put_where(
    hub: tuple[str, list[str]], folder: Path, tmp_path: Path
) -> None:
    assert ask(tmp_path, "facebook/dinov2-base", HF_HUB_OFFLINE="1") == [
        f"hf:facebook/dinov2-base: {tmp_path} holds nothing of facebook/dinov2-base and "
        f"HF_HUB_OFFLINE closes downloads; unset it, or {way_out('facebook/dinov2-base')}"
    ]
    (folder / "model.safetensors").rename(folder / "elsewhere")
    ask(tmp_path, "org/model", endpoint=hub[0])  # leaves both configurations
    assert ask(tmp_path, "org/model", HF_HUB_OFFLINE="1") == [
        f"hf:org/model: {tmp_path} lacks model.safetensors (or pytorch_model.bin) of org/model and "
        f"HF_HUB_OFFLINE closes downloads; unset it, or {way_out('org/model')}"
    ]


@pytest.mark.parametrize("share", [0, 4, 0.5])
def test_a_file_that_is_cut_off_in_the_cache_is_fetched_again_and_refused_offline(
    hub: tuple[str, list[str]], folder: Path, tmp_path: Path, share: float
) -> None:
    cache = tmp_path / "cache"
    first = ask(cache, "org/model", endpoint=hub[0])
    file = snapshot(cache) / "model.safetensors"
    content = file.read_bytes()
    file.resolve().write_bytes(content[: int(share if share > 1 else share * len(content))])
    assert ask(cache, "org/model", HF_HUB_OFFLINE="1") == [
        f"hf:org/model: {file} is cut off and HF_HUB_OFFLINE closes downloads; unset it, or "
        f"{way_out('org/model')}"
    ]
    assert ask(cache, "org/model", endpoint=hub[0]) == first
    assert file.read_bytes() == content


FULL = """
import io, os, pathlib
real = pathlib.Path.open
def full(path, mode="r", *rest, **options):
    return open("/dev/full", "wb", 0) if str(path).endswith(".incomplete") else real(
        path, mode, *rest, **options)
pathlib.Path.open = full
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_is_one_line_and_leaves_no_half_file(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert ask(cache, "org/model", endpoint=hub[0], before=FULL) == [
        f"hf:org/model: no room left in {cache}: free some, or set HF_HUB_CACHE to another folder; "
        f"or {way_out('org/model')}"
    ]
    assert [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 200] == []


def test_a_cache_that_cannot_be_written_is_said_so(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    cache = tmp_path / "file"
    cache.write_bytes(b"")
    (said,) = ask(cache, "org/model", endpoint=hub[0])
    assert said.startswith(f"hf:org/model: cannot use {cache} (")
