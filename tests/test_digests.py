"""What identifies weights, and that it is kept: hashed once, and never taken for another's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from featprep.encoders import digests, load_encoder
from featprep.encoders.base import LoadOptions, ModelName
from featprep.encoders.tiny import write_tiny
from safetensors.torch import load_file, save_file
from torch import Tensor


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, where every digest is kept, however small what it is of."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "KEPT_FROM", 0)
    return tmp_path / "cache/featprep/digests"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tensors of each hashing; files count as 1."""
    calls: list[int] = []
    of_tensors, of_file = digests._digest, digests.file_sha256
    monkeypatch.setattr(
        digests, "_digest", lambda *given: (calls.append(len(given[0])), of_tensors(*given))[1]
    )
    monkeypatch.setattr(digests, "file_sha256", lambda path: (calls.append(1), of_file(path))[1])
    return calls


def tensors_of(seed: int = 0) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {name: torch.randn(40, 50, generator=drawn) for name in ("a", "b")}


def saved(file: Path, tensors: dict[str, Tensor], mtime_ns: int | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    if mtime_ns:
        os.utime(file, ns=(mtime_ns, mtime_ns))
    return file


# --- what it is of


def test_the_digest_depends_on_every_name_value_shape_and_setting() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5)}
    digest = digests.digest(tensors, {"eps": 1e-6})
    assert len(digest) == 64
    assert digest == digests.digest(dict(reversed(tensors.items())), {"eps": 1e-6})
    nudged = tensors["a"].clone()
    nudged[1, 2] = torch.nextafter(nudged[1, 2], torch.tensor(9.0))
    others = [
        digests.digest({**tensors, "a": nudged}, {"eps": 1e-6}),
        digests.digest({**tensors, "a": tensors["a"].reshape(3, 2)}, {"eps": 1e-6}),
        digests.digest({"a": tensors["b"], "b": tensors["a"]}, {"eps": 1e-6}),
        digests.digest({"a": tensors["a"]}, {"eps": 1e-6}),
        digests.digest(tensors, {"eps": 1e-5}),
    ]
    assert len({digest, *others}) == 6


def test_the_digest_is_of_values_and_not_of_storage() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    digest = digests.digest({"a": whole}, {})
    for other in (whole.half(), whole.bfloat16(), whole.T.contiguous().T):
        assert digests.digest({"a": other}, {}) == digest


# --- what is kept


def test_a_second_load_hashes_nothing(cache: Path, hashed: list[int], tmp_path: Path) -> None:
    for family in ("clip", "hf", "openclip"):
        path = write_tiny(family, tmp_path / family)
        name = ModelName(family, "ViT-B-32" if family == "openclip" else "x", str(path))
        hashed.clear()
        first = load_encoder(name, LoadOptions()).digest
        assert len(hashed) == 1, family
        assert load_encoder(name, LoadOptions()).digest == first
        assert len(hashed) == 1, family
    assert len(list(cache.iterdir())) == 3


def test_a_file_that_changed_is_hashed_again(
    cache: Path, hashed: list[int], tmp_path: Path
) -> None:
    file, tensors = saved(tmp_path / "x", tensors_of(), mtime_ns=10**18), tensors_of()
    first = digests.digest(tensors, {}, [file])
    assert digests.digest(tensors, {}, [file]) == first
    assert hashed == [2]
    os.utime(file, ns=(10**18, 10**18 + 1))
    assert digests.digest(tensors, {}, [file]) == first
    assert hashed == [2, 2]
    with file.open("ab") as more:
        more.write(b" ")
    os.utime(file, ns=(10**18, 10**18))
    assert digests.digest(tensors, {}, [file]) == first
    assert hashed == [2, 2, 2]
    other = saved(tmp_path / "y", tensors, mtime_ns=10**18)
    assert digests.digest(tensors, {}, [file, other]) == first
    assert hashed == [2, 2, 2, 2]


def test_other_settings_or_tensors_of_one_file_have_their_own_digests(
    cache: Path, hashed: list[int], tmp_path: Path
) -> None:
    file, tensors = saved(tmp_path / "x", tensors_of()), tensors_of()
    asked: list[tuple[dict[str, Tensor], dict[str, object]]] = [
        (tensors, {}),
        (tensors, {"eps": 1}),
        ({"a": tensors["a"]}, {}),
        ({"a": tensors["a"], "b": tensors["b"].reshape(50, 40)}, {}),
        ({"a": tensors["b"], "b": tensors["a"]}, {}),
    ]
    wanted = [digests.digest(*each) for each in asked]
    hashed.clear()
    for _ in range(2):
        assert [digests.digest(*each, [file]) for each in asked] == wanted
    assert hashed == [2, 2, 1, 2, 2]


