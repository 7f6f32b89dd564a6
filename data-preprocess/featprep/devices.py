"""Where and how the encoder runs: device, precision, batch size, workers; each with its reason.

Knows no encoder but its spec, and prints nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from featprep.encoders.base import ComputeDtype, EncoderSpec, StorageDtype, predict_grid
from featprep.errors import UsageError

_COMPUTE: dict[str, ComputeDtype] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# library → what its distribution is called
_LIBRARIES = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "transformers": ("transformers",),
    "clip": ("clip-anytorch", "clip"),
    "open_clip": ("open_clip_torch",),
    "timm": ("timm",),
    "numpy": ("numpy",),
    "pillow": ("pillow",),
}
_CPU_BATCH = 8
_LARGEST_MAPS = 2**30  # bytes of one batch's maps in float32, blended from windows on the host
_LARGEST_BATCH = 128  # beyond, a GPU is busy anyway and only the waiting grows
_MOST_WORKERS = 16
_GPU_WRITERS = 4
_WORTH_COMPILING = 50_000  # images: 10 s to compile, 0.04 to 0.2 ms an image gained by ViT-L models
_MOST_HANDS = 32  # a guess: what of a forward pass is Python runs in one of them at a time


@dataclass(frozen=True, slots=True)
class Precision:
    """`compute` is what the encoder runs in, `storage` what the files hold."""

    compute: ComputeDtype
    storage: StorageDtype
    reason: str


def choose_device(asked: str) -> tuple[str, str]:
    """(device as torch spells it, reason), of auto, cpu, cuda, gpu, cuda:N, mps, or a refusal."""
    there = available_devices()
    if "," in asked:
        raise UsageError(
            f"--device {asked}: this works on one device; allowed is "
            f"{', '.join(['auto', *there[:-1]])} or cpu (featprep encode takes several)"
        )
    if asked == "auto":
        return there[0], "auto: " + ("the first there is" if there[0] != "cpu" else "no GPU found")
    wanted = {"gpu": "cuda:0", "cuda": "cuda:0"}.get(asked, asked)
    if wanted not in there:
        known = re.fullmatch(r"cpu|mps|cuda:[0-9]+", wanted) is not None
        has_none = known and wanted != "mps" and there[0][:4] != "cuda"
        problem = "not on this machine" if known else "no such device"
        problem = "torch finds no CUDA GPU on this machine" if has_none else problem
        raise UsageError(
            f"--device {asked}: {problem}; allowed is {', '.join(['auto', *there[:-1]])} or cpu"
        )
    return wanted, f"--device {asked}"


def available_devices() -> list[str]:
    """Fastest first, the CPU last."""
    import torch

    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def choose_precision(fp16: bool, precision: str | None, device: str) -> Precision:
    """--fp16 halves storage, and compute where that pays; --precision sets compute alone."""
    storage: StorageDtype = "float16" if fp16 else "float32"
    kind = device.partition(":")[0]
    if precision == "fp16" and kind == "cpu":
        raise UsageError(
            "--precision fp16 on a CPU: not supported; allowed is fp32 or bf16, or --device cuda"
        )
    if precision is not None:
        return Precision(_COMPUTE[precision], storage, f"--precision {precision}")
    if not fp16:
        return Precision("float32", storage, "default")
    if kind == "cuda":
        return Precision("float16", storage, "--fp16")
    if kind == "cpu" and (feature := bfloat16_feature()):
        return Precision("bfloat16", storage, f"--fp16, CPU with {feature}")
    what = "CPU without AMX or AVX512-BF16" if kind == "cpu" else kind
    return Precision("float32", storage, f"--fp16, {what}")


def reduced_precisions(device: str) -> tuple[ComputeDtype, ...]:
    """Those below float32 that a run on this device may compute in."""
    if device == "cpu":
        return ("bfloat16",)
    if device == "mps":
        return ("float16",)
    import torch

    return ("bfloat16", "float16") if torch.cuda.is_bf16_supported() else ("float16",)


def bfloat16_feature() -> str | None:
    """AMX or AVX512-BF16, the instructions with which bfloat16 is faster than float32 on a CPU."""
    flags = _cpu_flags()
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
    return next((name for flag, name in names.items() if flag in flags), None)


def _cpu_flags() -> set[str]:
    """What the kernel lets programs use; nothing beside Linux, where no CPU with either is sold."""
    found = re.search(r"^flags\s*:(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return set(found[1].split()) if found else set()


def choose_batch_size(
    device: str, spec: EncoderSpec, sizes_vary: bool, size: tuple[int, int] | None = None
) -> tuple[int, str]:
    """(images a forward pass, reason). `size`: network input, the native size if not given."""
    if sizes_vary:
        return 1, "every image has its own size"
    if not device.startswith("cuda"):
        return _CPU_BATCH, device
    import torch

    memory = torch.cuda.get_device_properties(device).total_memory
    batch = _LARGEST_BATCH
    while batch > 1 and batch * _bytes_an_image(spec, size or spec.native_size) > memory // 4:
        batch //= 2
    return batch, f"{memory / 2**30:.0f} GiB of GPU memory"


def choose_window_batch(
    device: str, spec: EncoderSpec, tile: tuple[int, int], size: tuple[int, int] | None
) -> tuple[int, str]:
    """With --tile: a forward pass sees windows, but the host holds the maps of whole images, of
    which some are large where each has its own size (`size` None)."""
    batch, reason = choose_batch_size(device, spec, sizes_vary=False, size=tile)
    if size is None:
        return min(batch, _CPU_BATCH), "windows of images of their own sizes"
    cells = (size[0] // spec.patch) * (size[1] // spec.patch)
    while batch > 1 and batch * cells * spec.hidden_dim * 4 > _LARGEST_MAPS:
        batch, reason = batch // 2, f"{_LARGEST_MAPS / 2**30:.0f} GiB of maps"
    return batch, reason


def _bytes_an_image(spec: EncoderSpec, size: tuple[int, int]) -> int:
    """About what a block holds at once in float32: input, queries, keys, values, MLP, copies."""
    rows, columns = predict_grid(spec, *size)
    return (1 + spec.registers + rows * columns) * spec.hidden_dim * 4 * 20


def fix_threads(before: int | None) -> int:
    """How many CPU threads a forward pass has with --deterministic: as many as an output began
    with, else one, whatever the cores. Makes cuBLAS take one path, which must be said before CUDA
    starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return before or 1


