"""Files of weights: which there are, whether they are whole, how they are read without running
anything. Knows no network and no architecture: adapters say what counts.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import ModelName
from featprep.encoders.digests import file_sha256, hub_sha256
from featprep.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
INDEX = ".index.json"
_WRAPPERS = ("module.", "_orig_mod.", "model.", "clip.", "clip_model.")
# In the order in which transformers looks for them: one file, or the index of its shards.
WEIGHTS = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)


@dataclass(frozen=True, slots=True)
class Found:
    """The files of one encoder. `path`: what FAMILY:NAME=PATH takes, their folder or the one file.
    `weights`: those that hold tensors; `others`: what loading reads beside them.

    `origin`: where they came from, for people. `sha256`: of files whose publisher states it.
    """

    path: Path
    weights: tuple[Path, ...]
    origin: str
    others: tuple[Path, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.others, *self.weights)


def one_line(error: BaseException, width: int = 240) -> str:
    """What a library said, for the end of a message of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= width else text[: width - 1] + "…"


def local_file(path: str) -> Found:
    """Of FAMILY:NAME=FILE."""
    return Found(Path(path), (Path(path),), path)


def local_folder(path: str, configs: Sequence[str] = (CONFIG, PROCESSOR)) -> Found:
    """Of FAMILY:NAME=FOLDER, in the form of transformers and timm; what is lacking shows later."""
    folder, held = Path(path), weight_files(Path(path))
    others = tuple(folder / file for file in configs if (folder / file).is_file())
    return Found(folder, tuple(held), path, others, hub_sha256(held))


# --- reading


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
    if is_cut_off(path):
        raise WeightsError(
            f"{name}: {path} is cut off at {path.stat().st_size:,} bytes, as an interrupted copy "
            "is; get a whole one"
        )
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
    inside = max(nested, key=lambda key: len(table[key]), default="state_dict")
    raise WeightsError(
        f"{name}: {path} holds more than tensors; allowed is a plain state dict: "
        f"torch.save(torch.load(FILE)[{inside!r}], NEW_FILE)"
    )


def unwrapped(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without what wrappers put before every name: DistributedDataParallel, torch.compile, a
    trainer's own module."""
    for prefix in _WRAPPERS:
        if tensors and all(key.startswith(prefix) for key in tensors):
            return unwrapped({key.removeprefix(prefix): item for key, item in tensors.items()})
    return tensors


def of_tower(name: ModelName, path: Path, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors an encoder uses, by its own names for them.

    Refuses two under one name, and numbers that are not weights by themselves: eight bits and less
    stand for something only with their scales, and would load as if they were the values.
    """
    import torch

    held: dict[str, Tensor] = {}
    for key, item in named:
        if key in held and not torch.equal(held[key], item):
            raise WeightsError(f"{name}: {path} holds two tensors for {key}; get a clean copy")
        if item.is_complex() or (item.element_size() < 2 and item.dtype != torch.bool):
            kind = str(item.dtype).removeprefix("torch.")
            raise WeightsError(
                f"{name}: {path} holds {key} as {kind}, which is quantised or no weight; allowed "
                "is float32, bfloat16 or float16: get the checkpoint as it was published"
            )
        held[key] = item
    return held


# --- which there are, and whether they are whole


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load, or none if they are not all there."""
    listed = _listed(folder)
    return listed if all(file.is_file() for file in listed) else []


def need_weight_files(name: ModelName, folder: Path) -> list[Path]:
    """`weight_files`. Raises WeightsError that names what is lacking."""
    listed = _listed(folder)
    if not listed:
        raise WeightsError(f"{name}: {folder} holds no weights; put {WEIGHTS[0]} there")
    lacking = [file.name for file in listed if not file.is_file()]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise WeightsError(
            f"{name}: {folder} lacks {', '.join(lacking[:3])}{more}, which its index names; put "
            "all of them there"
        )
    return listed


def _listed(folder: Path) -> list[Path]:
    first = next((file for file in WEIGHTS if (folder / file).is_file()), None)
    if first is None:
        return []
    return shards(folder / first) if first.endswith(INDEX) else [folder / first]


def shards(index: Path) -> list[Path]:
    """The files an index names, beside it."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is not an index of weights; get a clean copy") from error
    for shard in names:
        if Path(shard).name != shard:
            raise WeightsError(
                f"{index} names a file outside its folder: {shard}; get a clean copy"
            )
    return [index.parent / shard for shard in names]


def is_cut_off(path: Path) -> bool:
    """Whether a file ends before its own header says, as an interrupted copy does; False where
    nothing says it. Its tensors are not read."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        return _end_of_safetensors(path) > size
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # torch.save's; the list of its parts ends it
    return size == 0 or (is_zip and not zipfile.is_zipfile(path))


def _end_of_safetensors(path: Path) -> int:
    """Eight bytes of length, a JSON header of that length, then the tensors it lists."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size:
            return size + 1
        try:
            rows = json.loads(file.read(length))
            ends = [row["data_offsets"][1] for key, row in rows.items() if key != "__metadata__"]
            return 8 + length + int(max(ends, default=0))
        except (ValueError, LookupError, TypeError, AttributeError):
            return 0  # broken in another way, which reading it will tell
