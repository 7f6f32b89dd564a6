"""featprep vectorize: one vector an image, of one model or several; tables, resume, refusals; by an
encoder that can be computed by hand, and against upstream's own code on small real checkpoints."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import DEEP, SPEC, FakeEncoder, fake_session
from featprep import devices
from featprep.cli import main, main_vectorize
from featprep.commands import vectorize_run
from featprep.encoders import tiny
from featprep.encoders.random_modules import write_timm, write_torchvision
from featprep.encoders.thread_copies import ThreadCopies
from featprep.errors import WeightsError
from featprep.stores.row_file import RowFile
from featprep.stores.vector_files import VectorFile
from featprep.tasks import models as task_models
from featprep.tasks.models import open_model
from featprep.tasks.vectors import count_gflop, join_member, unit
from PIL import Image
from test_encode_run import InlinePool

# Of an image of one colour: clip:tiny gives the colour, hf:tiny twice it, timm:tiny half.
FAKES = {
    "clip": FakeEncoder(spec=DEEP),
    "hf": FakeEncoder(spec=replace(DEEP, name="fake:cls", pooled=False), scale=2.0),
    "timm": FakeEncoder(spec=replace(SPEC, name="fake:mean", cls=False), scale=0.5),
}


@dataclass
class Bench:
    """A folder of images, a table, and runs of the command over them."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    fakes: dict[str, FakeEncoder] = field(default_factory=lambda: dict(FAKES))
    decoded: list[str] = field(default_factory=list)
    out: str = ""
    said: str = ""

    def image(self, name: str, colour: tuple[int, int, int]) -> Path:
        path = self.root / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), colour).save(path)
        return path

    def run(self, *flags: str, models: str = "clip:tiny", output: str | None = "v.npy") -> int:
        self.monkeypatch.setattr(vectorize_run, "open_session", self._open)
        self.monkeypatch.setattr(vectorize_run, "DecodePool", self._pool())
        words = [f"--models={models}", "--batch_size=2", *flags]
        if not any(flag.startswith("--image_path") for flag in flags):
            words.append(f"--image_path={self.root / 'in'}")
        code = main(["vectorize", *words, *([f"--output={self.root / output}"] if output else [])])
        self.out, self.said = self.capsys.readouterr()
        return code

    def table(self, name: str = "v.npy") -> dict[str, list[float]]:
        """key → vector."""
        rows: dict[str, list[float]] = {}
        for batch in VectorFile(str(self.root / name)).batches():
            rows |= dict(zip(batch.keys, batch.vectors.tolist(), strict=True))
        return rows

    def _open(self, config: Any, name: Any, **options: Any) -> Any:
        if name.family == "openclip":
            raise WeightsError("no weights of it here")
        return fake_session(self.fakes[name.family])(config, name)

    def _pool(self) -> type[InlinePool]:
        bench = self

        class Pool(InlinePool):
            def run(self, jobs, rules, ahead) -> Iterator:  # noqa: ANN001
                for job in jobs:
                    bench.decoded.append(job[0].key)
                    yield from super().run([job], rules, ahead)

        return Pool


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    bench = Bench(tmp_path, monkeypatch, capsys)
    for name, red in (("b.png", 30), ("a.png", 10), ("sub/c.png", 50)):
        bench.image(name, (red, 0, 40))
    return bench


# --- what a vector is


def test_the_vectors_of_several_models_stand_one_after_the_other_in_the_order_given(
    bench: Bench,
) -> None:
    assert bench.run(models="hf:tiny,clip:tiny,timm:tiny") == 0
    assert bench.table() == {
        "a": [20, 0, 80, 10, 0, 40, 5, 0, 20],
        "b": [60, 0, 80, 30, 0, 40, 15, 0, 20],
        "sub/c": [100, 0, 80, 50, 0, 40, 25, 0, 20],
    }


def test_each_image_is_decoded_once_for_all_models(bench: Bench) -> None:
    bench.run(models="hf:tiny,clip:tiny,timm:tiny")
    assert bench.decoded == ["a", "b", "sub/c"]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("none", [30, 0, 40, 15, 0, 20]),
        ("each", [0.6, 0, 0.8, 0.6, 0, 0.8]),
        ("all", [0.6 / 1.25**0.5, 0, 0.8 / 1.25**0.5, 0.3 / 1.25**0.5, 0, 0.4 / 1.25**0.5]),
    ],
)
def test_vectors_are_divided_by_their_lengths_as_asked(
    bench: Bench, how: str, expected: list[float]
) -> None:
    bench.run(f"--normalize={how}", models="clip:tiny,timm:tiny")
    assert bench.table()["b"] == pytest.approx(expected, rel=1e-6)


