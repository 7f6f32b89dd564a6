"""What is fuzzed: each reader of bytes that others may have written, and what it may answer.

A target's `run` returns "result", or "refused" where the reader said no in words of ours. Anything
else that escapes it is a defect: another exception, or words that are not one printable line.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from featprep import cli
from featprep.config import make_config, read_yaml
from featprep.decoding import DecodeRules, prepare_bytes
from featprep.differences import differences
from featprep.errors import FeatprepError, ImageError
from featprep.geometry import Geometry
from featprep.images import SUFFIXES, decode_mask
from featprep.ledger import Ledger, LedgerOptions, RunIdentity, read_run
from featprep.lock import RunLock
from featprep.naming import is_reserved, printable
from featprep.records import Failure, Features, ImageRef, Result
from featprep.resolve import has_vectors, layers_of
from featprep.runs import Run
from featprep.sources import Selection, Source
from featprep.stores.npy_files import read_array, read_json, read_npz
from featprep.stores.npy_tree import NpyTreeStore
from fuzz_inputs import damaged, image_seeds, odd_json, real_seeds, with_right_checksums

Outcome = Literal["result", "refused"]
LONGEST = 1000  # characters of a reason: people read it
PIXELS = 1 << 20  # of an image: bounds what a decoder may ask for


class BadWordsError(Exception):
    """A refusal that is no line a person can read."""


@dataclass(frozen=True, slots=True)
class Target:
    """`share`: of all inputs, beside the others' shares. `finish`: the last step of making one."""

    share: int
    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes, Path], Outcome]
    words: tuple[bytes, ...] = ()
    finish: Callable[[bytes, random.Random], bytes] = lambda data, dice: data

    def make(self, pool: list[bytes], dice: random.Random) -> bytes:
        return self.finish(damaged(dice.choice(pool), pool, self.words, dice), dice)


def check_words(text: str) -> Outcome:
    if not text or not text.isprintable() or len(text) > LONGEST:
        raise BadWordsError(f"{len(text)} characters: {text[:200]!r}")
    return "refused"


# ---- images

_GEOMETRIES = (
    Geometry("crop", (32, 32), 8, (4, 4)),
    Geometry("pad", (32, 48), 8, (4, 6)),
    Geometry("squash", (32, 32), 8, (4, 4)),
    Geometry("crop", (32, 32), 8, (4, 4), mask="coverage"),
)
_REF = ImageRef("a", "a.png", "a.png", 0, 0)


def _decode(data: bytes, folder: Path) -> Outcome:
    geometry = _GEOMETRIES[len(data) % len(_GEOMETRIES)]
    try:
        is_lenient, is_fast = len(data) % 8 > 3, len(data) // len(_GEOMETRIES) % 2 == 0
        rules = DecodeRules(geometry, PIXELS, allow_truncated=is_lenient, fast=is_fast)
        made = prepare_bytes(data, _REF, rules)
    except ImageError as error:
        return check_words(str(error))
    json.dumps(made.meta)
    assert made.pixels.dtype == np.uint8
    assert made.pixels.shape == (3, *geometry.size), made.pixels.shape
    assert made.mask is not None
    assert made.mask.shape == geometry.grid, made.mask.shape
    assert 0 <= made.mask.min() <= made.mask.max() <= 1
    return "result"


def _decode_mask(data: bytes, folder: Path) -> Outcome:
    try:
        mask = decode_mask(data, max_pixels=PIXELS)
    except ImageError as error:
        return check_words(str(error))
    assert mask.ndim == 2
    assert mask.dtype in (np.uint8, np.uint16)
    return "result"


_IMAGE_WORDS = (
    *(b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"IEND", b"acTL", b"fcTL", b"eXIf", b"iCCP", b"zTXt"),
    *(b"\xff\xd8", b"\xff\xd9", b"\xff\xe1", b"\xff\xda", b"\xff\xc0", b"\xff\xc4", b"\xff\xdb"),
    *(b"Exif\0\0", b"II*\0", b"MM\0*", b"RIFF", b"WEBP", b"VP8 ", b"VP8L", b"VP8X", b"ALPH"),
    *(b"ftypavif", b"meta", b"iloc", b"GIF89a", b"!\xf9\4", b",", b"BM", b"\0\0\0\0", b"\xff" * 4),
)


# ---- settings and lists


