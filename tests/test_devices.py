"""Device, precision, batch size and workers: each choice, its reason and its refusals."""

from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from featprep import devices
from featprep.devices import Precision
from featprep.encoders import hf_known
from featprep.errors import UsageError

LARGE = hf_known.KNOWN["facebook/dinov2-large"]

AMX = "model name\t: Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz\nflags\t\t: fpu amx_bf16\n"
ZEN4 = "model name\t: AMD EPYC 9354 32-Core Processor\nflags\t\t: fpu avx512f avx512_bf16\n"
OLD = "model name\t: Intel(R) Core(TM) i5\nflags\t\t: fpu avx2 avx512f\n"
ARM = "processor : 0\nFeatures : fp asimd bf16\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """machine(gpus=2, mps=True, cpuinfo=…, memory=…): what this machine seems to have."""

    def seem(gpus: int = 0, mps: bool = False, cpuinfo: str = OLD, memory: int = 80) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(devices, "_read", lambda path: cpuinfo)
        properties = SimpleNamespace(total_memory=memory * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
        monkeypatch.setattr(devices, "available_cores", lambda: 12)

    seem()
    return seem


@pytest.mark.parametrize(
    ("there", "asked", "chosen"),
    [
        ({"gpus": 2, "mps": True}, "auto", ("cuda:0", "auto: the first there is")),
        ({"mps": True}, "auto", ("mps", "auto: the first there is")),
        ({}, "auto", ("cpu", "auto: no GPU found")),
        ({"gpus": 2}, "cuda", ("cuda:0", "--device cuda")),
        ({"gpus": 2}, "gpu", ("cuda:0", "--device gpu")),
        ({"gpus": 2}, "cuda:1", ("cuda:1", "--device cuda:1")),
        ({"gpus": 2}, "cpu", ("cpu", "--device cpu")),
        ({"mps": True}, "mps", ("mps", "--device mps")),
    ],
)
def test_a_device_is_chosen_with_its_reason(
    machine: Any, there: dict[str, Any], asked: str, chosen: tuple[str, str]
) -> None:
    machine(**there)
    assert devices.choose_device(asked) == chosen


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("mps", "--device mps: not on this machine; allowed is auto, cuda:0, cuda:1 or cpu"),
        (
            "cuda:2",
            "--device cuda:2: not on this machine; allowed is auto, cuda:0, cuda:1 or cpu",
        ),
        ("tpu", "--device tpu: no such device; allowed is auto, cuda:0, cuda:1 or cpu"),
    ],
)
def test_an_absent_device_is_refused_with_what_there_is(
    machine: Any, asked: str, message: str
) -> None:
    machine(gpus=2)
    with pytest.raises(UsageError) as refusal:
        devices.choose_device(asked)
    assert str(refusal.value) == message


@pytest.mark.parametrize("asked", ["cuda", "gpu"])
def test_a_gpu_on_a_machine_without_is_refused(machine: Any, asked: str) -> None:
    with pytest.raises(UsageError) as refusal:
        devices.choose_device(asked)
    assert str(refusal.value) == (
        f"--device {asked}: torch finds no CUDA GPU on this machine; allowed is auto or cpu"
    )


@pytest.mark.parametrize(
    ("fp16", "precision", "device", "cpuinfo", "chosen"),
    [
        (False, None, "cuda:0", OLD, Precision("float32", "float32", "default")),
        (False, None, "cpu", AMX, Precision("float32", "float32", "default")),
        (True, None, "cuda:1", OLD, Precision("float16", "float16", "--fp16")),
        (True, None, "cpu", AMX, Precision("bfloat16", "float16", "--fp16, CPU with AMX")),
        (True, None, "cpu", ZEN4, Precision("bfloat16", "float16", "--fp16, CPU with AVX512-BF16")),
        (
            True,
            None,
            "cpu",
            OLD,
            Precision("float32", "float16", "--fp16, CPU without AMX or AVX512-BF16"),
        ),
        (
            True,
            None,
            "cpu",
            ARM,
            Precision("float32", "float16", "--fp16, CPU without AMX or AVX512-BF16"),
        ),
        (True, None, "mps", "", Precision("float32", "float16", "--fp16, mps")),
        (True, "fp32", "cuda:0", OLD, Precision("float32", "float16", "--precision fp32")),
        (False, "bf16", "cpu", OLD, Precision("bfloat16", "float32", "--precision bf16")),
        (False, "fp16", "cuda:0", OLD, Precision("float16", "float32", "--precision fp16")),
    ],
)
def test_precision_follows_fp16_the_device_and_precision(
    machine: Any, fp16: bool, precision: str | None, device: str, cpuinfo: str, chosen: Precision
) -> None:
    machine(cpuinfo=cpuinfo)
    assert devices.choose_precision(fp16, precision, device) == chosen


def test_half_precision_compute_on_a_cpu_is_refused() -> None:
    with pytest.raises(UsageError) as refusal:
        devices.choose_precision(True, "fp16", "cpu")
    assert str(refusal.value) == (
        "--precision fp16 on a CPU: not supported; allowed is fp32 or bf16, or --device cuda"
    )


def test_the_batch_follows_the_memory_and_is_one_where_sizes_vary(machine: Any) -> None:
    choose = devices.choose_batch_size
    assert choose("cpu", LARGE, False) == (8, "cpu")
    assert choose("cuda:0", LARGE, True) == (1, "every image has its own size")
    for memory, size, expected in ((80, (224, 224), 128), (8, (518, 518), 16), (8, None, 16)):
        machine(gpus=1, memory=memory)
        assert choose("cuda:0", LARGE, False, size) == (expected, f"{memory} GiB of GPU memory")
    machine(gpus=1, memory=1)
    assert choose("cuda:0", LARGE, False, (5180, 5180))[0] == 1


def test_the_batch_of_windows_follows_the_window_and_the_maps_the_host_holds(machine: Any) -> None:
    choose, window = devices.choose_window_batch, (224, 224)
    own = "windows of images of their own sizes"
    assert choose("cpu", LARGE, window, (448, 672)) == (8, "cpu")
    machine(gpus=1, memory=80)
    assert choose("cuda:0", LARGE, window, (448, 672)) == (128, "80 GiB of GPU memory")
    assert choose("cuda:0", LARGE, window, (1792, 1792)) == (16, "1 GiB of maps")
    assert choose("cuda:0", LARGE, window, None) == (8, own)


def test_several_devices_are_for_encode_alone(machine: Any) -> None:
    machine(gpus=1)
    with pytest.raises(UsageError) as caught:
        devices.choose_device("cuda:0,cuda:0")
    assert str(caught.value) == (
        "--device cuda:0,cuda:0: this works on one device; allowed is auto, cuda:0 or cpu "
        "(featprep encode takes several)"
    )


def test_workers_leave_a_core_to_the_encoder(machine: Any) -> None:
    assert devices.choose_workers() == (11, "12 cores, one for the encoder")
    assert devices.choose_workers(cores=1) == (1, "1 core, one for the encoder")
    assert devices.choose_workers(cores=96) == (16, "96 cores, one for the encoder")
    assert devices.choose_workers(3) == (3, "--workers")


def test_on_a_cpu_every_core_has_a_batch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(threads: int, device: str = "cpu", fixed: int | None = None) -> tuple[int, int, str]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        return dataclasses.astuple(devices.choose_hands(device, fixed))

    assert choose(1) == (1, 1, "1 thread each of 1 core")
    assert choose(12) == (12, 1, "1 thread each of 12 cores")
    assert choose(96) == (32, 3, "3 threads each of 96 cores")
    assert choose(12, fixed=4) == (3, 4, "4 threads each of 12 cores")
    assert choose(2, fixed=4) == (1, 4, "4 threads each of 2 cores")
    assert choose(12, "mps") == (1, 12, "")


def test_on_cuda_two_batches_are_under_way_and_several_threads_write() -> None:
    hands = devices.choose_hands("cuda:0", fixed=3)
    assert dataclasses.astuple(hands) == (2, 3, "one travels while the other is computed")
    assert (devices.choose_writers("cuda:1"), devices.choose_writers("cpu")) == (4, 1)


def test_devices_have_titles_for_people(machine: Any) -> None:
    machine(gpus=1, cpuinfo=AMX)
    assert devices.device_title("cuda:0") == "cuda:0 NVIDIA H100"
    assert devices.device_title("cpu") == "cpu Intel Xeon Platinum 8480+, 12 cores"
    machine(cpuinfo=ZEN4)
    assert devices.device_title("cpu") == "cpu AMD EPYC 9354 32-Core, 12 cores"


def test_a_device_has_the_reduced_precisions_it_can_compute_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert devices.reduced_precisions("cpu") == ("bfloat16",)
    assert devices.reduced_precisions("mps") == ("float16",)
    for has_bfloat16, found in ((True, ("bfloat16", "float16")), (False, ("float16",))):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bfloat16: has)
        assert devices.reduced_precisions("cuda:0") == found


def test_this_machine_answers_too() -> None:
    device, reason = devices.choose_device("auto")
    assert reason.startswith("auto: ")
    assert devices.device_title(device).startswith(f"{device} ")
    assert devices.available_cores() >= 1


def test_versions_name_what_decides_a_value() -> None:
    versions = devices.library_versions()
    assert list(versions) == [
        "python", "torch", "torchvision", "transformers", "clip", "open_clip", "timm", "numpy",
        "pillow",
    ]  # fmt: skip
    assert versions["torch"] == torch.__version__.partition("+")[0]


def test_waiting_threads_sleep_unless_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is put back afterwards
    monkeypatch.delenv("OMP_WAIT_POLICY")
    devices.let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    devices.let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
