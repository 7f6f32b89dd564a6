"""The shell scripts: which Python they choose and make, with stubs for it; real runs on tiny."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from featprep.extras import EXTRAS
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

# A Python that installs nothing. It lacks what the file `lacks` beside it says; `-m venv` copies
# it; pip completes it, or fails with FAKE_PIP in its log. `-c` is real: versions and locks are.
STUB = f"""#!/usr/bin/env bash
here=$(cd "$(dirname "$0")" && pwd)
printf '%s\\n' "$*" >>"$FAKE_LOG"
case "$*" in
    -c*) exec {sys.executable} "$@" ;;
    *_have.py*) cat "$here/lacks" 2>/dev/null; [[ ! -e $here/lacks ]] ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo torch >"$3/bin/lacks" ;;
    "-m pip --version") ;;
    "-m pip "*" -r "*)
        printf '%s' "$FAKE_PIP" >"$(sed 's/.*--log \\(.*\\) install.*/\\1/' <<<"$*")"
        [[ -z $FAKE_PIP ]] || exit 1
        sleep "${{FAKE_PIP_SECONDS:-0}}"
        rm -f "$here/lacks" ;;
    "-m pip "*) ;;
    *) printf 'ran by %s:' "$0"; printf ' [%s]' "$@"; echo ;;
