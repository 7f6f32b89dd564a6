"""Where weights come from, how they are read without running anything, and what identifies them.

Local path, the library's own cache, the hub. Knows no architecture: adapters say what counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import ModelName
from featprep.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
# In the order in which transformers looks for them.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
TIMEOUT_S = 15  # urllib has none of its own: an address that never answers would hang for minutes


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE closes all weight downloads."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def one_line(error: BaseException, width: int = 240) -> str:
    """What a library said, for the end of a message of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= width else text[: width - 1] + "…"


# --- identity


def digest(tensors: Mapping[str, Tensor], settings: Mapping[str, object]) -> str:
    """sha256 over names, shapes and float32 values of the tensors used, and over `settings`.

    Neither the container nor its precision counts: the same numbers have the same digest.
    """

    def fingerprint(name: str) -> str:
        tensor = tensors[name].detach().cpu().float()
        content = hashlib.sha256(tensor.flatten().numpy().data).hexdigest()
        return f"{name} {tuple(tensor.shape)} {content}\n"

    total = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode())
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        for line in pool.map(fingerprint, sorted(tensors)):
            total.update(line.encode())
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- files


def read_json(path: Path, name: ModelName) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(
            f"{name}: cannot read {path} ({error.strerror}); put {path.name} of the checkpoint "
            "there"
        ) from error
    except ValueError as error:
        raise WeightsError(f"{name}: {path} is not JSON: {one_line(error)}") from error
    if not isinstance(loaded, dict):
        raise WeightsError(f"{name}: {path} is not a JSON object; put the checkpoint's own there")
    return loaded


def read_tensors(
    path: Path,
    name: ModelName,
    published: Collection[str] = (),
    trust: bool = False,
    inside: Collection[str] = (),
) -> dict[str, Tensor]:
    """The tensors of a state dict, a safetensors file or a TorchScript archive, on the CPU.

    An archive holds code that runs on opening: its sha256 must be among `published`, or `trust`.
    `inside`: keys under which a training state may hold its state dict.
    """
    if not path.is_file():
        raise WeightsError(f"{name}: no file {path}; give the path of a .pt or .safetensors file")
    try:
        loaded = _open(path, name, published, trust)
    except WeightsError:
        raise
    except Exception as error:  # what a broken or hostile file raises has no common class
        # torch's own words advise to load the file with weights_only=False: never repeated
        is_pickle = "Weights only load failed" in str(error)
        why = "it holds more than tensors" if is_pickle else one_line(error, 120)
        raise WeightsError(
            f"{name}: {path} refused: not tensors alone, or broken; allowed is a file made with "
            f"torch.save(model.state_dict(), FILE), or safetensors ({why})"
        ) from error
    if isinstance(loaded, Mapping):
        loaded = next(
            (loaded[key] for key in inside if isinstance(loaded.get(key), Mapping)), loaded
        )
    return _plain(loaded, path, name)


def _open(path: Path, name: ModelName, published: Collection[str], trust: bool) -> Any:
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if not _is_torchscript(path):
        with warnings.catch_warnings():  # of a pickle's protocol, right before it is refused
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    if not trust and file_sha256(path) not in published:
        raise WeightsError(
            f"{name}: {path} is a TorchScript archive, which can run code, and not one that OpenAI "
            "published; if you trust who made it, add --trust_weights"
        )
    with warnings.catch_warnings():  # torch.jit is announced as deprecated; nothing else reads it
        warnings.simplefilter("ignore")
        open_archive: Any = torch.jit.load
        return open_archive(path, map_location="cpu").state_dict()


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(member.endswith("constants.pkl") for member in archive.namelist())


def _plain(loaded: Any, path: Path, name: ModelName) -> dict[str, Tensor]:
    from torch import Tensor

    table = loaded if isinstance(loaded, Mapping) else {"": loaded}
    if all(isinstance(item, Tensor) for item in table.values()):
        return dict(table)
    nested = [key for key, item in table.items() if isinstance(item, Mapping)]
    inside = next((key for key in ("state_dict", "model") if key in nested), "state_dict")
    raise WeightsError(
        f"{name}: {path} holds more than tensors; allowed is a plain state dict: "
        f"torch.save(torch.load(FILE)[{inside!r}], NEW_FILE)"
    )


# --- published archives, fetched by their library


