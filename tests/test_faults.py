"""The system fails under a run: a clear word, the right exit code, whole files only, and the same
command goes on once the cause is gone. What single parts do stands in their own tests."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from featprep.commands import encode_run
from featprep.errors import OutOfMemoryError
from featprep.recording import Recorder
from PIL import Image
from test_encode_run import Bench, bench  # noqa: F401 (a fixture)

FLAGS = ("--size", "32", "--batch_size", "2", "--save_meta")
NAMES = ("a", "b", "c", "sub/d", "sub/e", "sub/f")
REAL_POOL = encode_run.DecodePool
GOES_ON = "Free space or mend the folder's permissions; the same command goes on from here"


@pytest.fixture
def six(bench: Bench) -> Bench:  # noqa: F811
    """Six images, and in `whole` what an undisturbed run makes of them."""
    for number, name in enumerate(NAMES):
        bench.image(f"{name}.png", (40 * number, 10, 20, 255 - 20 * number))
    assert bench.run(*FLAGS) == 0
    bench.output.rename(bench.root / "whole")
    return bench


def at_call(number: int, fault: Callable[[], object]) -> Callable[[object], None]:
    """Before the `number`-th forward pass, once."""
    left = [number]

    def before(pixels: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            fault()

    return before


def last_line(six: Bench) -> str:
    return six.said.splitlines()[-1].replace(str(six.root), "ROOT")


def check_whole(output: Path) -> None:
    """Every array opens, every map has its mask and metadata, and nothing is left half written."""
    for path in output.rglob("*"):
        assert not path.name.endswith(".tmp"), path
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)
    for path in output.rglob("*.npy"):
        if not path.stem.endswith("_mask"):
            assert path.with_name(f"{path.stem}_mask.npy").exists()
            assert path.with_suffix(".json").exists()


def goes_on(six: Bench, *flags: str) -> None:
    """The same command, the cause gone, gives what an undisturbed run gives, byte for byte."""
    six.encoder.before = lambda pixels: None
    assert six.run(*FLAGS, *flags) == 0, six.said
    found = six.tree()
    six.output.rename(six.root / "mended")
    (six.root / "whole").rename(six.output)
    assert found == six.tree()


# ---- the output


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "featprep-test", str(path)]
    try:
        done = subprocess.run(words, capture_output=True)
    except FileNotFoundError:
        done = None
    if done is None or done.returncode:
        pytest.skip("needs to mount a small tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


@pytest.mark.parametrize("small", ["nr_inodes=18", "size=48k"], ids=["files", "bytes"])
def test_a_disk_that_is_truly_full_ends_the_run_with_four(six: Bench, small: str) -> None:
    with mounted(six.output, small):
        (six.output / "ballast").write_bytes(b"")
        assert six.run(*FLAGS) == 4
        assert re.fullmatch(
            rf"featprep: cannot write ROOT/out/\S+: No space left on device\. {GOES_ON}",
            last_line(six),
        )
        check_whole(six.output)
        assert 0 < len(list(six.output.rglob("*_mask.npy"))) < 6
        remount(six.output, "nr_inodes=1000,size=4m")
        (six.output / "ballast").unlink()
        six.encoder.before = lambda pixels: None
        assert six.run(*FLAGS) == 0
        found = six.tree()
    six.output.rmdir()
    (six.root / "whole").rename(six.output)
    assert found == six.tree()


def test_a_disk_that_turns_read_only_under_a_run_ends_it_with_four(six: Bench) -> None:
    with mounted(six.output, "size=4m"):
        six.encoder.before = at_call(2, lambda: remount(six.output, "ro"))
        assert six.run(*FLAGS) == 4
        assert re.fullmatch(
            rf"featprep: cannot (write|clean|list) ROOT/out/\S+: Read-only file system\. {GOES_ON}",
            last_line(six),
        )
        check_whole(six.output)
        remount(six.output, "rw")
        (six.output / ".featprep/lock-all").unlink()  # its holder, this process, is no more
        six.encoder.before = lambda pixels: None
        assert six.run(*FLAGS) == 0
        found = six.tree()
    six.output.rmdir()
    (six.root / "whole").rename(six.output)
    assert found == six.tree()


def test_a_limit_on_the_size_of_files_ends_the_run_with_four(six: Bench) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python itself sets it
    limit = 2600  # bytes: the records pass it, and no other file
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        code = six.run(*FLAGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert code == 4
    assert re.fullmatch(
        rf"featprep: cannot write ROOT/out/\S+: File too large\. {GOES_ON}", last_line(six)
    )
    check_whole(six.output)
    goes_on(six)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_output_that_is_deleted_under_a_run_ends_it_with_four(six: Bench, number: int) -> None:
    def delete() -> None:
        while len(six.lines("results-all.jsonl")) < 2 * (number - 1):  # the writer thread is behind
            time.sleep(0.01)
        shutil.rmtree(six.output)

    six.encoder.before = at_call(number, delete)
    assert six.run(*FLAGS) == 4
    assert last_line(six).endswith(f": No such file or directory. {GOES_ON}")
    assert not six.output.exists()
    goes_on(six)


# ---- the input


def _gone(six: Bench) -> None:
    (six.input / "sub/f.png").rename(six.root / "f.png")


def _back(six: Bench) -> None:
    (six.root / "f.png").rename(six.input / "sub/f.png")


def _cut(six: Bench) -> None:
    shutil.copy2(six.input / "sub/f.png", six.root / "f.png")
    os.truncate(six.input / "sub/f.png", 50)


def _uncut(six: Bench) -> None:
    shutil.copy2(six.root / "f.png", six.input / "sub/f.png")


def _folder_gone(six: Bench) -> None:
    (six.input / "sub").rename(six.root / "sub")


def _folder_back(six: Bench) -> None:
    (six.root / "sub").rename(six.input / "sub")


def _a_folder_instead(six: Bench) -> None:
    _gone(six)
    (six.input / "sub/f.png").mkdir()


def _no_folder_instead(six: Bench) -> None:
    (six.input / "sub/f.png").rmdir()
    _back(six)


@pytest.mark.parametrize(
    ("fault", "repair", "failed"),
    [
        (_gone, _back, {"sub/f": "read: No such file or directory"}),
        (_cut, _uncut, {"sub/f": "decode: PNG is truncated: the file ends before the image does"}),
        (_folder_gone, _folder_back, {f"sub/{n}": "read: No such file or directory" for n in "f"}),
        (_a_folder_instead, _no_folder_instead, {"sub/f": "read: Is a directory"}),
    ],
    ids=["an image is gone", "it is cut short", "its folder is gone", "a folder stands there"],
)
def test_what_happens_to_an_image_under_a_run_costs_that_image_alone(
    six: Bench,
    fault: Callable[[Bench], None],
    repair: Callable[[Bench], None],
    failed: dict[str, str],
) -> None:
    six.encoder.before = at_call(2, lambda: fault(six))
    assert six.run(*FLAGS) == 3
    told = {f["key"]: f"{f['stage']}: {f['reason']}" for f in six.lines("failures.jsonl")}
    assert told.items() >= failed.items()
    check_whole(six.output)
    repair(six)
    goes_on(six)
    assert not (six.root / "mended/.featprep/failures.jsonl").exists()


def test_an_image_that_changes_under_a_run_is_recorded_as_what_was_read(six: Bench) -> None:
    def change() -> None:
        six.image("sub/f.png", (250, 240, 230))

    six.encoder.before = at_call(2, change)
    assert six.run(*FLAGS) == 0
    assert six.load("sub/f.npy")[:, 0, 0].tolist() == [250.0, 240.0, 230.0]
    six.encoder.calls.clear()
    assert six.run(*FLAGS) == 0
    assert six.encoder.calls == []


# ---- the process


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_device_at_any_batch_costs_nothing(six: Bench, number: int) -> None:
    def full() -> None:
        raise OutOfMemoryError("no room")

    six.encoder.before = at_call(number, full)
    assert six.run(*FLAGS) == 0
    assert "the device is full: going on with batches of 1" in six.said
    assert not (six.output / ".featprep/failures.jsonl").exists()
    goes_on(six)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal access"), MemoryError()])
def test_a_network_that_breaks_at_any_batch_loses_no_finished_result(
    six: Bench, number: int, error: Exception
) -> None:
    def break_down() -> None:
        raise error

    six.encoder.before = at_call(number, break_down)
    assert six.run(*FLAGS) == 1
    assert last_line(six) == (
        "featprep: this is a defect of ours; please report it with the lines above"
    )
    assert len(six.lines("results-all.jsonl")) == 2 * (number - 1)
    check_whole(six.output)
    goes_on(six)


@pytest.mark.parametrize("number", [1, 2, 6])
@pytest.mark.parametrize(
    ("error", "code"),
    [(RuntimeError("a defect"), 1), (OSError(errno.EIO, "Input/output error"), 1)],
)
def test_a_writer_that_dies_at_any_result_loses_no_other(
    six: Bench, number: int, error: Exception, code: int
) -> None:
    real, left = Recorder.write, [number]

    def write(recorder: Recorder, row: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise error
        real(recorder, row)  # type: ignore[arg-type]

    six.monkeypatch.setattr(Recorder, "write", write)
    assert six.run(*FLAGS) == code
    assert len(six.lines("results-all.jsonl")) == number - 1
    check_whole(six.output)
    goes_on(six)


def decoding_processes() -> list[psutil.Process]:
    """Those of this process that decode, however the run made them."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(process.cmdline())
    ]


