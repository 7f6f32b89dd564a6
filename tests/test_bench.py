"""The bench: its arithmetic by hand, its parts on tiny, and what it says. No time is asserted."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bench_makers
import numpy as np
import pytest
import torch
from featprep import cli, encoders
from featprep.bench import figures, loaders, material, peers, report, stages, startup
from featprep.bench.figures import Cost, Spread
from featprep.bench.limit import Conv, Limit, Linear, operations_of
from featprep.bench.load import Reading, cores_of_others, read_load
from featprep.bench.processes import HandError, Job, Maker, Process, Ready
from featprep.bench.report import Rounds
from featprep.commands import bench_rounds, bench_table
from featprep.commands.bench_rounds import Asked
from featprep.encoders import describe
from featprep.encoders.base import ModelName
from featprep.encoders.tiny import write_tiny
from featprep.errors import FeatprepError, InputError, WeightsError
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

JOB = Job(ModelName("hf", "tiny"), "photos", (), "out", (28, 28))
COSTS = {
    "read": Cost(0.001, 0.001),
    "decode": Cost(0.004, 0.004),
    "preprocess": Cost(0.003, 0.003),
    "encode": Cost(0.030, 0.016),
    "write": Cost(0.002, 0.003),
}


# --- arithmetic


def test_a_spread_is_the_median_between_the_least_and_the_most() -> None:
    assert figures.spread([3.0, 1.0, 5.0, 2.0]) == Spread(2.5, 1.0, 5.0)


def test_ratios_are_taken_round_by_round() -> None:
    assert figures.ratios([10.0, 30.0], [5.0, 10.0]) == [2.0, 3.0]


def test_the_ideal_of_a_cpu_is_its_cores_over_the_core_seconds_of_an_image() -> None:
    assert figures.ideal_rate(COSTS, 2) == pytest.approx(2 / 0.040)


def test_the_ideal_beside_a_device_is_that_of_the_busier_side() -> None:
    assert figures.ideal_rate(COSTS, 2, "accelerator") == pytest.approx(1 / 0.016)
    slow = {**COSTS, "decode": Cost(0.064, 0.064)}
    assert figures.ideal_rate(slow, 2, "accelerator") == pytest.approx(1 / 0.035)


def test_operations_count_as_often_as_they_are_used() -> None:
    assert figures.total_seconds([0.5, 0.25], [3, 2]) == 2.0


def test_others_have_what_was_busy_and_not_ours() -> None:
    before, after = Reading(10.0, 100.0, 40.0), Reading(12.0, 103.0, 41.0)
    assert cores_of_others(before, after) == 1.0
    assert cores_of_others(before, Reading(12.0, 101.0, 44.0)) == 0.0


def test_our_own_work_is_seen_as_ours() -> None:
    before = read_load()
    while read_load().own_s < before.own_s + 0.05:
        sum(range(10_000))
    assert read_load().busy_s >= before.busy_s


def test_a_clock_adds_up_what_each_stage_takes() -> None:
    ticks = iter([(1.0, 10.0), (1.5, 12.0), (2.0, 20.0), (2.25, 21.0), (3.0, 30.0), (4.0, 31.0)])
    clock = stages.Clock(lambda: next(ticks))
    for stage in ("read", "encode", "read"):
        with clock.on(stage):
            pass
    assert clock.spent["read"] == {"core_s": 1.5, "wall_s": 3.0}
    assert clock.spent["encode"] == {"core_s": 0.25, "wall_s": 1.0}
    assert clock.spent["write"] == {"core_s": 0.0, "wall_s": 0.0}


# --- the report


def rounds() -> Rounds:
    """Two rounds with one peer; the second twice as slow, but for the limit."""
    made = Rounds()
    for slow, others in ((1, 0.0), (2, 1.5)):
        costs = {name: {"core_s": slow * cost.core_s, "wall_s": cost.wall_s}
                 for name, cost in COSTS.items()}  # fmt: skip
        limit = {"images_per_s": 80.0, "arrangement": "one a core",
                 "arrangements": {"all cores": 60.0, "one a core": 80.0}}  # fmt: skip
        made.add("limit", limit, others)
        made.add("model", {"images_per_s": 40.0 / slow}, others)
        made.add("stages", {"stages": costs}, others)
        made.add("run", {"images_per_s": 30.0 / slow, "busy": {"encode": 0.5}}, others)
        made.add("loop", {"images_per_s": 6.0 / slow**2}, others)
    return made


ABOUT = {
    "device": "cpu Xeon, 2 cores",
    "cores": 2,
    "machine_cores": 4,
    "limit": {"operation": "F.linear", "gflop_per_image": 50.0, "shapes": []},
}


def median_of(tree: Mapping[str, Any]) -> tuple[float, float, float]:
    return tuple(tree[key] for key in ("median", "low", "high"))  # type: ignore[return-value]


def test_a_report_holds_medians_and_shares_of_rounds() -> None:
    found = report.summarise(rounds(), ABOUT, {"loop": "a loop"})
    assert found["limit"]["tflop_per_s"] == 4.0
    assert found["limit"]["arrangements"]["all cores"]["median"] == 60.0
    assert median_of(found["model_only"]["share_of_limit"]) == (0.375, 0.25, 0.5)
    assert median_of(found["stages"]["encode"]["core_ms"]) == (45.0, 30.0, 60.0)
    assert median_of(found["ideal"]["images_per_s"]) == pytest.approx((37.5, 25.0, 50.0))
    run = found["end_to_end"]
    assert run["rounds"] == [30.0, 15.0]
    assert median_of(run["share_of_ideal"]) == pytest.approx((0.6, 0.6, 0.6))
    assert median_of(run["share_of_model_only"]) == (0.75, 0.75, 0.75)
    left = run["share_of_what_others_left"]
    assert median_of(left) == pytest.approx((1.5, 0.6, 2.4))
    assert median_of(found["peers"][0]["ours_over_it"]) == (7.5, 5.0, 10.0)
    assert found["others"]["cores"] == {"median": 0.75, "low": 0.0, "high": 1.5}
    assert found["others"]["is_disturbed"]


def test_a_peer_that_failed_stands_with_its_reason() -> None:
    made = rounds()
    made.failed["loop"] = "ImportError: no such library"
    found = report.summarise(made, ABOUT, {"loop": "a loop"})
    assert found["peers"] == [
        {"key": "loop", "title": "a loop", "reason": "ImportError: no such library"}
    ]


def test_a_start_up_is_told_with_its_ratios() -> None:
    found = report.startup({"encode": [4.0, 9.0], "bare": [2.0, 3.0], "upstream": [4.0, 3.0]})
    assert median_of(found["encode_s"]) == (6.5, 4.0, 9.0)
    assert median_of(found["over_bare"]) == (2.5, 2.0, 3.0)
    assert median_of(found["over_upstream"]) == (2.0, 1.0, 3.0)


# --- the limit


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=2, padding=1, groups=1)
        self.same = nn.Conv2d(8, 8, 3, padding="same", groups=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.same(self.conv(pixels)).flatten(2).mT
        mixed = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        head: torch.Tensor = self.head(mixed)
        return head @ torch.ones(4, 2)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_every_product_of_a_model_is_seen_with_its_shape(mode: Any) -> None:
    module = Both().eval()
    with mode():
        found = operations_of(lambda: module(torch.zeros(1, 3, 20, 16)))
    cells = 9 * 7
    assert dict(found) == {
        Conv((3, 20, 16), (8, 3, 5, 5), (2, 2), (1, 1), (1, 1), 1): 1,
        Conv((8, 9, 7), (8, 4, 3, 3), (1, 1), "same", (1, 1), 2)
        if mode is torch.inference_mode
        else Conv((8, 9, 7), (8, 4, 3, 3), (1, 1), (1, 1), (1, 1), 2): 1,
        Linear(cells, 8, 24): 1,
        Linear(cells, 8, 8): 1,
        Linear(cells, 8, 4): 1,
        Linear(cells, 4, 2): 1,
    }


@pytest.mark.parametrize(
    "one",
    [
        Linear(7, 5, 3),
        Conv((4, 19, 16), (8, 2, 5, 3), (2, 1), (1, 0), (2, 1), 2),
        Conv((4, 19, 16), (8, 4, 3, 3), (1, 1), "same", (1, 1), 1),
        Conv((4, 19, 16), (8, 4, 3, 3), (1, 1), "valid", (1, 1), 1),
    ],
)
def test_the_work_of_a_product_is_what_torch_counts(one: Linear | Conv) -> None:
    call = one.call(2, torch.float32, "cpu")
    with FlopCounterMode(display=False) as counter:
        call()
    assert 2 * one.flop == counter.get_total_flops()


def test_the_limit_is_the_faster_of_two_ways_to_use_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = torch.get_num_threads()
    limit = Limit(operations_of(lambda: None), 8, "float32", "cpu", cores=2)
    seen: list[int] = []

    def seconds(self: Limit) -> float:
        seen.append(torch.get_num_threads())
        return 0.2 if seen[-1] == 2 else 0.25

    monkeypatch.setattr(Limit, "_seconds", seconds)
    assert limit.measure() == {
        "images_per_s": 64.0,
        "arrangement": "one a core",
        "arrangements": {"all cores": 40.0, "one a core": 64.0},
    }
    assert (seen, torch.get_num_threads()) == ([2, 1, 1], threads)


def test_the_limit_names_its_products_the_heaviest_first() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    limit = Limit(operations_of(lambda: module(torch.zeros(3, 4))), 2, "float32", "cpu", 1)
    about = limit.about()
    assert about["operation"] == "F.linear"
    assert about["gflop_per_image"] == 2 * 3 * (16 + 32 + 2 * 64) / 1e9
    assert [(one["shape"], one["uses"]) for one in about["shapes"]] == [
        ("6×8×8", 2), ("6×4×8", 1), ("6×4×4", 1),
    ]  # fmt: skip
    assert limit.measure()["images_per_s"] > 0


# --- who is measured, and on what


def keys(typed: str, local: ModelName, **converted: ModelName) -> dict[str, str]:
    return {peer.key: str(peer.name) for peer in peers.peers_of(typed, local, converted)}


def test_a_model_has_the_peers_that_can_run_it() -> None:
    hf, clip = ModelName("hf", "random", "x"), ModelName("clip", "random", "y")
    three = ["transformers_loop_fp32", "transformers_pipeline", "transformers_tuned"]
    assert keys("hf:facebook/dinov2-base", hf) == {
        **dict.fromkeys(three, "hf:random"), "timm_loader": "timm:vit_base_patch14_dinov2",
    }  # fmt: skip
    assert keys("hf:tiny", hf) == dict.fromkeys(three, "hf:random")
    converted = {family: ModelName(family, "converted", "z") for family in ("hf", "openclip")}
    assert keys("clip:ViT-B/32", clip, **converted) == {
        **dict.fromkeys(three, "hf:converted"),
        "clip_loader": "clip:random",
        "open_clip_loader": "openclip:converted",
        "timm_loader": "timm:vit_base_patch32_clip_quickgelu_224",
    }
    assert keys("timm:resnet18.a1_in1k", ModelName("timm", "random", "x")) == {
        "timm_loader": "timm:resnet18.a1_in1k"
    }
    assert keys("openclip:RN50/openai", ModelName("openclip", "random", "x")) == {
        "open_clip_loader": "openclip:random"
    }


def test_timms_twins_are_models_of_ours_and_of_timms() -> None:
    import timm

    for name, twin in peers._TIMM.items():
        family, _, id = name.partition(":")
        assert describe(ModelName(family, id)), name
        assert timm.is_model(twin), twin


def test_a_folder_with_too_few_images_is_taken_in_turns(tmp_path: Path) -> None:
    for name, width in (("b.JPG", 20), ("a.png", 10), ("c.txt", 0), (".d.png", 5)):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        if width:
            Image.new("RGB", (width, 1000)).save(path)
        else:
            path.write_text("no image")
    found = material.gather(str(tmp_path / "in"), 3, tmp_path / "out")
    assert [Path(path).name for path in found.paths] == ["00000.png", "00001.jpg", "00002.png"]
    assert (found.different, found.megapixels) == (2, (0.01, 0.02, 0.01))
    assert material.gather(str(tmp_path / "in"), 1, tmp_path / "one").megapixels == (0.01,)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no image in it; give a folder with some$"):
        material.gather(str(tmp_path), 3, tmp_path / "out")


def test_generated_images_are_jpegs_of_one_size_and_the_same_every_time(tmp_path: Path) -> None:
    made = material.generate(2, tmp_path / "a")
    again = material.generate(2, tmp_path / "b")
    assert made.megapixels == (0.18, 0.18)
    first, second, other = (
        np.asarray(Image.open(path)).astype(int) for path in (*made.paths, again.paths[0])
    )
    assert first.shape == (360, 500, 3)
    assert np.array_equal(first, other)
    assert np.abs(first - second).mean() > 20


def test_weights_are_random_where_a_published_name_has_none_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def write(name: str, folder: Path) -> Path:
        written.append(name)
        return folder

    monkeypatch.setattr(material, "write_random", write)
    name = ModelName("hf", "facebook/dinov2-base")
    local = ModelName("hf", "random", str(tmp_path))
    said = "random, of the full size: there are none here"
    assert material.weights_here(name, tmp_path) == (local, said)
    assert written == ["hf:facebook/dinov2-base"]
    with pytest.raises(WeightsError):
        material.weights_here(ModelName("hf", "some/body"), tmp_path)


def test_clips_weights_are_converted_for_the_libraries_that_know_its_architecture(
    tmp_path: Path,
) -> None:
    name = ModelName("clip", "random", str(write_tiny("clip", tmp_path / "clip")))
    hf = ModelName("hf", "converted", str(tmp_path / "a" / "hf"))
    assert material.converted(name, "tiny", tmp_path / "a") == {"hf": hf}
    file = str(tmp_path / "b" / "openclip" / "open_clip_model.safetensors")
    found = material.converted(name, "ViT-L/14@336px", tmp_path / "b")["openclip"]
    assert found == ModelName("openclip", "ViT-L-14-336/openai", file)
    assert encoders.describe(ModelName(found.family, found.id)) is not None
    assert Path(file).exists()
    assert material.converted(ModelName("hf", "tiny"), "tiny", tmp_path / "c") == {}


def test_a_peers_map_is_its_last_tokens_row_by_row() -> None:
    hidden = torch.arange(11.0)[None, :, None] * torch.tensor([1.0, -1.0])  # two of a prefix
    assert peers._maps(hidden)[0].tolist() == [
        [[2, 3, 4], [5, 6, 7], [8, 9, 10]],
        [[-2, -3, -4], [-5, -6, -7], [-8, -9, -10]],
    ]
    assert peers._maps(torch.zeros(1, 2, 3, 5)).shape == (1, 2, 3, 5)


def test_a_loader_takes_the_workers_that_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "choose_workers", lambda: (3, "in a test"))
    loader = loaders.Loader(dataclasses.replace(JOB, batch_size=2), "cpu", lambda image: image)
    now, paths = [0.0], list("abcdefgh")
    monkeypatch.setattr(loaders.time, "perf_counter", lambda: now[0])

    def run(some: Any) -> Any:
        for path in some:
            now[0] += {0: 0.5, 3: 0.25}[loader.workers]
            yield path

    loader.choose(run, paths)
    assert loader.about() == {
        "batch_size": 2, "workers": 3, "images_per_s_tried": {"0": 2.0, "3": 4.0},
    }  # fmt: skip
    assert now == [8 * 0.75]


# --- processes


def test_a_process_of_its_own_answers_what_it_is_asked() -> None:
    process = Process(bench_makers.make_counter, JOB)
    assert process.wait()["pid"] not in (0, os.getpid())
    assert process.ask("run", 5) == {"images": 5, "size": (28, 28)}
    assert process.watch_memory("run", 5)["together_bytes"] >= 0
    assert process.close()["peak_bytes"] > 1_000_000
    assert process.close() == {}


@pytest.mark.parametrize(
    ("make", "reason", "code"),
    [
        (bench_makers.make_error, "ValueError: no such model", 1),
        (bench_makers.make_refusal, "no weights; fetch them", 2),
        (bench_makers.make_death, "its process ended with code 7", 1),
    ],
)
def test_a_process_that_cannot_load_gives_its_reason(make: Maker, reason: str, code: int) -> None:
    process = Process(make, JOB)
    with pytest.raises(HandError) as caught:
        process.wait()
    assert (str(caught.value), caught.value.exit_code) == (reason, code)
    process.close()


def test_a_command_that_ends_without_a_result_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HandError, match=r"^featprep encode ended with code 2$"):
        startup.seconds_to_first_batch(
            dataclasses.replace(JOB, folder=str(tmp_path / "out")), ["no-such-command"]
        )


@pytest.mark.parametrize("family", ["hf", "clip"])
def test_bare_loading_reads_every_format_there_is(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(family, tmp_path / "model")
    file = path / "model.safetensors" if path.is_dir() else path
    monkeypatch.setattr(sys, "argv", ["-c", str(file)])
    names: dict[str, Any] = {}
    exec(startup._BARE, names)
    assert all(isinstance(item, torch.Tensor) for item in names["held"].values())
    assert len(names["held"]) > 20


# --- the whole, quickly


class Here:
    """In place of a process: this one."""

    def __init__(self, make: Maker, job: Job) -> None:
        self.make, self.job = make, job
        self.ready: Ready | None = None

    def wait(self) -> dict[str, Any]:
        self.ready = self.make(self.job)
        return self.ready.about

    def ask(self, task: str, count: int) -> dict[str, Any]:
        assert self.ready is not None
        return self.ready.tasks[task](count)

    def watch_memory(self, task: str, count: int) -> dict[str, Any]:
        return {"together_bytes": 2_000_000_000}

    def close(self) -> dict[str, Any]:
        return {"peak_bytes": 1_000_000_000}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # which the bench sets, and never takes back
    monkeypatch.setattr(loaders, "choose_workers", lambda: (0, "in a test"))
    settings = {"fp16": True, "precision": "bf16", "device": "cpu", "batch_size": 2}
    return Asked(ModelName("hf", "tiny"), (28, 28), 4, 1, None, True, settings)


def test_a_quick_run_measures_everything_and_says_so(asked: Asked, tmp_path: Path) -> None:
    found = bench_rounds.measure(asked, tmp_path, Here)
    assert found["settings"]["map"] == [64, 2, 2]
    assert found["settings"]["compute"] == "bfloat16"
    assert found["weights"] == "random: tiny"
    assert found["images"]["count"] == 4
    assert found["limit"]["operation"] == "F.linear + F.conv2d"
    for part in (found["limit"], found["model_only"], found["end_to_end"], *found["peers"]):
        assert part["rounds"][0] > 0, part
        assert part["images_per_s"]["median"] == part["rounds"][0]
    assert all(stage["core_ms"]["median"] >= 0 for stage in found["stages"].values())
    for peer in found["peers"]:
        tried = peer["loader"].pop("images_per_s_tried", {"0": 1.0})
        assert list(tried) == ["0"]
        assert tried["0"] > 0
    assert found["peers"][2]["loader"] == {"batch_size": 2, "workers": 0}
    assert [peer["settings"] for peer in found["peers"]] == [
        {"precision": "float32", "batch_size": 1},
        {"precision": "torch.bfloat16", "batch_size": 2},
        {"precision": "torch.bfloat16"},
    ]
    for peer in found["peers"]:
        map_ = np.load(tmp_path / peer["key"] / "3.npy")
        assert map_.shape == (64, 2, 2)
        assert map_.dtype == ("float32" if peer["key"].endswith("fp32") else "float16")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"weights", "images", *(peer["key"] for peer in found["peers"])}
    file = tmp_path / "report.json"
    bench_table.write_json(str(file), found)
    assert json.loads(file.read_text()) == found


def test_who_fails_is_out_and_who_of_ours_fails_ends_it(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(asked.name, "photos", ("a",), str(tmp_path), (28, 28))
    theirs = peers.Peer("loop", "a loop", bench_makers.make_stumbler, asked.name)

    asked_to: list[Maker] = []

    def ask(self: Here, task: str, count: int) -> dict[str, Any]:
        asked_to.append(self.make)
        if self.make is bench_makers.make_stumbler or self.job.paths == ():
            raise HandError("RuntimeError: out of luck")
        return {"images": count}

    monkeypatch.setattr(Here, "ask", ask)
    for name in ("make_parts", "make_run"):
        monkeypatch.setattr(bench_rounds, name, bench_makers.make_counter)
    with bench_rounds._Contest(job, [theirs], Here) as contest:
        contest.load()
        contest.go_round(1)
        assert contest.rounds.failed == {"loop": "RuntimeError: out of luck"}
        assert asked_to.count(bench_makers.make_stumbler) == 1
        assert list(contest.rounds.figures) == ["limit", "model", "stages", "run"]
    ours = bench_rounds._Contest(dataclasses.replace(job, paths=()), [], Here)
    with pytest.raises(FeatprepError, match=r"^RuntimeError: out of luck$"), ours:
        ours.load()


def told() -> dict[str, Any]:
    """A report of hand-made rounds."""
    return {
        "model": "hf:tiny",
        "weights": "random: tiny",
        "images": {
            "count": 64, "source": "photos", "different": 40, "mean_file_bytes": 81_234,
            "megapixels": {"median": 0.18, "low": 0.1, "high": 12.0},
        },
        "settings": {
            "size": [224, 224], "rounds": 2, "device": "cpu Xeon, 2 cores", "compute": "bfloat16",
            "reason": "--fp16, CPU with AMX", "stored": "float16", "batch_size": 8, "threads": 1,
            "batches_at_a_time": 2, "versions": {"torch": "2.15.0"},
        },
        "memory": {"peak_bytes": 1.5e9, "together_bytes": 2.25e9},
        "startup": report.startup({"encode": [4.0], "bare": [2.0], "upstream": [3.2]}),
        **report.summarise(rounds(), ABOUT, {"loop": "a loop"}),
    }  # fmt: skip


def test_the_table_says_what_was_measured() -> None:
    found = told()
    shape = {"operation": "F.linear", "shape": "2056×768×768", "uses": 48, "share_of_flop": 1.0}
    found["limit"]["shapes"] = [shape]
    assert "\n".join(bench_table.report_lines(found)) == TABLE.strip("\n")


TABLE = """
model     hf:tiny, weights random: tiny
machine   cpu Xeon, 2 cores; torch 2.15.0
images    64, 40 different, photos: median 0.18 megapixels (0.10 to 12.00), 81 kB; in memory (page
          cache)