def test_a_vector_of_zeros_stays_zeros() -> None:
    assert unit(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


def test_half_precision_is_rounded_after_the_normalization(bench: Bench) -> None:
    bench.fakes["clip"] = FakeEncoder(spec=DEEP, scale=1e5)  # does not fit float16
    assert bench.run("--fp16", "--normalize=all") == 0
    assert np.load(bench.root / "v.npy").dtype == np.float16
    assert bench.table()["b"] == pytest.approx([0.6, 0, 0.8], rel=1e-3)
    assert bench.run("--fp16", output="w.npy") == 3
    assert bench.table("w.npy") == {}
    assert (
        "failed   a.png: encode: its vector reaches 4e+06 and does not fit float16; run without "
        "--fp16\n"
    ) in bench.said


def test_models_load_one_by_one_with_their_sizes_and_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GFLOP by hand of three blocks of width 64 with 257 tokens; resnet18's are torchvision's."""
    path = write_torchvision("resnet18", tmp_path)
    Image.new("RGB", (300, 260), (10, 20, 30)).save(tmp_path / "a.png")
    models = f"clip:tiny,torchvision:resnet18={path}"
    assert main(["vectorize", f"--image_path={tmp_path}/a.png", f"--models={models}"]) == 0
    out, said = capsys.readouterr()
    tokens, width = 257, 64
    block = 2 * tokens * width * 12 * width + 4 * tokens**2 * width
    tiny_gflop = (2 * 256 * width * 3 * 14**2 + 3 * block + 2 * width * 32) / 1e9
    resnet_gflop = 2 * (1.814073344 - 0.000512)  # multiplications, without the classifier's
    assert re.search(r"clip:tiny  32 values .* GFLOP an image \(1\.00×\)  loaded in [\d.]+ s", said)
    assert f"{tiny_gflop:.3g} GFLOP" in said
    assert f"{resnet_gflop:.3g} GFLOP an image ({resnet_gflop / tiny_gflop:.2f}×)" in said
    assert "device  cpu" in out
    assert f"544 values of 2 models, normalize none; {resnet_gflop + tiny_gflop:.3g} GFLOP" in out
    assert re.search(r"^time    \d+ ms: read and decode \d+, encode \d+$", out, re.MULTILINE)
    assert "shape   (544,) float32" in out


def test_the_cost_of_fused_attention_is_counted_too() -> None:
    """torchvision's ViTs take torch's fast path, whose one operation the counter does not know."""
    tokens, width = 10, 16
    attention = torch.nn.MultiheadAttention(width, 2, batch_first=True).eval()
    attention.requires_grad_(False)
    x = torch.ones(1, tokens, width)
    _, gflop = count_gflop(lambda: attention(x, x, x, need_weights=False))
    flop = 2 * tokens * width * 4 * width + 4 * tokens**2 * width
    assert gflop == pytest.approx(flop / 1e9)


def test_of_one_image_the_vector_itself_is_printed(bench: Bench) -> None:
    assert bench.run(f"--image_path={bench.root}/in/b.png", output=None, models="clip:tiny") == 0
    assert bench.out.splitlines()[-4:] == [
        "shape   (3,) float32", "first   30, 0, 40", "mean    23.3333", "std     16.9967",
    ]  # fmt: skip
    assert bench.run(f"--image_path={bench.root}/in/b.png", output="one.npy") == 0
    assert "first   30, 0, 40\n" in bench.out
    assert bench.table("one.npy") == {"b": [30, 0, 40]}


# --- parity


def upstream() -> dict[str, Callable[[Path, Image.Image], Any]]:
    """Model → what its own library gives of an image, preprocessing included."""

    def of_clip(path: Path, image: Image.Image) -> Any:
        import clip

        model, preprocess = clip.load(str(path), device="cpu")
        return model.encode_image(preprocess(image)[None])[0]

    def of_torchvision(path: Path, image: Image.Image) -> Any:
        from torchvision import models

        model = models.resnet18()
        model.load_state_dict(torch.load(path, weights_only=True))
        model.fc = torch.nn.Identity()
        pixels = models.ResNet18_Weights.DEFAULT.transforms()(image)
        return model.eval()(pixels[None])[0]

    def of_timm(path: Path, image: Image.Image) -> Any:
        import timm

        model = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=0).eval()
        data = timm.data.resolve_model_data_config(model)
        return model(timm.data.create_transform(**data)(image)[None])[0]

    def of_hf(path: Path, image: Image.Image) -> Any:
        from transformers import AutoModel, BitImageProcessorPil

        processor = BitImageProcessorPil(
            size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3,
            image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
        )  # fmt: skip
        model = AutoModel.from_pretrained(path).eval()
        return model(**processor(image, return_tensors="pt")).pooler_output[0]

    return {"clip:mine": of_clip, "torchvision:resnet18": of_torchvision,
            "timm:test_vit": of_timm, "hf:mine": of_hf}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*pkg_resources.*", "ignore:.*torch.jit.*")
def test_an_ensemble_equals_what_each_library_gives_of_the_file(tmp_path: Path) -> None:
    paths = {
        "clip:mine": tiny.write_tiny("clip", tmp_path / "clip"),
        "torchvision:resnet18": write_torchvision("resnet18", tmp_path),
        "timm:test_vit": write_timm("test_vit", tmp_path / "timm"),
        "hf:mine": tiny.write_tiny("hf", tmp_path / "hf"),
    }
    noise = np.random.default_rng(0).integers(0, 256, (30, 37, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((333, 270), Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.png")
    sessions = [
        join_member(name, open_model("test", f"{name}={path}", {})) for name, path in paths.items()
    ]
    models = ",".join(f"{name}={path}" for name, path in paths.items())
    words = [f"--image_path={tmp_path}/a.png", f"--models={models}", "--workers=1"]
    assert main(["vectorize", *words, f"--output={tmp_path}/v.npy", "--quiet"]) == 0
    (row,) = np.load(tmp_path / "v.npy")
    with torch.no_grad():
        wanted = [make(paths[name], image).float().numpy() for name, make in upstream().items()]
    assert [len(vector) for vector in wanted] == [member.dim for member in sessions]
    np.testing.assert_allclose(row, np.concatenate(wanted), atol=2e-5, rtol=1e-5)


# --- tables


def test_a_parquet_file_has_key_source_model_and_vector_and_says_what_made_it(bench: Bench) -> None:
    import pyarrow.parquet

    bench.run(models="clip:tiny,timm:tiny", output="v.parquet")
    table = pyarrow.parquet.read_table(bench.root / "v.parquet")
    assert table.to_pylist()[2] == {
        "key": "sub/c", "path": f"{bench.root}/in/sub/c.png", "model": "clip:tiny+timm:tiny",
        "vector": [50, 0, 40, 25, 0, 20],
    }  # fmt: skip
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[6]"
    about = json.loads(table.schema.metadata[b"featprep"])
    assert (about["dim"], about["normalize"], about["input"]) == (6, "none", f"{bench.root}/in")
    assert about["models"][1] == {
        "model": "timm:tiny", "dim": 3, "vector": "mean", "weights": "f" * 64,
    }  # fmt: skip


def test_both_kinds_of_table_hold_the_same_rows_in_the_order_of_the_input(bench: Bench) -> None:
    bench.run(output="v.parquet")
    bench.run(output="v.npy")
    assert list(bench.table("v.npy")) == ["a", "b", "sub/c"]
    assert bench.table("v.parquet") == bench.table("v.npy")
    beside = json.loads((bench.root / "v.keys.json").read_text())
    assert beside["rows"] == [[key, f"{bench.root}/in/{key}.png"] for key in ("a", "b", "sub/c")]
    assert np.load(bench.root / "v.npy").tolist() == list(bench.table().values())


def test_a_matrix_beside_the_keys_of_another_run_is_refused(bench: Bench) -> None:
    from featprep.errors import InputError

    bench.run()
    np.save(bench.root / "v.npy", np.ones((3, 3), np.float32))
    with pytest.raises(InputError) as refusal:
        bench.table()
    assert str(refusal.value) == (
        f"{bench.root}/v.npy: it and {bench.root}/v.keys.json are not of one run; run "
        "image_vectorizer.py again, which writes both"
    )


def test_a_name_that_is_not_utf8_has_its_bytes_spelled(bench: Bench) -> None:
    os.rename(bench.root / "in" / "a.png", os.fsencode(bench.root / "in") + b"/a\xff.png")
    for output in ("v.parquet", "v.npy"):
        assert bench.run(output=output) == 0
        assert list(bench.table(output)) == ["a\\xff", "b", "sub/c"]


# --- runs


def test_a_broken_image_is_named_and_its_neighbours_are_whole(bench: Bench) -> None:
    (bench.root / "in" / "aa.png").write_bytes(b"no image")
    assert bench.run(models="clip:tiny,hf:tiny") == 3
    assert list(bench.table()) == ["a", "b", "sub/c"]
    failures = bench.root / "v.npy.run" / ".featprep" / "failures.jsonl"
    assert [json.loads(line)["key"] for line in failures.read_text().splitlines()] == ["aa"]
    lines = bench.said.splitlines()
    assert [line for line in lines if line.startswith("failed")] == [
        "failed   aa.png: decode: its bytes are of no known image (they begin 6e 6f 20 69 6d 61 67 "
        "65); read are PNG, JPEG, WebP, BMP, TIFF, AVIF, GIF"
    ]
    assert f"done     3 encoded, 0 there before, 1 failed: {failures}" in lines
    assert f"written  {bench.root}/v.npy  (3, 6) float32, 72 B" in lines


def test_the_same_command_encodes_only_what_is_new_changed_or_damaged(bench: Bench) -> None:
    bench.run()
    first = (bench.root / "v.npy").read_bytes()
    bench.decoded.clear()
    assert bench.run() == 0
    assert (bench.decoded, (bench.root / "v.npy").read_bytes()) == ([], first)
    bench.image("b.png", (90, 0, 0))
    bench.image("d.png", (70, 0, 0))
    assert bench.run() == 0
    assert bench.decoded == ["b", "d"]
    assert bench.table() == {
        "a": [10, 0, 40], "b": [90, 0, 0], "d": [70, 0, 0], "sub/c": [50, 0, 40],
    }  # fmt: skip
    rows = bench.root / "v.npy.run" / "rows"
    rows.write_bytes(b"\0" * 12 + rows.read_bytes()[12:])
    bench.decoded.clear()
    assert bench.run() == 0
    assert (bench.decoded, bench.table()["a"]) == (["a"], [10, 0, 40])


def test_a_row_that_a_full_disk_cut_short_is_written_over(tmp_path: Path) -> None:
    rows = RowFile(str(tmp_path / "rows"), 2, "float32")
    rows.append(np.array([[1, 2]], np.float32))
    with (tmp_path / "rows").open("ab") as file:
        file.write(b"torn")
    assert rows.append(np.array([[3, 4], [5, 6]], np.float32))[0] == 1
    assert rows.read([2, 0, 1, 3]).tolist() == [[5, 6], [1, 2], [3, 4], [0, 0]]


def test_an_image_that_breaks_later_loses_its_row(bench: Bench) -> None:
    bench.run()
    (bench.root / "in" / "b.png").write_bytes(b"no image")
    assert bench.run() == 3
    assert list(bench.table()) == ["a", "sub/c"]


def test_vectors_of_other_settings_never_mix(bench: Bench) -> None:
    bench.run(models="clip:tiny,hf:tiny")
    before = (bench.root / "v.npy").read_bytes()
    where = f"featprep: {bench.root}/v.npy.run holds features of other settings: "
    touched = ". Nothing was touched: "
    way_out = "use another --output, or --overwrite to replace them\n"
    for flags, models, different, way_back in (
        ([], "hf:tiny,clip:tiny",
         "--models clip:tiny,hf:tiny there, --models hf:tiny,clip:tiny asked",
         "to go on with what is there give --models clip:tiny,hf:tiny, else "),
        (["--normalize=all"], "clip:tiny,hf:tiny", "--normalize none there, --normalize all asked",
         "to go on with what is there give --normalize none, else "),
        (["--background=white"], "clip:tiny,hf:tiny",
         "clip:tiny background [0, 0, 0] there, clip:tiny background [255, 255, 255] asked; "
         "hf:tiny background [0, 0, 0] there, hf:tiny background [255, 255, 255] asked", ""),
    ):  # fmt: skip
        assert bench.run(*flags, models=models) == 2
        said = bench.said.splitlines(keepends=True)[-1]
        assert said == where + different + touched + way_back + way_out
    bench.fakes["clip"] = FakeEncoder(spec=DEEP, digest="e" * 64)
    assert bench.run(models="clip:tiny,hf:tiny") == 2
    told = f"clip:tiny weights {'f' * 12} there, clip:tiny weights {'e' * 12} asked"
    assert bench.said.splitlines(keepends=True)[-1] == where + told + touched + way_out
    assert (bench.root / "v.npy").read_bytes() == before
    assert bench.run("--overwrite", models="clip:tiny") == 0
    assert bench.table()["b"] == [30, 0, 40]


def test_a_table_without_a_record_of_its_run_is_not_replaced(bench: Bench) -> None:
    (bench.root / "v.npy").write_text("mine")
    assert bench.run() == 2
    assert bench.said == (
        f"featprep: --output {bench.root}/v.npy is there, and no record of the run that made it "
        f"({bench.root}/v.npy.run): use another --output, or --overwrite to replace it\n"
    )
    assert bench.run("--overwrite") == 0


def test_a_run_that_is_told_to_stop_keeps_what_it_has_and_goes_on(bench: Bench) -> None:
    encoder = FakeEncoder(spec=DEEP)
    bench.fakes["clip"] = encoder

    def stop(pixels: Any) -> None:
        if len(encoder.calls) == 2:  # the first is the trial
            signal.raise_signal(signal.SIGTERM)

    encoder.before = stop
    assert bench.run() == 143
    kept = f"what is done is kept in {bench.root}/v.npy.run; the same command goes on from here"
    assert kept in bench.said
    assert not (bench.root / "v.npy").exists()
    encoder.before = lambda pixels: None
    bench.decoded.clear()
    assert bench.run() == 0
    assert "done     1 encoded, 2 there before, 0 failed\n" in bench.said
    assert list(bench.table()) == ["a", "b", "sub/c"]


def test_a_folder_that_cannot_be_written_to_is_said_to_be_before_a_model_loads(
    bench: Bench,
) -> None:
    assert bench.run(output="/proc/v.npy") == 4
    assert bench.said == (
        "featprep: cannot write /proc/v.npy.run: No such file or directory. Free space or mend the "
        "folder's permissions; the same command goes on from here\n"
    )


def test_a_full_device_halves_the_batch_of_that_model_alone(bench: Bench) -> None:
    bench.fakes["hf"] = FakeEncoder(room=1, scale=2.0, spec=FAKES["hf"].spec)
    assert bench.run(models="clip:tiny,hf:tiny") == 0
    assert bench.table()["b"] == [30, 0, 40, 60, 0, 80]
    assert "memory   hf:tiny: the device is full: going on with batches of 1\n" in bench.said


def test_several_batches_at_a_time_give_the_rows_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vectorize_run, "DecodePool", InlinePool)
    for number in range(9):
        Image.new("RGB", (40, 40), (number * 20, 90, 30)).save(tmp_path / f"{number}.png")
    tables = []
    for hands in (devices.Hands(1, 1), devices.Hands(3, 1, "each for a third")):
        monkeypatch.setattr(devices, "choose_hands", lambda *_, hands=hands: hands)
        output = tmp_path / f"{hands.count}.npy"
        words = [f"--image_path={tmp_path}", "--models=clip:tiny,hf:tiny", f"--output={output}"]
        assert main(["vectorize", *words, "--batch_size=2", "--device=cpu"]) == 0
        said = capsys.readouterr().err
        assert ("batch 2, 3 at a time (each for a third)\n" in said) == (hands.count == 3)
        tables.append(np.load(output))
    assert tables[0].shape == (9, 96)
    np.testing.assert_allclose(tables[1], tables[0], rtol=0, atol=1e-5)


def test_every_thread_has_a_copy_of_the_model() -> None:
    """Their hooks would meet in one."""
    member = join_member("clip:tiny", open_model("test", "clip:tiny", {"device": "cpu"}))
    encoder = member.session.encoder
    assert member.batch_encoder(2, print).encoder is encoder
    copies = member.batch_encoder(2, print, hands=2).encoder
    assert isinstance(copies, ThreadCopies)
    first, second = copies._free.get(), copies._free.get()
    assert len({id(encoder), id(first), id(second)}) == 3


# --- refusals


def test_a_model_that_does_not_load_ends_the_run_unless_it_may_be_skipped(bench: Bench) -> None:
    models = "clip:tiny,openclip:tiny,timm:tiny"
    assert bench.run(models=models) == 2
    assert bench.said.splitlines()[-1] == (
        "featprep: openclip:tiny does not load: no weights of it here; or go on without it: "
        "--skip_failed"
    )
    assert bench.decoded == []
    assert bench.run("--skip_failed", models=models) == 0
    assert "skipped  openclip:tiny does not load: no weights of it here\n" in bench.said
    assert bench.table()["b"] == [30, 0, 40, 15, 0, 20]
    assert bench.run("--skip_failed", models="openclip:tiny", output="w.npy") == 2
    assert bench.said.splitlines()[-1] == (
        "featprep: --models openclip:tiny: none of them loads; nothing was done"
    )


def test_a_name_that_is_none_is_refused_before_another_model_loads(bench: Bench) -> None:
    assert bench.run(models="clip:tiny,torchvision:vgg16") == 2
    assert bench.said == (
        "featprep: torchvision:vgg16 does not load: --models torchvision:vgg16: no such encoder; "
        "allowed is resnet18, resnet34, resnet50 … (all 49: featprep models torchvision:), or "
        "torchvision:NAME=PATH, PATH a .pth file, under torchvision's NAME of it. Or go on without "
        "it: --skip_failed\n"
    )
    assert bench.run("--skip_failed", models="clip:tiny,torchvision:vgg16") == 0
    assert list(bench.table()) == ["a", "b", "sub/c"]


def test_a_device_that_is_not_there_is_no_models_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.run("--device=gpu", "--skip_failed", models="clip:tiny,hf:tiny") == 2
    assert bench.said.startswith("featprep: --device gpu: torch finds no CUDA GPU on this machine")


def test_an_onnx_copy_is_said_to_be_one_in_a_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_models, "_told", set())
    assert bench.run(models="Xenova/dinov2-small") == 0
    assert bench.said.splitlines()[0] == (
        "note     Xenova/dinov2-small is an ONNX copy of hf:facebook/dinov2-small, which is loaded "
        "in its place"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--image_path is required: an image, a folder or a .txt list; see {prog} --help"),
        (["--image_path=x"], "--models is required: FAMILY:NAME, or several as A,B; see {prog} "
                             "--help"),
        (["--image_path=x", "--models=y", "--normalize=l2"],
         "--normalize l2: allowed is one of none, each, all."),
        (["--image_path=x", "--models=y", "--output=z.csv"],
         "--output z.csv: allowed is a file called NAME.parquet or NAME.npy; for example --output "
         "vectors.parquet"),
        (["--image_path=no/such", "--models=clip:tiny"],
         "--image_path no/such: no such file or folder; check the path"),
        (["--image_path=.", "--models=clip:tiny"],
         "--image_path .: many images go into a file; add --output vectors.parquet, or "
         "vectors.npy"),
        (["--image_path=x", "--models=y", "--sise=3"], "unknown flag --sise=3. Did you mean "
         "--size? See {prog} --help"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_refused_before_any_work(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["image_vectorizer.py"])
    for call, prog in ((main_vectorize, "image_vectorizer.py"), (main, "featprep vectorize")):
        assert call(words if call is main_vectorize else ["vectorize", *words]) == 2
        assert capsys.readouterr().err == f"featprep: {message.format(prog=prog)}\n"


def test_a_model_named_twice_is_refused(bench: Bench) -> None:
    assert bench.run(models="clip:tiny,clip:tiny") == 2
    assert bench.said.splitlines()[-1] == (
        "featprep: --models: clip:tiny stands there twice; name each once, of weights of your own "
        "each as FAMILY:ID=PATH with an ID of its own"
    )


def test_without_pyarrow_the_command_that_installs_it_is_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert bench.run(output="v.parquet") == 2
    assert bench.said == (
        f"featprep: --output {bench.root}/v.parquet: needs pyarrow, which is not installed; type: "
        "pip install 'pyarrow>=18.1' (or, in the project's folder, pip install '.[vectors]'); or "
        f"write {bench.root}/v.npy\n"
    )
    assert bench.decoded == []
    assert bench.run(output="v.npy") == 0


def test_the_page_on_vectors_says_what_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands on two photos, in order, each to the exit code 0; then its Python."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "vectors.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vectorize_run, "DecodePool", InlinePool)
    Path("photos").mkdir()
    for i, name in enumerate(("cat.jpg", "dog.jpg")):
        Image.new("RGB", (300, 250), (90, 60 * i, 30)).save(Path("photos") / name)
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for line in "".join(blocks).splitlines():
        words = shlex.split(line.partition("  #")[0])
        assert words[:2] == ["python", "data-preprocess/image_vectorizer.py"], line
        if "tiny" in line:
            assert main_vectorize(words[2:]) == 0, capsys.readouterr().err
    names: dict[str, Any] = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), names)
    assert names["matrix"].shape == (2, 96)
    assert names["keys"] == ["cat", "dog"]
