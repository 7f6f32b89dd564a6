"""Files of a hub model by name: the hub's cache, else its client. Knows no format of weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featprep.encoders import weights
from featprep.encoders.base import ModelName
from featprep.errors import WeightsError


def fetch(
    name: ModelName, repo: str, choices: Sequence[Sequence[str]], way_out: str
) -> tuple[list[Path], str]:
    """([of each choice the first file there is], origin). `way_out`: what to do without the hub."""
    cached = [
        next((path for file in files if (path := weights.hub_config(repo, file))), None)
        for files in choices
    ]
    if all(cached):
        return [path for path in cached if path], "hub cache"
    from huggingface_hub import constants

    wanted = " and ".join(" or ".join(files) for files in choices)
    way_out = f"get {wanted} of {repo} and {way_out}"
    if weights.is_offline():
        raise WeightsError(
            f"{name}: not whole in {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE closes downloads; "
            f"unset it, or {way_out}"
        )
    try:
        with weights.quiet():
            paths = [_first(repo, files) for files in choices]
    except Exception as error:  # the hub's, its HTTP library's and the disk's
        reason = weights.hub_reason(error, constants.ENDPOINT)
        raise WeightsError(f"{name}: {reason}, or {way_out}") from error
    return paths, f"downloaded from {constants.ENDPOINT}"


def _first(repo: str, files: Sequence[str]) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for file in files:
        try:
            # One question without retries: hf_hub_download asks an unreachable host six times.
            get_hf_file_metadata(hf_hub_url(repo, file), timeout=weights.TIMEOUT_S)
            return Path(hf_hub_download(repo, file))
        except LocalEntryNotFoundError:  # the network broke; a subclass of the next
            raise
        except EntryNotFoundError:
            continue
    raise WeightsError(f"the repository holds no {' and no '.join(files)}")