esac
"""
DF = "#!/bin/sh\nprintf 'head\\nx 0 0 52428800 0%% /\\n'\n"


class House:
    """A copy of the scripts in a folder with a blank in its name, and a PATH full of stubs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a house"
        self.venv = self.root / ".venv"
        self.bin = folder / "bin"
        self.log = folder / "log"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        for name in ("pyproject.toml", "requirements.txt", "requirements-all.txt"):
            shutil.copy(ROOT / name, self.root)
        self.bin.mkdir()
        for name in ("python", "python3", "python3.11", "python3.12", "python3.13"):
            self.put(self.bin / name, STUB)
        self.put(self.bin / "df", DF)
        self.put(self.bin / "uname", "#!/bin/sh\necho Linux\n")
        (self.bin / "lacks").write_text("torch, clip-anytorch\n")

    @staticmethod
    def put(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start(self, script: str, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "scripts" / script), *words],
            env={
                "PATH": f"{self.bin}:/usr/bin:/bin", "FAKE_LOG": str(self.log), "FAKE_PIP": "",
                "TMPDIR": "/tmp", **environment,
            },
            cwd=self.bin.parent,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of the CLIP wrapper."""
        process = self.start("encode_clip_features.sh", *words, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def calls(self, pattern: str) -> list[str]:
        """The calls of any stub that match, since the last time this was asked."""
        lines = self.log.read_text().splitlines()
        self.log.unlink()
        return [line for line in lines if re.search(pattern, line)]

    def ran_by(self, python: Path, *words: str) -> str:
        script = f"{self.root}/scripts/../data-preprocess/encode_with_clip.py"
        return f"ran by {python}: " + " ".join(f"[{word}]" for word in (script, *words)) + "\n"


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_the_python_that_is_given_is_used_and_gets_every_argument(house: House) -> None:
    mine = house.bin.parent / "my own" / "python"
    house.put(mine, STUB)
    words = ("--input", "a b", "--model", "", "--limit=3")
    assert house.run(*words, PYTHON=str(mine)) == (0, house.ran_by(mine, *words), "")


def test_a_given_python_that_lacks_something_is_refused(house: House) -> None:
    python = house.bin / "python3"
    assert house.run("--input", "x", PYTHON=str(python)) == (
        2,
        "",
        f"featprep: PYTHON={python} lacks torch, clip-anytorch: run {python} -m pip install"
        f" -r {house.root}/requirements.txt, or unset PYTHON\n",
    )
    assert not house.venv.exists()


def test_a_given_python_that_does_not_run_is_refused(house: House) -> None:
    assert house.run("--input", "x", PYTHON="/no/such/python") == (
        2,
        "",
        "featprep: PYTHON=/no/such/python does not run: name a Python 3.11 to 3.13, or unset"
        " PYTHON\n",
    )


def test_an_active_environment_that_has_what_is_needed_is_used(house: House) -> None:
    (house.bin / "lacks").unlink()
    assert house.run("--plan") == (0, house.ran_by(house.bin / "python3", "--plan"), "")
    assert not house.venv.exists()


def test_without_one_a_venv_is_made_once_and_its_size_is_said_before(house: House) -> None:
    python = house.venv / "bin" / "python"
    said = (
        f"featprep: {house.bin}/python3 lacks torch, clip-anytorch\n"
        f"featprep: making {house.venv}: about 6 GB, most of it CUDA (50.0 GB free), once. PYTHON"
        " names another interpreter, FEATPREP_PIP_ARGS a mirror or a torch without CUDA\n"
        f"featprep: made {house.venv}\n"
    )
    assert house.run("--plan") == (0, house.ran_by(python, "--plan"), said)
    assert house.run("--plan") == (0, house.ran_by(python, "--plan"), "")
    assert len(house.calls("-m pip .* -r ")) == 1


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_makes_nothing(house: House, word: str) -> None:
    words = ("--input", "x", word)
    assert house.run(*words) == (0, house.ran_by(house.bin / "python3", *words), "")
    assert not house.venv.exists()


def test_the_users_words_go_to_pip(house: House) -> None:
    house.run(FEATPREP_PIP_ARGS="--index-url https://mirror/simple  --pre")
    calls = house.calls("-m pip .* install")
    assert [" --index-url https://mirror/simple --pre " in call for call in calls] == [True, True]
    assert calls[0].endswith(f" -r {house.root}/requirements.txt")
    assert calls[1].endswith(f" --no-deps --no-build-isolation -e {house.root}")


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "pip._vendor.urllib3.exceptions.NewConnectionError: refused",
            "the package index was not reached: check the network, or name a mirror with"
            " FEATPREP_PIP_ARGS='--index-url URL'",
        ),
        (
            "OSError: [Errno 28] No space left on device",
            "no space left (50.0 GB free in .venv, 50.0 GB free in /tmp, where pip unpacks; TMPDIR"
            " names another place)",
        ),
        ("ERROR: no such option", "the reason stands above"),
    ],
    ids=["network", "disk", "else"],
)
def test_a_failed_first_try_says_why_and_the_second_starts_over(
    house: House, log: str, reason: str
) -> None:
    code, out, err = house.run("--plan", FAKE_PIP=log)
    assert (code, out, err.splitlines()[-1]) == (
        4,
        "",
        f"featprep: pip could not install into {house.venv}: {reason}; the same command tries"
        " again",
    )
    (house.venv / "half of torch").mkdir()
    assert house.run("--plan")[:2] == (0, house.ran_by(house.venv / "bin" / "python", "--plan"))
    assert not (house.venv / "half of torch").exists()


def test_changed_requirements_are_installed_into_the_venv_that_is_there(house: House) -> None:
    house.run()
    (house.venv / "kept").touch()
    with (house.root / "requirements.txt").open("a") as file:
        file.write("another>=1\n")
    house.calls("")
    assert house.run()[0] == 0
    assert len(house.calls("-m pip .* -r ")) == 1
    assert (house.venv / "kept").exists()


def test_a_venv_that_lost_a_package_is_completed(house: House) -> None:
    house.run()
    (house.venv / "bin" / "lacks").write_text("numpy\n")
    assert house.run()[0] == 0
    assert not (house.venv / "bin" / "lacks").exists()


def test_a_venv_of_the_users_own_is_added_to_and_never_emptied(house: House) -> None:
    house.put(house.venv / "bin" / "python", STUB)
    (house.venv / "bin" / "lacks").write_text("torch\n")
    (house.venv / "precious").touch()
    assert house.run(FAKE_PIP="ERROR")[0] == 4
    assert house.run()[0] == 0
    assert (house.venv / "precious").exists()
    assert house.calls("-m venv") == []


def test_a_venv_of_the_users_own_whose_python_is_gone_is_left_to_the_user(house: House) -> None:
    house.put(house.venv / "precious", "")
    code, _, err = house.run()
    assert (code, err.splitlines()[-1]) == (
        2,
        f"featprep: {house.venv} is not of our making, and its Python is missing or not 3.11 to"
        " 3.13: remove the folder and run the same command",
    )
    assert (house.venv / "precious").exists()


def test_a_venv_that_is_a_link_is_made_where_it_leads(house: House) -> None:
    roomy = house.bin.parent / "roomy"
    roomy.mkdir()
    house.venv.symlink_to(roomy)
    assert house.run()[0] == 0
    assert house.calls("-m venv") == [f"-m venv {roomy}"]
    assert (house.venv.is_symlink(), (roomy / "bin" / "python").is_file()) == (True, True)


def test_two_commands_at_once_make_one_venv(house: House) -> None:
    both = [house.start("encode_clip_features.sh", FAKE_PIP_SECONDS="1") for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(house.calls("-m pip .* -r ")) == 1
    assert (
        sum("featprep: another command is making .venv; waiting for it\n" in err for err in said)
        == 1
    )


def test_without_a_python_of_a_version_that_will_do_nothing_is_made(house: House) -> None:
    for name in ("python", "python3", "python3.11", "python3.12", "python3.13"):
        house.put(house.bin / name, "#!/bin/sh\n[ \"$1\" = -V ] && echo Python 3.9.2\n"
                  "[ \"$2\" = '' ]\n")  # fmt: skip
    tried = "".join(
        f"; {name} is Python 3.9.2"
        for name in ("python3", "python", "python3.13", "python3.12", "python3.11")
    )
    code, _, err = house.run()
    assert (code, err.splitlines()[-1]) == (
        2,
        "featprep: making .venv needs Python 3.11, 3.12 or 3.13, and none on the PATH will"
        f" do{tried}: install one, or name an environment that has what is needed with"
        " PYTHON=/path/to/python3",
    )
    assert not house.venv.exists()


@pytest.mark.parametrize(
    ("script", "needs", "command"),
    [
        ("test.sh", "run test vectors retrieval", "[-m] [pytest]"),
        ("check.sh", "run check", "[-m] [ruff] [format]"),
    ],
)
def test_each_script_asks_for_what_it_needs(
    house: House, script: str, needs: str, command: str
) -> None:
    (house.bin / "lacks").unlink()
    out, _ = house.start(script).communicate(timeout=60)
    assert out.startswith(f"ran by {house.bin}/python3: {command}")
    assert house.calls("_have.py") == [f"{house.root}/scripts/_have.py {needs}"]


def have(*groups: str, python: str = sys.executable) -> tuple[int, str]:
    done = subprocess.run(
        [python, str(ROOT / "scripts" / "_have.py"), *groups],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_the_python_that_runs_the_tests_has_what_running_and_testing_need() -> None:
    assert have("run", "test") == (0, "")


def test_a_python_without_packages_is_told_so_and_not_by_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "scripts" / "_have.py")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (1, "what requirements.txt lists\n", "")


# The lists


def requirements(name: str) -> dict[str, Requirement]:
    lines = (line.partition(" #")[0].strip() for line in (ROOT / name).read_text().splitlines())
    found = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    return {item.name.lower().replace("_", "-"): item for item in found}


def test_requirements_txt_and_pyproject_ask_for_the_same() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = table["optional-dependencies"]
    listed = [
        Requirement(line) for line in table["dependencies"] + extras["test"] + extras["check"]
    ]
    assert list(requirements("requirements.txt").values()) == listed


def test_the_tested_set_has_every_requirement_within_its_bounds() -> None:
    tested = requirements("requirements-tested.txt")
    outside = []
    both = requirements("requirements.txt") | requirements("requirements-all.txt")
    for name, wanted in both.items():
        (pin,) = tested[name].specifier
        if pin.operator != "==" or not wanted.specifier.contains(pin.version):
            outside.append(f"{wanted} but {tested[name]}")
    assert outside == []


def optional() -> dict[str, list[str]]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = table["optional-dependencies"]
    return {name: lines for name, lines in extras.items() if name not in ("test", "check")}


def test_everything_is_what_is_needed_and_every_optional_part() -> None:
    lines = (ROOT / "requirements-all.txt").read_text().splitlines()
    assert next(line for line in lines if line and line[0] != "#") == "-r requirements.txt"
    listed = [Requirement(line) for lines in optional().values() for line in lines]
    assert list(requirements("requirements-all.txt").values()) == listed


def test_a_missing_part_is_asked_for_as_pyproject_lists_it() -> None:
    assert {name: list(lines) for name, lines in EXTRAS.items()} == optional()


def test_the_tests_are_run_with_every_optional_part(house: House) -> None:
    house.start("test.sh", "-x").communicate(timeout=60)
    (installed,) = house.calls("-m pip .* -r ")
    assert installed.endswith(f" -r {house.root}/requirements-all.txt")
    needs = " ".join(["run test", *optional()])
    assert f'featprep_needs="{needs}"' in (ROOT / "scripts/test.sh").read_text()
    needs = " ".join(["run test check", *optional()])
    assert f'featprep_needs="{needs}"' in (ROOT / ".ci/run").read_text()


def test_the_command_featprep_leads_to_a_function() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = table["scripts"]["featprep"].partition(":")
    assert callable(getattr(import_module(module), function))


# Real runs


def real(script: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(script), *words], cwd=cwd, env={**os.environ, "PYTHON": sys.executable},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """a/left.png: the left half is opaque; b.jpg: opaque; broken.png: no image."""
    folder = tmp_path / "my photos"
    (folder / "a").mkdir(parents=True)
    left = np.zeros((40, 60, 4), np.uint8)
    left[:, :30] = (200, 80, 40, 255)
    Image.fromarray(left).save(folder / "a" / "left.png")
    Image.new("RGB", (50, 50), (10, 20, 30)).save(folder / "b.jpg")
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")
    return folder


@pytest.mark.parametrize("family", ["clip", "dino"])
def test_a_wrapper_encodes_a_folder_named_relative_to_where_it_is_called(
    family: str, photos: Path
) -> None:
    done = real(
        ROOT / "scripts" / f"encode_{family}_features.sh",
        "--input", "my photos", "--output", "out", "--model", "tiny", "--size", "112,168",
        cwd=photos.parent,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    out = photos.parent / "out"
    written = {str(path.relative_to(out)) for path in out.rglob("*.npy")}
    assert written == {"a/left.npy", "a/left_mask.npy", "b.npy", "b_mask.npy"}
    assert np.load(out / "a" / "left.npy").shape == (64, 8, 12)
    assert np.load(out / "a" / "left_mask.npy").tolist() == [[1] * 6 + [0] * 6] * 8
    assert np.load(out / "b_mask.npy").tolist() == [[1] * 12] * 8


@pytest.mark.parametrize("family", ["clip", "dino"])
def test_an_entry_script_is_run_by_any_python_that_has_what_is_needed(
    family: str, photos: Path
) -> None:
    script = ROOT / "data-preprocess" / f"encode_with_{family}.py"
    words = ["--input", "my photos", "--output", "out", "--model", "tiny", "--plan"]
    done = real(Path(sys.executable), str(script), *words, cwd=photos.parent)
    assert done.returncode == 0, done.stderr
    assert not (photos.parent / "out").exists()


def test_a_wrapper_hands_on_a_refusal_and_its_exit_code(tmp_path: Path) -> None:
    done = real(ROOT / "scripts" / "encode_dino_features.sh", "--input", "x", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("featprep: --output is required: ")


def test_the_quickstart_runs_over_what_a_broken_first_try_left(tmp_path: Path) -> None:
    images = tmp_path / "first look" / "images"
    (images / "solids").mkdir(parents=True)
    (images / "solids" / "ring.png").write_bytes(b"half a file")
    (images / ".group.png.partial").write_bytes(b"half a file")
    done = real(ROOT / "scripts" / "quickstart.sh", "first look", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 of 8 images drawn in" in done.stdout
    keys = {
        "group", "solids/ball", "solids/ring", "solids/cone", "solids/block",
        "grounds/dunes", "grounds/tiles", "grounds/wood",
    }  # fmt: skip
    for family in ("clip", "dino"):
        out = tmp_path / "first look" / family
        for key in keys:
            assert np.load(out / f"{key}.npy").shape == (64, 16, 16)
            mask = np.load(out / f"{key}_mask.npy")
            assert mask.min() == (1 if key.startswith("grounds/") else 0)
            assert (out / f"{key}.json").is_file()
        with Image.open(tmp_path / "first look" / f"{family}.png") as picture:
            assert picture.width > 2 * picture.height
        assert f"{family}/\n" in done.stdout
        assert f"    {'group.npy':28} float32 (64, 16, 16)\n" in done.stdout
    assert len(list(images.rglob("*.*"))) == len(keys)


def test_the_examples_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    module = import_module("draw_examples")
    names = ("solids/ball.png", "grounds/wood.jpg")
    monkeypatch.setattr(module, "EXAMPLES", {name: module.EXAMPLES[name] for name in names})
    assert (module.draw(tmp_path), module.draw(tmp_path)) == (2, 0)
    with Image.open(tmp_path / "solids/ball.png") as ball:
        alpha = np.asarray(ball)[..., 3]
    assert (ball.mode, ball.size) == ("RGBA", (256, 256))
    assert (alpha.min(), alpha.max()) == (0, 255)
    assert 0.02 < ((alpha > 0) & (alpha < 255)).mean() < 0.1