def test_other_weights_of_one_path_size_and_time_are_told_apart(
    cache: Path, tmp_path: Path
) -> None:
    """As an unpacked archive or an image of a container leaves them."""
    file = saved(tmp_path / "x", tensors_of(0), mtime_ns=10**18)
    before = digests.digest(load_file(file), {}, [file])
    saved(file, tensors_of(1), mtime_ns=10**18)
    after = digests.digest(load_file(file), {}, [file])
    assert after == digests.digest(tensors_of(1), {}) != before


def test_one_set_of_weights_has_one_digest_by_every_route(
    cache: Path, hashed: list[int], tmp_path: Path
) -> None:
    """A run resumes where the hub's cache has moved, or where its files were copied out."""
    folder = write_tiny("hf", tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    copy = shutil.copytree(folder, tmp_path / "copy")
    routes = [folder, snapshot, copy]
    found = {load_encoder(ModelName("hf", "x", str(at)), LoadOptions()).digest for at in routes}
    assert len(found) == 1
    assert len(hashed) == 2  # the links lead to what was hashed


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"sha256": 7}', b'{"sha256": "abc"}', b"\xff", b"[" * 9999],
)
def test_a_damaged_entry_is_passed_over_and_written_anew(
    cache: Path, hashed: list[int], tmp_path: Path, content: bytes
) -> None:
    file = saved(tmp_path / "x", tensors_of())
    first = digests.digest(tensors_of(), {}, [file])
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(content)
    assert digests.digest(tensors_of(), {}, [file]) == first
    assert (hashed, entry.read_bytes()) == ([2, 2], whole)
    assert json.loads(whole) == {"sha256": first}


@pytest.mark.parametrize("home", ["a file", "relative", "none"])
def test_a_cache_that_cannot_be_had_costs_the_hashing_and_nothing_else(
    cache: Path, hashed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if home == "a file":
        (tmp_path / "cache").write_bytes(b"")
    else:  # a relative one is to be passed over, as its specification has it
        monkeypatch.setenv("XDG_CACHE_HOME", "here")
        monkeypatch.setattr(os.path, "expanduser", lambda path: "no home")
    file = saved(tmp_path / "x", tensors_of())
    for _ in range(2):
        assert digests.digest(tensors_of(), {}, [file]) == digests.digest(tensors_of(), {})
    assert hashed == [2, 2, 2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "x"][home != "a file" :]


def test_what_is_small_or_no_longer_there_is_not_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path / "x", tensors_of())
    digests.digest(tensors_of(), {}, [tmp_path / "gone"])
    monkeypatch.setattr(digests, "KEPT_FROM", 50_000_000)
    digests.digest(tensors_of(), {}, [file])
    digests.kept_sha256(file)
    assert not cache.exists()


def test_many_that_start_together_agree_and_leave_one_whole_entry(
    cache: Path, tmp_path: Path
) -> None:
    file, tensors = saved(tmp_path / "x", tensors_of()), tensors_of()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: digests.digest(tensors, {}, [file]), range(64)))
    (entry,) = cache.iterdir()
    assert {json.loads(entry.read_bytes())["sha256"]} == found


def test_a_files_own_sha256_is_kept_until_it_changes(
    cache: Path, hashed: list[int], tmp_path: Path
) -> None:
    file = saved(tmp_path / "x", tensors_of(), mtime_ns=10**18)
    wanted = hashlib.sha256(file.read_bytes()).hexdigest()
    assert [digests.kept_sha256(file), digests.kept_sha256(file)] == [wanted, wanted]
    assert hashed == [1]
    saved(file, tensors_of(1), mtime_ns=10**18 + 1)
    assert digests.kept_sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest() != wanted


def test_the_hubs_sha256_is_read_off_the_first_link_alone(tmp_path: Path) -> None:
    """Blobs may be links into a store shared by repositories, whose names are other hashes."""
    sha256, other, git = "a" * 64, "b" * 64, "c" * 40
    (tmp_path / "store").mkdir()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "store" / other).write_bytes(b"")
    (tmp_path / "blobs" / sha256).symlink_to(f"../store/{other}")
    (tmp_path / "blobs" / git).write_bytes(b"")
    files = [tmp_path / name for name in ("model.bin", "config.json", "direct", "plain", "gone")]
    files[0].symlink_to(f"blobs/{sha256}")
    files[1].symlink_to(f"blobs/{git}")
    files[2].symlink_to(f"store/{other}")
    files[3].write_bytes(b"")
    assert digests.hub_sha256(files) == {"model.bin": sha256}