@pytest.fixture
def in_processes(six: Bench) -> Bench:
    """`six`, whose runs decode in processes of their own."""
    set_attribute = six.monkeypatch.setattr
    six.monkeypatch.setattr = lambda place, name, value: set_attribute(  # type: ignore[method-assign]
        place, name, REAL_POOL if (place, name) == (encode_run, "DecodePool") else value
    )
    return six


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "the decoder died (SIGKILL)"),
        (signal.SIGSEGV, "the decoder died (SIGSEGV)"),
    ],
    ids=["killed, as when memory is short", "crashes"],
)
def test_a_decoding_process_that_ends_costs_at_most_the_image_it_had(
    in_processes: Bench, number: signal.Signals, reason: str, workers: str
) -> None:
    six, hit = in_processes, []

    def strike() -> None:
        hit.extend(decoding_processes()[:1])
        hit[0].send_signal(number)

    for name in "ghijklmnopqrstuvwxyz":  # enough that there is work after the blow
        six.image(f"more/{name}.png", (9, 9, 9))
    six.encoder.before = at_call(1, strike)
    flags = ("--workers", workers)
    code = six.run(*FLAGS, *flags)
    failed = [line["reason"] for line in six.lines("failures.jsonl")]
    assert len(hit) == 1
    assert failed in ([reason], [])  # it may have been between two images
    assert code == (3 if failed else 0), six.said
    assert len(six.lines("results-all.jsonl")) == 26 - len(failed)
    check_whole(six.output)
    shutil.rmtree(six.input / "more")
    shutil.rmtree(six.output / "more")
    goes_on(six, *flags)
    assert decoding_processes() == []


def test_a_decoder_that_hangs_costs_its_image_alone(in_processes: Bench) -> None:
    """Its process is stopped while it decodes a large image, which its memory tells."""
    six, hit = in_processes, []
    large = six.input / "sub/large.png"
    Image.new("L", (12_000, 12_000)).save(large, compress_level=1)
    is_over = threading.Event()

    def strike() -> None:
        while not hit and not is_over.wait(0.005):
            with contextlib.suppress(psutil.Error):
                found = [p for p in decoding_processes() if p.memory_info().rss > 250_000_000]
                hit.extend(found[:1])
                found[0].suspend() if found else None

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        code = six.run(*FLAGS, "--workers", "2", "--decode_timeout", "10")
    finally:
        is_over.set()
        striker.join()
    assert len(hit) == 1
    assert code == 3, six.said
    assert [(line["key"], line["reason"]) for line in six.lines("failures.jsonl")] == [
        ("sub/large", "decoding took longer than 10 s (--decode_timeout)")
    ]
    check_whole(six.output)
    large.unlink()
    goes_on(six, "--workers", "2")
    assert decoding_processes() == []