@dataclass(frozen=True, slots=True)
class Hands:
    """`count` batches encoded at a time, each on `threads` CPU threads."""

    count: int
    threads: int
    reason: str = ""


ONE_HAND = Hands(1, 1)


def choose_hands(device: str, fixed: int | None = None) -> Hands:
    """`fixed`: the threads that --deterministic keeps.

    On a CPU one thread for every core, each with a batch of its own: none waits for another, and a
    neighbour slows the one whose core it shares, where threads that share a batch all wait for it.
    On CUDA one batch travels while another is computed; each is computed as it would be alone.
    """
    import torch

    threads = torch.get_num_threads()  # physical cores, or OMP_NUM_THREADS
    if device.startswith("cuda"):
        return Hands(2, fixed or threads, "one travels while the other is computed")
    if device != "cpu":
        return Hands(1, fixed or threads)
    each = fixed or -(-threads // _MOST_HANDS)
    count = max(1, threads // each)
    return Hands(count, each, f"{_count(each, 'thread')} each of {_count(threads, 'core')}")


def choose_writers(device: str) -> int:
    """Batches written at a time: a GPU gives more maps than one thread can write."""
    return _GPU_WRITERS if device.startswith("cuda") else 1


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def hold_threads(count: int) -> None:
    """Have the thread that calls compute on so many CPU threads."""
    import torch

    torch.set_num_threads(count)


def choose_compile(
    asked: str, device: str, images: int, sizes_vary: bool, before: bool | None
) -> tuple[bool, str]:
    """(whether the network is compiled, reason). `images`: that the run has left to encode.
    `before`: what an earlier run of the same output chose, whose maps would differ in their last
    bits. Raises UsageError where it cannot be."""
    if asked == "on" and sizes_vary:
        raise UsageError(
            "--compile on: each image has its own size, and each size would be compiled; drop it, "
            "or use --resize crop, squash or pad"
        )
    if asked != "auto":
        return asked == "on", f"--compile {asked}"
    if before is not None:
        return before, "as this output's run began"
    is_long = device.startswith("cuda") and images >= _WORTH_COMPILING and not sizes_vary
    return is_long and _can_compile(), f"auto: {images:,} images"


def _can_compile() -> bool:
    """What torch.compile needs on CUDA: Triton, which needs a C compiler."""
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    has_compiler = any(shutil.which(name) for name in compilers if name)
    return has_compiler and importlib.util.find_spec("triton") is not None


def choose_workers(asked: int | None = None, cores: int | None = None) -> tuple[int, str]:
    """(decoding processes, reason); `cores`: those this process may use, if not given."""
    if asked is not None:
        return asked, "--workers"
    count = cores or available_cores()
    workers = max(1, min(count - 1, _MOST_WORKERS))
    return workers, f"{_count(count, 'core')}, one for the encoder"


def let_threads_sleep() -> None:
    """Have OpenMP threads that wait sleep, not spin. Only before torch is imported.

    Spinning threads and a neighbour (our own decoding workers are one) hold each other up: on two
    busy cores dinov2-base in bfloat16 ran at 9.9 images/s asleep against 4.3 spinning. Whoever
    has set OMP_WAIT_POLICY keeps it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def available_cores() -> int:
    """Cores that this process may run on: a job's share of a node, not the node."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_title(device: str) -> str:
    """For people: 'cuda:0 NVIDIA H100 80GB HBM3', 'cpu Intel Xeon, 2 cores'."""
    if device.startswith("cuda"):
        import torch

        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"{device} {_cpu_name()}, {_count(available_cores(), 'core')}"


def _cpu_name() -> str:
    if platform.system() == "Darwin":
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    else:
        found = re.search(r"^model name\s*:(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
        name = found[1] if found else ""
    plain = re.sub(r"\((R|TM|r|tm)\)|\bProcessor\b|\bCPU\b|@.*", "", name)
    return " ".join(plain.split()) or platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def library_versions() -> dict[str, str]:
    """Versions of what decides a feature's value, without importing any of it."""
    found = {"python": platform.python_version()}
    for library, names in _LIBRARIES.items():
        for name in names:
            try:
                found.setdefault(library, importlib.metadata.version(name))
            except importlib.metadata.PackageNotFoundError:
                continue
    return found
