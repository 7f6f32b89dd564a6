"""Verify: every damage is named in one line, moved aside on request, and made again."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import DEEP, FakeEncoder
from featprep import cli
from featprep.commands import encode_run
from featprep.lock import RunLock
from featprep.records import AnyArray
from PIL import Image
from test_encode_run import Bench, InlinePool, bench  # noqa: F401 (a fixture)

ALL = ("--layer", "-1,2", "--prefix", "--pooled", "--masked_pool", "--save_meta", "--size", "32")
FILES = [f"b{ending}" for ending in (".json", ".npy", "@2.npy", "_mask.npy", "_vec.npz")]


@pytest.fixture
def made(bench: Bench) -> Bench:  # noqa: F811
    """Three results of five files each."""
    bench.encoder = FakeEncoder(spec=DEEP)
    for number, name in enumerate(("a", "b", "sub/c")):
        bench.image(f"{name}.png", (90 * number, 50, 20, 255))
    assert bench.run(*ALL) == 0
    return bench


def verify(made: Bench, *flags: str) -> tuple[int, list[str]]:
    code = cli.main(["verify", str(made.output), *flags])
    said = made.capsys.readouterr()
    assert said.err == ""
    return code, said.out.splitlines()


def named(lines: list[str]) -> list[str]:
    """The lines of findings, which stand before the closing ones."""
    return lines[: next(i for i, line in enumerate(lines) if " results, " in line)]


def flip(path: Path) -> None:
    """One bit of the last value."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def change(**values: object) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return work


def save(make: Callable[[AnyArray], AnyArray]) -> Callable[[Path], None]:
    return lambda path: np.save(path, make(np.load(path)))


def set_first(value: float) -> Callable[[Path], None]:
    def work(array: AnyArray) -> AnyArray:
        array.flat[0] = value
        return array

    return save(work)


def flip_in_zip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = zipfile.ZipFile(path).infolist()[0].header_offset
    data[start + 30 + len("prefix.npy") + 128] ^= 1
    path.write_bytes(data)


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("", "b.npy", lambda p: os.truncate(p, 200), "is 200 bytes long, 320 were written"),
    ("", "b.npy", Path.unlink, "is not there"),
    ("", "b_mask.npy", Path.unlink, "is not there"),
    ("", "b@2.npy", Path.unlink, "is not there"),
    ("", "b_vec.npz", Path.unlink, "is not there"),
    ("", "b.json", Path.unlink, "is not there"),
    ("", "b_mask.npy", become_folder, "is no file"),
    ("", "b.npy", save(lambda a: a.reshape(3, 2, 8)),
     "is (3,2,8) float32, recorded is (3,4,4) float32"),
    ("", "b.npy", save(lambda a: a.view(np.int32)),
     "is (3,4,4) int32, recorded is (3,4,4) float32"),
    ("", "b@2.npy", save(lambda a: a.reshape(3, 16, 1)),
     "is (3,16,1) float32, recorded is (3,4,4) float32"),
    ("", "b_mask.npy", save(lambda a: a.reshape(2, 8)),
     "is (2,8) uint8, recorded is (4,4) uint8"),
    ("", "b.npy", lambda p: p.write_bytes(b"x" * 320), "is no whole .npy file"),
    ("", "b_vec.npz", flip_in_zip, "is no whole .npz file"),
    ("--deep", "b.npy", flip,
     "its bytes are not those that were written (their xxh3-128 differs)"),
    ("--deep", "b_mask.npy", set_first(0),
     "its bytes are not those that were written (their xxh3-128 differs)"),
    ("--deep", "b_mask.npy", set_first(2), "holds values outside 0 … 1"),
    ("--deep", "b@2.npy", set_first(np.nan), "holds values that are not finite"),
]  # fmt: skip