settings  224×224, compute bfloat16 (--fp16, CPU with AMX), stored float16; batch 8, batches at a
          time 2, threads of each 1
rounds    2, everyone in turns, after a warm-up; medians; fewer than three say little
load      others kept 0.75 of the machine's 4 cores busy (0.00 to 1.50): NOT a quiet machine

                                         im./s  (min to max)     others
limit: F.linear bfloat16                  80.0  (80.0 to 80.0)     0.75 4.00 TFLOP/s, one a core
model alone                               30.0  (20.0 to 40.0)     0.75 0.38 of limit (0.25 to 0.50)
stages, each alone                     core-ms  of an image
  read                                    1.50  (1.00 to 2.00)
  decode                                  6.00  (4.00 to 8.00)
  preprocess                              4.50  (3.00 to 6.00)
  encode                                 45.00  (30.00 to 60.00)
  write                                   3.00  (2.00 to 4.00)
ideal                                     37.5  (25.0 to 50.0)          cores / sum of core-s
end to end                                22.5  (15.0 to 30.0)     0.75 0.60 of ideal (0.60 to 0.60)
  of the ideal, of cores others left                                    1.50 (0.60 to 2.40)
instead of it                                                           end to end is
  a loop                                   3.8  (1.5 to 6.0)       0.75 7.50× (5.00 to 10.00)

limit     50.00 GFLOP an image: 48× 2056×768×768
memory    peak 1.50 GB; at work 2.25 GB with its workers
start-up  4.0 s from the command to the first batch; torch and the weights bare 2.0 s (2.00×), by
          their library 3.2 s (1.25×)
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--peers", "--size", "224,448"],
            "--peers with --size 224,448: the processors of other libraries make squares; allowed "
            "is one side; for example --size 224",
        ),
        (["--json", "no/x.json"], "--json no/x.json: no folder {cwd}/no; make it"),
        (["--input", "no"], "--input no: no such folder; give one with images"),
        (
            ["--rounds", "0"],
            "--rounds 0: allowed is a whole number from 1 up; for example --rounds 3",
        ),
        (
            ["--images", "few"],
            "--images few: allowed is a whole number from 1 up; for example --images 64",
        ),
        (
            ["--precision", "fp8"],
            "--precision fp8: allowed is one of fp32, bf16, fp16.",
        ),
    ],
)
def test_a_bad_flag_is_refused_before_any_work(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *words]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"featprep: {message.format(cwd=tmp_path)}\n")