def _yaml(data: bytes, folder: Path) -> Outcome:
    path = folder / "c.yaml"
    path.write_bytes(data)
    try:
        read_yaml(str(path))
        make_config({"input": "i", "output": "o", "model": "tiny"}, str(path))
    except FeatprepError as error:
        return check_words(printable(str(error)))
    return "result"


def _yaml_seeds() -> list[bytes]:
    configs = Path(__file__).resolve().parent.parent / "configs"
    return [
        *(path.read_bytes() for path in sorted(configs.glob("*.yaml"))),
        b"model: clip:ViT-L/14\nsize: [224, 336]\nfp16: yes\nbackground: '#ff8800'\nlayer: -1,3\n",
        b"input: 2024_01\noutput: 0001\nshard: 1/4\nalpha_threshold: 0.5\nbatch_size: auto\n",
    ]


_YAML_WORDS = (
    *(b"!!python/object/apply:os.system ['x']", b"!!binary ", b"!!map ", b"&a ", b"*a", b"<<: *a"),
    *(b"[" * 400, b"{" * 400, b"- " * 300, b"? ", b": ", b"\n", b"---\n", b"...\n", b"%YAML 9\n"),
    *(b"|2\n", b">\n", b'"\\u202e\\x1b"', b"'", b"#", b"\t", b"\0", b"\xff\xfe", b"\xef\xbb\xbf"),
    *(b"size", b"layer", b"shard", b"nan", b".inf", b"-1", b"9" * 5000, b"1e999", b"0x", b"~"),
    *(b"\xc2\x85", b"\xe2\x80\xa8", b"\x1b[2J", b"1:60", b"2001-01-01"),
)


def _list(data: bytes, folder: Path) -> Outcome:
    path = folder / "list.txt"
    path.write_bytes(data)
    selection = Selection(SUFFIXES, lambda key: (f"{key}_mask.npy", f"{key}.npy"))
    try:
        source = Source(str(path), selection)
        source.census()
        entries = list(itertools.chain.from_iterable(source.folders()))
    except FeatprepError as error:
        return check_words(str(error))
    for entry in entries:
        if isinstance(entry, Failure):
            check_words(entry.reason)
        else:
            assert not is_reserved(entry.key), entry.key
    return "result"


_LIST_WORDS = (
    *(b"../", b"/", b"//", b"./", b"\0", b"\r\n", b"\n", b".featprep/", b".FEATPREP/x.png"),
    *(b"a.png", b"a.jpg", b"~", b"*", b"\xff", b"\xe2\x80\xae", b"\x1b[2J", b"x" * 300, b" "),
    *(b"/dev/zero.png", b"/proc/self/mem.png", b"-rf.png", b"\xff\xfe", b"\xef\xbb\xbf", b"\\"),
    *("😀.png\n".encode(), b"a_mask.png\n", b"__MACOSX/", b".hidden.png", b"C:\\a.png\n"),
)


# ---- what a run wrote

_LAYERS = (3, 1)
_MINE = {
    "format": 1,
    "encoder": "clip:tiny",
    "weights": "f" * 64,
    "layer": [3, 1],
    "norm": "auto",
    "feature": "patch",
    "prefix": True,
    "pooled": False,
    "masked_pool": False,
    "mask": "any",
    "compute": "float32",
    "storage": "float32",
    "resize": "crop",
    "size": [32, 32],
    "grid": [4, 4],
    "background": [0, 0, 0],
    "names": "stem",
    "tile": None,
}


