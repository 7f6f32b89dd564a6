"""Start-up: what a run of OpenAI's CLIP imports, and what is not done while models load."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from featprep import session
from featprep.config import EncodeConfig
from featprep.encoders import openai_clip
from featprep.encoders.base import ModelName
from featprep.encoders.openai_clip import import_clip, model_room
from featprep.encoders.unfilled import unfilled
from featprep.errors import UsageError, WeightsError
from PIL import Image

HOUSE = Path(__file__).resolve().parent.parent / "data-preprocess"
_RUN = """\
import json, sys
from featprep.cli import main
if __name__ == "__main__":
    code = main(sys.argv[1:])
    heavy = ("torchvision", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy")
    print(json.dumps({"code": code, "heavy": [name for name in heavy if name in sys.modules]}))
"""


@pytest.mark.parametrize("model", ["clip:tiny", "clip:FILE"])
def test_an_encoding_run_imports_neither_torchvision_nor_torchs_compiler(
    tmp_path: Path, model: str
) -> None:
    Image.new("RGB", (64, 48), (9, 99, 199)).save(tmp_path / "a.png")
    (tmp_path / "run.py").write_text(_RUN)
    if model != "clip:tiny":
        weights = tmp_path / "w.pt"
        room = model_room()
        torch.manual_seed(0)
        network = room.CLIP(64, 64, 2, 64, 32, 77, 100, 64, 1, 1)
        torch.save(network.state_dict(), weights)
        model = f"clip:mine={weights}"
    words = ["encode", "--input", "a.png", "--output", "out", "--model", model, "--fp16", "--quiet"]
    done = subprocess.run(
        [sys.executable, "run.py", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(HOUSE), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"code": 0, "heavy": []}


def test_unfilled_modules_take_a_checkpoint_as_filled_ones_do() -> None:
    room = model_room()
    torch.manual_seed(0)
    filled = room.CLIP(64, 64, 2, 64, 32, 77, 100, 64, 1, 1).float().eval()
    tensors = filled.state_dict()
    state = torch.get_rng_state()
    with unfilled():
        model = room.build_model(dict(tensors))
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    model.load_state_dict(tensors, strict=True, assign=True)
    assert {item.dtype for item in model.state_dict().values()} == {torch.float32}
    pixels = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.visual(pixels), filled.visual(pixels))


def test_texts_first_say_nothing_of_what_the_library_imports(tmp_path: Path) -> None:
    """clip imports pkg_resources, which warns of its own end."""
    text = (
        "from featprep.encoders import load_text\n"
        "from featprep.encoders.base import LoadOptions, ModelName\n"
        "print(load_text(ModelName('clip', 'tiny'), LoadOptions()).encode_text(['a']).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=tmp_path,
        env={"PYTHONPATH": str(HOUSE), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("(1, 32)\n", "")


def test_the_room_is_the_librarys_own_file() -> None:
    import_clip()
    whole = sys.modules["clip.model"]
    assert model_room().__file__ == whole.__file__
    assert model_room().QuickGELU.__module__ == "clip.model"


@pytest.mark.parametrize("there", [None, SimpleNamespace(submodule_search_locations=["/nowhere"])])
def test_without_clip_it_is_said_what_to_type(monkeypatch: pytest.MonkeyPatch, there: Any) -> None:
    model_room.cache_clear()
    monkeypatch.setattr(openai_clip.importlib.util, "find_spec", lambda _: there)
    with pytest.raises(UsageError) as caught:
        model_room()
    assert str(caught.value).startswith("clip: models need OpenAI's clip (")
    assert str(caught.value).endswith("); type: pip install clip-anytorch 'setuptools<81'")


@pytest.mark.parametrize("was_enabled", [True, False])
def test_no_garbage_is_looked_for_while_libraries_and_models_load(
    monkeypatch: pytest.MonkeyPatch, was_enabled: bool
) -> None:
    seen: list[bool] = []

    def refuse(*_: object) -> None:
        seen.append(gc.isenabled())
        raise WeightsError("no")

    monkeypatch.setattr(session.encoders, "load_encoder", refuse)
    config = EncodeConfig(input="a", output="b", model="clip:tiny")
    (gc.enable if was_enabled else gc.disable)()
    try:
        with pytest.raises(WeightsError, match=r"^no$"):
            session.open_session(config, ModelName("clip", "tiny"))
        assert (seen, gc.isenabled()) == ([False], was_enabled)
    finally:
        gc.enable()