def published_file(
    name: ModelName, url: str, sha256: str, cache: Path, download: Callable[[str, str], str]
) -> tuple[Path, str]:
    """(file, origin) of an archive whose URL carries its sha256, or the beginning of it."""
    target = cache / url.rsplit("/", 1)[-1]
    if target.is_file() and file_sha256(target).startswith(sha256):
        return target, f"{cache.name} cache"
    way_out = f"put {target.name} from {url} into {cache}, or give --model {name}=FILE"
    if is_offline():
        state = "is not the published file" if target.is_file() else "is not there"
        raise WeightsError(
            f"{name}: {target} {state} and HF_HUB_OFFLINE closes downloads; unset it, {way_out}"
        )
    try:
        with quiet():
            return Path(download(url, str(cache))), f"downloaded from {url}"
    except Exception as error:  # urllib's, tqdm's and the library's own checksum error
        raise WeightsError(f"{name}: download failed ({one_line(error)}); {way_out}") from error


# --- the hub


def hub_config(repo_id: str, filename: str) -> Path | None:
    """A file of a hub model if the hub's cache has it; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, filename)
    return Path(found) if isinstance(found, str) else None


def hub_folder(
    name: ModelName, repo_id: str = "", configs: tuple[str, ...] = (CONFIG, PROCESSOR)
) -> tuple[Path, str]:
    """(folder, origin) of a hub model: the cache if it is whole there, else the hub's client."""
    repo_id = repo_id or name.id
    config = hub_config(repo_id, CONFIG)
    has_configs = config and all((config.parent / file).is_file() for file in configs)
    if config and has_configs and weight_files(config.parent):
        return config.parent, "hub cache"
    from huggingface_hub import constants

    way_out = (
        f"put {', '.join(configs)} and {_WEIGHTS[0]} of {repo_id} into a folder and give "
        f"--model {name}=FOLDER"
    )
    if is_offline():
        raise WeightsError(
            f"{name}: not whole in {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE closes downloads; "
            f"unset it, or {way_out}"
        )
    try:
        with quiet():
            return _download(repo_id, configs), f"downloaded from {constants.ENDPOINT}"
    except Exception as error:  # the hub's, its HTTP library's and the disk's
        reason = hub_reason(error, constants.ENDPOINT)
        raise WeightsError(f"{name}: {reason}, or {way_out}") from error


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load, or none if they are not all there."""
    for single, index in zip(_WEIGHTS, _INDEXES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            shards = [folder / shard for shard in _shards(folder / index)]
            return shards if all(shard.is_file() for shard in shards) else []
    return []


def _shards(index: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is not an index of weights; get a clean copy") from error
    for shard in shards:
        if Path(shard).name != shard:
            raise WeightsError(
                f"{index} names a file outside its folder: {shard}; get a clean copy"
            )
    return shards


def _download(repo_id: str, configs: tuple[str, ...]) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # One question without retries: hf_hub_download asks an unreachable host six times, 23 s in all.
    get_hf_file_metadata(hf_hub_url(repo_id, CONFIG), timeout=TIMEOUT_S)
    folder = Path(hf_hub_download(repo_id, CONFIG)).parent

    def fetch(filename: str) -> Path | None:
        try:
            return Path(hf_hub_download(repo_id, filename, revision=folder.name))
        except (
            LocalEntryNotFoundError
        ):  # the network broke; a subclass of "the hub has no such file"
            raise
        except EntryNotFoundError:
            return None

    for file in configs[1:]:
        fetch(file)
    for single, index in zip(_WEIGHTS, _INDEXES, strict=True):
        if fetch(single):
            return folder
        if (listing := fetch(index)) and all(fetch(shard) for shard in _shards(listing)):
            return folder
    raise WeightsError(f"the repository holds neither {_WEIGHTS[0]} nor {_WEIGHTS[1]}")


def hub_reason(error: Exception, endpoint: str) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{endpoint} gives it only to who accepted its terms: accept them and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"{endpoint} has no such model, or it is private: check the name or set HF_TOKEN"
    return f"download from {endpoint} failed ({one_line(error)}): set HF_ENDPOINT to a mirror"


@contextmanager
def quiet() -> Iterator[None]:
    """Downloads that give up in seconds, and say so in our words alone; progress bars stay."""
    hub_log, timeout = logging.getLogger("huggingface_hub"), socket.getdefaulttimeout()
    level = hub_log.level
    hub_log.setLevel(logging.CRITICAL)
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub_log.setLevel(level)
        socket.setdefaulttimeout(timeout)