@pytest.mark.parametrize(("deep", "file", "damage", "text"), DAMAGES)
def test_a_damage_is_named_and_once_moved_aside_made_again_to_the_same_bytes(
    made: Bench, deep: str, file: str, damage: Callable[[Path], object], text: str
) -> None:
    whole, flags = made.tree(), [deep] * bool(deep)
    lines = (made.output / ".featprep/results-all.jsonl").read_text().splitlines()
    damage(made.output / file)
    code, said = verify(made, *flags)
    assert (code, named(said)) == (3, [f"{file}: {text}"])
    assert verify(made, *flags, "--repair")[0] == 3
    assert [name for name in made.tree() if name.startswith("b")] == []
    (aside,) = (made.output / ".featprep/aside").iterdir()
    gone = [file] * (damage is Path.unlink)
    assert sorted(os.listdir(aside)) == sorted({*FILES, "results.jsonl"} - {*gone})
    assert (aside / "results.jsonl").read_text().splitlines() == [lines[1]]
    assert verify(made, "--deep")[0] == 0
    assert made.run(*ALL) == 0
    assert "1 encoded, 2 skipped, 0 failed" in made.said
    assert made.tree() == whole
    assert verify(made, "--deep")[0] == 0


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (change(shape=[3, 4, 5]), "says shape [3, 4, 5], recorded is [3, 4, 4]"),
        (change(weights="0" * 64), "says weights 000000000000…, recorded is ffffffffffff…"),
        (lambda path: path.write_text("{"), "is no whole JSON object"),
    ],
)
def test_metadata_that_says_otherwise_is_named_where_no_length_tells(
    made: Bench, damage: Callable[[Path], object], text: str
) -> None:
    _rewrite(made, lambda line: line.pop("bytes"))
    damage(made.output / "b.json")
    assert (verify(made)[0], named(verify(made)[1])) == (3, [f"b.json: {text}"])


def test_of_older_records_without_lengths_arrays_are_still_held_against_their_own(
    made: Bench,
) -> None:
    _rewrite(made, lambda line: line.pop("bytes"))
    assert verify(made, "--deep")[0] == 0
    os.truncate(made.output / "a.npy", 300)
    with (made.output / "b.npy").open("ab") as file:
        file.write(b"more")
    assert named(verify(made)[1]) == [
        "a.npy: is no whole .npy file",
        "b.npy: has 4 bytes after its array",
    ]


