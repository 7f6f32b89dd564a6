"""The model hub: its cache, else its client; what is lacking there and why, in one line.

A choice is a tuple of file names, of which the first that there is counts; with an index come the
files that it names.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featprep.encoders import downloads, weights
from featprep.encoders.base import ModelName
from featprep.encoders.digests import hub_sha256
from featprep.encoders.weights import CONFIG, INDEX, PROCESSOR, WEIGHTS, Found
from featprep.errors import WeightsError

Choices = Sequence[Sequence[str]]
SITE = "https://huggingface.co"  # where terms are accepted, whatever mirror gives the files


def cached(repo: str, file: str) -> Path | None:
    """A file of a repository if the hub's cache has it, and not cut off; asks no network."""
    path = _standing(repo, file)
    return path if path and not weights.is_cut_off(path) else None


def folder(
    name: ModelName, repo: str = "", configs: tuple[str, ...] = (CONFIG, PROCESSOR)
) -> Found:
    """A folder in the form of transformers and timm."""
    files, origin = fetch(name, repo or name.id, [*((file,) for file in configs), WEIGHTS])
    return found(files, len(configs), origin)


def found(files: Sequence[Path], others: int, origin: str) -> Found:
    """`files` of one folder, the first `others` of them configurations."""
    held = tuple(file for file in files[others:] if not file.name.endswith(INDEX))
    beside = tuple(file for file in files if file not in held)
    return Found(files[0].parent, held, origin, beside, hub_sha256(held))


def fetch(name: ModelName, repo: str, choices: Choices) -> tuple[list[Path], str]:
    """(the files, origin): from the cache if all are there and whole, else from the hub."""
    there = [_cached_choice(repo, choice) for choice in choices]
    if all(there):
        return [file for files in there for file in files], "hub cache"
    from huggingface_hub import constants

    way_out = _way_out(name, repo, choices)
    if downloads.is_offline():
        lacking = [choice for choice, files in zip(choices, there, strict=True) if not files]
        raise WeightsError(
            f"{name}: {_state(repo, lacking, choices)} and HF_HUB_OFFLINE closes downloads; unset "
            f"it, or {way_out}"
        )
    try:
        with downloads.quiet():
            return _download(repo, choices), f"downloaded from {constants.ENDPOINT}"
    except Exception as error:  # the hub's, its HTTP library's and the disk's
        raise WeightsError(f"{name}: {_reason(error, repo)}; or {way_out}") from error


# --- tokenizers

# In the order in which they are fetched. One of the first is needed; the last, which every
# repository has, stands for all: in a cache that has it, what else is lacking there is lacking.
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_TOKENIZER = (
    *_VOCABULARIES,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer_config.json",
)


def local_tokenizer(name: ModelName, folder: Path) -> list[Path]:
    """The files of the tokenizer in a local folder. Raises WeightsError if there is none."""
    files = [folder / file for file in _TOKENIZER if (folder / file).is_file()]
    # Without one, transformers makes a tokenizer that knows no word.
    if not any(file.name in _VOCABULARIES for file in files):
        raise WeightsError(
            f"{name}: {folder} holds no tokenizer, which texts need; put {_TOKENIZER[-1]} and "
            f"{_VOCABULARIES[0]} of the checkpoint there"
        )
    return files


def tokenizer(name: ModelName, repo: str, *, has_config: bool = False) -> list[Path]:
    """All files of its tokenizer that a repository has: from the cache, else from the hub.
    `has_config`: and config.json, by whose model type older ones are told. Raises WeightsError."""
    wanted = (CONFIG, *_TOKENIZER) if has_config else _TOKENIZER
    there = [path for file in wanted if (path := cached(repo, file))]
    names = {path.name for path in there}
    if _TOKENIZER[-1] in names and names & set(_VOCABULARIES):
        return there
    from huggingface_hub import constants

    if downloads.is_offline():
        raise WeightsError(
            f"{name}: {constants.HF_HUB_CACHE} lacks the tokenizer of {repo}, which texts need, "
            f"and HF_HUB_OFFLINE closes downloads; unset it, and featprep fetch {name} brings it"
        )
    try:
        with downloads.quiet():
            return _download_tokenizer(repo, wanted)
    except Exception as error:  # the hub's, its HTTP library's and the disk's
        raise WeightsError(f"{name}: {_reason(error, repo)}") from error