def make_output(folder: Path) -> Path:
    """An output of three images, one of which failed, as a run leaves it."""
    output, source = folder / "out", folder / "in"
    if output.exists():
        return output
    source.mkdir()
    store = NpyTreeStore(str(output), layers=(1,), vectors=True, meta=True)
    lines = []
    for number, key in enumerate(("a", "s/b")):
        map_ = np.full((3, 4, 4), number, np.float32)
        features = Features({3: map_, 1: map_}, {"prefix": np.zeros((1, 3), np.float32)})
        meta = {name: _MINE[name] for name in ("format", "encoder", "weights")}
        meta |= {"key": key, "sha256": "0" * 64, "shape": [3, 4, 4], "dtype": "float32"}
        ref = ImageRef(key, f"{key}.png", "", 9, 9)
        made = Result(ref, features, np.ones((4, 4), np.uint8), "0" * 64, meta)
        files = store.write(key, made)
        lines.append({
            "key": key, "source": f"{key}.png", "size": 9, "mtime_ns": 9, "sha256": "0" * 64,
            "shape": [3, 4, 4], "dtype": "float32", "notes": [], "batch_size": 2,
            "files": {name: written.digest for name, written in files.items()},
            "bytes": {name: written.size for name, written in files.items()},
        })  # fmt: skip
    run = {"fingerprint": _MINE, "input": str(source), "about": {"device": "cpu", "batch_size": 4}}
    failed = {"key": "c", "source": "c.png", "stage": "decode", "reason": "PNG is truncated"}
    lock = {"host": "h", "machine": "m", "pid": 5, "started": "1", "run": "x"}
    ledger = output / ".featprep"
    ledger.mkdir()
    (ledger / "run.json").write_text(json.dumps(run, indent=1) + "\n")
    (ledger / "results-all.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (ledger / "failures.jsonl").write_text(json.dumps(failed) + "\n")
    (ledger / "lock-all").write_text(json.dumps(lock))
    return output


def _seed_of(file: str) -> Callable[[], list[bytes]]:
    def read() -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            return [(make_output(Path(folder)) / file).read_bytes()]

    return read


def _in_output(file: str, ask: Callable[[Path], Outcome]) -> Callable[[bytes, Path], Outcome]:
    """`ask` an output in which one file holds the input, and put that file back."""

    def run(data: bytes, folder: Path) -> Outcome:
        path = make_output(folder) / file
        before = path.read_bytes()
        path.write_bytes(data)
        try:
            return ask(folder / "out")
        finally:
            path.write_bytes(before)

    return run


def _ask_commands(output: Path) -> Outcome:
    """status, verify and both with --json: what they print is printable, and JSON is JSON."""
    refused = False
    for words in (["status"], ["status", "--json"], ["verify", "--deep"], ["verify", "--json"]):
        said, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            code = cli.main([words[0], str(output), *words[1:]])
        text = errors.getvalue()
        if code not in (0, 2, 3, 4):
            raise AssertionError(f"{words} exits with {code}: {text[-2000:]}")
        if code in (2, 4):
            refused = True
            check_words(text.removesuffix("\n"))
        elif "--json" in words:
            json.loads(said.getvalue())
        else:
            told = said.getvalue().removesuffix("\n").split("\n")
            assert all(map(str.isprintable, told)), told
    return "refused" if refused else "result"


def _ask_run(output: Path) -> Outcome:
    """A resume's and an --overwrite's look at run.json."""
    try:
        there = read_run(str(output))
        assert there is not None
        text = differences(there["fingerprint"], _MINE)
        if text is not None:
            check_words(text)
        layers_of(there["fingerprint"])
        repr(Run(output))
        with Ledger(
            str(output), RunIdentity(_MINE, there["input"]), LedgerOptions(), _never_called
        ) as ledger:
            ledger.state(ImageRef("a", "a.png", "", 9, 9), True)
    except FeatprepError as error:
        return check_words(printable(str(error)))
    finally:
        (output / ".featprep/lock-all").write_text("{}")
    return "result"


def _never_called(count: int, keys: Any, older: Any) -> None:
    """--overwrite that was stopped: what is to be removed is worked out as the command does it."""
    for run in older:
        sorted(layers_of(run)[1:])
        has_vectors(run)
    for key in keys:
        is_reserved(key)


def _ask_ledger(output: Path) -> Outcome:
    identity = RunIdentity(_MINE, str(output.parent / "in"))
    try:
        with Ledger(str(output), identity, LedgerOptions(), _never_called) as ledger:
            for key in ("a", "s/b", "c"):
                ledger.state(ImageRef(key, f"{key}.png", "", 9, 9), True)
            ledger.is_complete = False
    except FeatprepError as error:
        return check_words(printable(str(error)))
    finally:
        (output / ".featprep/lock-all").write_text("{}")
    return "result"


def _ask_lock(output: Path) -> Outcome:
    try:
        lock = RunLock(str(output / ".featprep"))
        lock.holders()
        lock.ask()
    except FeatprepError as error:
        return check_words(str(error))
    return "result"


def _ask_result(output: Path) -> Outcome:
    """What `featprep.open` gives of a key, all of it."""
    with Run(output) as run:
        try:
            result = run["a"]
            result.feature.tobytes()
            repr(result)
            dict(result.layers)
            dict(result.vectors or {})
        except KeyError:  # it takes the damaged map for another's mask or layer
            return "refused"
        except ValueError as error:
            return check_words(printable(str(error)))
    return "result"


def _reader(name: str, read: Callable[[str], object]) -> Callable[[bytes, Path], Outcome]:
    def run(data: bytes, folder: Path) -> Outcome:
        path = folder / name
        path.write_bytes(data)
        try:
            read(str(path))
        except ValueError as error:
            return check_words(printable(str(error)))
        return "result"

    return run


_NPY_WORDS = (
    *(b"\x93NUMPY", b"'descr'", b"'<f4'", b"'|O'", b"'fortran_order'", b"True", b"'shape'", b"(3,"),
    *(b"9" * 30, b"-1", b"9**9**9", b"'" * 3, b"(" * 200, b"{" * 200, b"__import__('os')", b"\0"),
    *(b"PK\3\4", b"PK\1\2", b"PK\5\6", b"prefix.npy", b"../x.npy", b"[('a','<f4')]", b"1e9", b"\\"),
)
_JSON_WORDS = (
    *(b"[" * 2000, b"{" * 50, b'"', b"\\ud800", b"\\u0000", b"NaN", b"-Infinity", b"1e999", b"\n"),
    *(
        b"9" * 5000,
        b"null",
        b'"key"',
        b'"files"',
        b'"fingerprint"',
        b'"clearing": true,',
        b",",
        b":",
    ),
    *(b'"clearing": [1],', b"\xff", b"\xef\xbb\xbf", b"\0", b"../", b"\\u001b[2J"),
)


def _structured(file: str) -> Callable[[bytes, random.Random], bytes]:
    """Of two inputs one keeps its grammar and says odd things, the other has damaged bytes."""
    whole = _seed_of(file)()[0]
    return lambda data, dice: odd_json(whole, dice) if dice.random() < 0.6 else data


def _ledger_target(share: int, file: str, ask: Callable[[Path], Outcome]) -> Target:
    path = f".featprep/{file}"
    return Target(share, _seed_of(path), _in_output(path, ask), _JSON_WORDS, _structured(path))


def make_targets() -> dict[str, Target]:
    """name → target."""
    images = image_seeds() + real_seeds()
    targets = {
        "image": Target(30, lambda: images, _decode, _IMAGE_WORDS, with_right_checksums),
        "mask": Target(6, lambda: images, _decode_mask, _IMAGE_WORDS, with_right_checksums),
        "yaml": Target(8, _yaml_seeds, _yaml, _YAML_WORDS),
        "list": Target(8, lambda: _LISTS, _list, _LIST_WORDS),
        "run": _ledger_target(3, "run.json", _ask_run),
        "run-told": _ledger_target(1, "run.json", _ask_commands),
        "results": _ledger_target(3, "results-all.jsonl", _ask_ledger),
        "results-told": _ledger_target(1, "results-all.jsonl", _ask_commands),
        "failures-told": _ledger_target(1, "failures.jsonl", _ask_commands),
        "lock": _ledger_target(4, "lock-all", _ask_lock),
        "array": Target(10, _seed_of("a.npy"), _reader("x.npy", read_array), _NPY_WORDS),
        "vectors": Target(10, _seed_of("a_vec.npz"), _reader("x.npz", read_npz), _NPY_WORDS),
        "metadata": Target(10, _seed_of("a.json"), _reader("x.json", read_json), _JSON_WORDS),
    }
    for file in ("a.npy", "a_mask.npy", "a@1.npy", "a_vec.npz", "a.json"):
        words = _JSON_WORDS if file.endswith("json") else _NPY_WORDS
        seeds = _seed_of(file)
        finish = _structured(file) if file == "a.json" else (lambda data, dice: data)
        targets[f"opened {file}"] = Target(2, seeds, _in_output(file, _ask_result), words, finish)
        targets[f"verified {file}"] = Target(
            1, seeds, _in_output(file, _ask_commands), words, finish
        )
    return targets


_LISTS = [
    b"a.png\nb/c.jpg\n/tmp/x.png\n",
    b"\xef\xbb\xbf../a.png\r\n\r\nb.tiff\r\n a b.gif\n",
    "Ordner/ä ö.webp\nx.txt\n".encode(),
]