def _rewrite(made: Bench, alter: Callable[[dict], object]) -> None:
    """The records, each as `alter` leaves it."""
    path = made.output / ".featprep/results-all.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        alter(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("alter", "finding"),
    [
        (lambda line: line["files"].pop("b_mask.npy"),
         ["b_mask.npy: its record does not name it", "b_mask.npy: no record names it"]),
        (lambda line: line["files"].update({"../b.npy": "0" * 32}),
         ["../b.npy: its record names it, and no result of that key has such a file"]),
        (lambda line: line.update(shape=[3, -4, 4]),
         ["b.npy: no map of this run is [3, -4, 4] float32, as recorded"]),
        (lambda line: line.update(dtype="float16"),
         ["b.npy: no map of this run is [3, 4, 4] float16, as recorded"]),
        (lambda line: line.update(shape=[3, 4, "x" * 5000]),
         ["b.npy: no map of this run is [3, 4, 'xxxx… float32, as recorded"]),
        (lambda line: line["bytes"].update({"b.npy": None, "b_mask.npy": "144"}),
         ["b_mask.npy: is 144 bytes long, 144 were written"]),
        (lambda line: line["bytes"].update({"b.npy": [], "b_mask.npy": 10**400}),
         ["b_mask.npy: is 144 bytes long, " + f"{10**400:,} were written",
          "b.npy: is 320 bytes long, [] were written"]),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_is_named(
    made: Bench, alter: Callable[[dict], object], finding: list[str]
) -> None:
    _rewrite(made, lambda line: alter(line) if line["key"] == "b" else None)
    code, said = verify(made)
    assert (code, named(said)) == (3, finding)


def test_a_record_never_leads_out_of_the_output(made: Bench) -> None:
    outside = made.root / "x.npy"
    outside.write_bytes(b"mine")
    _rewrite(made, lambda line: line.update(key="../x") if line["key"] == "b" else None)
    assert named(verify(made, "--repair")[1])[0] == (
        "../x.npy: its record names no place in the output"
    )
    assert outside.read_bytes() == b"mine"
    assert named(verify(made)[1]) == [f"{name}: no record names it" for name in sorted(FILES)]


def test_what_no_record_names_is_told_and_left_alone(made: Bench) -> None:
    made.output.joinpath("notes.txt").write_text("mine")
    made.output.joinpath("sub/c_mask_mask.npy").write_bytes(b"")
    made.output.joinpath("sub/.fp-all-beef.tmp").write_bytes(b"")
    made.output.joinpath("._a.npy").write_bytes(b"macOS")
    os.symlink("sub", made.output / "link")
    before = made.tree()
    for flags in ([], ["--repair"]):
        code, said = verify(made, *flags)
        assert (code, named(said)) == (
            3,
            [
                "link: no record names it",
                "notes.txt: no record names it",
                "sub/.fp-all-beef.tmp: a temporary file of a run that was killed; the next run "
                "removes it",
                "sub/c_mask_mask.npy: no record names it",
            ],
        )
    assert said[-1] == "  1 temporary files; 3 files that no record names, left alone"
    assert made.tree() == before


def test_images_and_annotations_of_an_input_that_is_the_output_are_not_foreign(
    bench: Bench,  # noqa: F811
) -> None:
    bench.image("out/a.png")
    bench.output.symlink_to(bench.input / "out")
    (bench.output / "a.txt").write_text("annotation")
    bench.monkeypatch.setattr(Bench, "input", property(lambda self: self.output))
    assert bench.run() == 0
    assert verify(bench) == (
        0,
        [
            f"{bench.output}: 1 results, 2 files, 464 B, not read whole; --deep reads every byte",
            "  all as recorded, and nothing else there",
        ],
    )


def test_shards_and_several_encoders_are_gone_over_by_their_names(
    bench: Bench,  # noqa: F811
) -> None:
    bench.encoder, bench.others = FakeEncoder(spec=DEEP), {"hf": FakeEncoder(digest="e" * 64)}
    for name in "abcd":
        bench.image(f"{name}.png")
    words = ("--model", "clip:tiny,hf:tiny", "--size", "32")
    assert bench.run(*words, "--shard", "1/2") == 0
    assert bench.run(*words, "--shard", "2/2") == 0
    whole = bench.tree()
    (bench.output / "hf_tiny/b.npy").unlink()
    code, said = verify(bench, "--deep", "--repair")
    assert (code, said[:4]) == (
        3,
        [
            f"{bench.output}/clip_tiny: 4 results, 8 files, 1.9 kB, every byte read",
            "  all as recorded, and nothing else there",
            "hf_tiny/b.npy: is not there",
            f"{bench.output}/hf_tiny: 4 results, 8 files, 1.9 kB, every byte read",
        ],
    )
    assert bench.run(*words, "--shard", "1/2") == bench.run(*words, "--shard", "2/2") == 0
    assert {name: data for name, data in bench.tree().items() if name in whole} == whole
    assert verify(bench, "--deep")[0] == 0


def test_json_says_the_same(made: Bench) -> None:
    (made.output / "b.npy").unlink()
    assert cli.main(["verify", str(made.output), "--json"]) == 3
    size = sum(map(len, made.tree().values())) + 320
    assert json.loads(made.capsys.readouterr().out) == {
        "ok": False,
        "outputs": [
            {
                "title": "",
                "at_work": [],
                "results": 3,
                "files": 15,
                "bytes": size,
                "findings": [
                    {"kind": "damaged", "file": "b.npy", "text": "is not there", "key": "b"}
                ],
                "aside": None,
            }
        ],
    }


def test_while_a_run_works_what_it_has_not_recorded_is_passed_over_and_repair_refused(
    made: Bench,
) -> None:
    (made.output / ".fp-all-beef.tmp").write_bytes(b"")
    (made.output / "new.npy").write_bytes(b"")
    (made.output / "b.npy").unlink()
    with RunLock(str(made.output / ".featprep"), "1-of-2"):
        code, said = verify(made)
        assert cli.main(["verify", str(made.output), "--repair"]) == 2
    assert (code, said[:2]) == (
        3,
        [
            "b.npy: is not there",
            f"at work: pid {os.getpid()} on host {socket.gethostname()}; what it has not recorded "
            "yet is passed over",
        ],
    )
    assert "another run works on shard 1/2 of" in made.capsys.readouterr().err
    assert (made.output / "b_mask.npy").exists()


def test_an_overwrite_that_was_stopped_is_told(made: Bench) -> None:
    path = made.output / ".featprep/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "clearing": True}))
    assert named(verify(made)[1]) == [
        ".featprep/run.json: a run with --overwrite was stopped while it removed older results; "
        "start it again"
    ]


def test_where_no_run_wrote_there_is_nothing_to_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"featprep: {tmp_path}: no featprep run here (no .featprep/run.json in it)\n"
    )


def test_the_commands_of_the_document_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encode_run, "DecodePool", InlinePool)
    Path("photos").mkdir()
    Image.new("RGBA", (40, 30), (90, 60, 30, 200)).save("photos/a.png")
    text = (Path(__file__).parent.parent / "docs/verify.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    words = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    assert [word[:2] for word in words] == [
        ["featprep", name] for name in ("encode", *["verify"] * 3, *["status"] * 2, "encode")
    ]
    assert [cli.main(word[1:]) for word in words] == [0] * 7
    assert "all as recorded, and nothing else there" in capsys.readouterr().out