def _download_tokenizer(repo: str, wanted: Sequence[str]) -> list[Path]:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    standing = cached(repo, CONFIG)  # of the same state of the repository as its weights
    revision = standing.parent.name if standing else None
    files: list[Path] = []
    for file in wanted:
        try:
            files.append(_get(repo, file, revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            continue
        revision = revision or files[-1].parent.name
    if not any(file.name in _VOCABULARIES for file in files):
        raise _LackingError(f"{repo} holds no tokenizer, such as {_VOCABULARIES[0]}")
    return files


# --- its cache


def _standing(repo: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, file)
    return Path(path) if isinstance(path, str) else None


def _cached_choice(repo: str, choice: Sequence[str]) -> list[Path]:
    """The files of the first name that is there, whole; [] if there is none."""
    file = next((file for file in choice if _standing(repo, file)), None)
    path = cached(repo, file) if file else None
    if path is None:
        return []
    if not path.name.endswith(INDEX):
        return [path]
    rest = [cached(repo, shard.name) for shard in weights.shards(path)]
    return [path, *(shard for shard in rest if shard)] if all(rest) else []


def _state(repo: str, lacking: Choices, choices: Choices) -> str:
    from huggingface_hub import constants

    for file in (file for choice in lacking for file in choice):
        if (path := _standing(repo, file)) and weights.is_cut_off(path):
            return f"{path} is cut off"
    if len(lacking) == len(choices):
        return f"{constants.HF_HUB_CACHE} holds nothing of {repo}"
    return f"{constants.HF_HUB_CACHE} lacks {_wanted(lacking)} of {repo}"


def _wanted(choices: Choices) -> str:
    """In words; what an index is for needs no telling."""
    plain = [[file for file in choice if not file.endswith(INDEX)] for choice in choices]
    words = [f"{first} (or {', '.join(rest)})" if rest else first for first, *rest in plain]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _way_out(name: ModelName, repo: str, choices: Choices) -> str:
    wanted, carry_over = _wanted(choices), downloads.carry_over(name)
    if len(choices) == 1:
        return f"get {wanted} of {repo} and give --model {name}=FILE ({carry_over})"
    return f"put {wanted} of {repo} into a folder and give --model {name}=FOLDER ({carry_over})"


# --- its client


def _download(repo: str, choices: Choices) -> list[Path]:
    files: list[Path] = []
    revision = None  # of the first file: the others come from the same state of the repository
    for choice in choices:
        path = _first(repo, choice, revision)
        revision = revision or path.parent.name
        files.append(path)
        if path.name.endswith(INDEX):
            files += [_get(repo, shard.name, revision) for shard in weights.shards(path)]
    return files


def _first(repo: str, choice: Sequence[str], revision: str | None) -> Path:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for file in choice:
        try:
            return _get(repo, file, revision)
        except LocalEntryNotFoundError:  # the network broke; a subclass of the next
            raise
        except EntryNotFoundError:
            continue
    raise _LackingError(f"{repo} does not hold {_wanted([choice])}")


class _LackingError(Exception):
    """The repository is there, and not what we need."""


def _get(repo: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    # One question without retries: hf_hub_download asks an unreachable host six times, 23 s in all.
    url = hf_hub_url(repo, file, revision=revision)
    size = get_hf_file_metadata(url, timeout=downloads.TIMEOUT_S).size
    before = _standing(repo, file)
    is_cut_off = before is not None and weights.is_cut_off(before)
    if size and (before is None or is_cut_off):
        _check_room(size, file)
    return Path(hf_hub_download(repo, file, revision=revision, force_download=is_cut_off))


def _check_room(size: int, file: str) -> None:
    """The client only warns, and starts."""
    from huggingface_hub import constants

    there = Path(constants.HF_HUB_CACHE)
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < size:
        raise _LackingError(
            f"{file} takes {size / 1e9:,.1f} GB and {constants.HF_HUB_CACHE} has "
            f"{free / 1e9:,.1f} GB left: free some, or set HF_HUB_CACHE to a folder with more room"
        )


def _reason(error: Exception, repo: str) -> str:
    """What happened and what to do about it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = constants.ENDPOINT
    response: Any = error.response if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, _LackingError | WeightsError):
        return str(error)
    if isinstance(error, GatedRepoError):
        return (
            f"{repo} is gated: accept its terms at {SITE}/{repo}, then type hf auth login or set "
            "HF_TOKEN to a token of that account"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{endpoint} has no {repo}, or it is private: check the name, type hf auth login or "
            "set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{endpoint} has {repo} but no revision main of it: check the name"
    if response is not None and response.status_code in (401, 403):
        return f"{endpoint} refuses the token: type hf auth login, or correct HF_TOKEN"
    if written := downloads.why_not_written(error, constants.HF_HUB_CACHE):
        return f"{written}, or set HF_HUB_CACHE to another folder"
    failed = f"download from {endpoint} failed ({weights.one_line(error)})"
    return f"{failed}: check the network, or set HF_ENDPOINT to a mirror"
