"""A run's maps and the text tower of the model that made them: are they of one space, one model?

Every refusal of `featprep heatmap` that is about the model is here.
"""

from __future__ import annotations

from typing import Any

from featprep import encoders
from featprep.config import EncodeConfig
from featprep.encoders.base import EncoderSpec, LoadOptions, ModelName, TextEncoder, Want
from featprep.errors import InputError, UsageError
from featprep.naming import printable
from featprep.runs import Run
from featprep.tasks.models import open_text

ALIGNED = ("projected", "value")  # --feature whose cells lie where texts do


def model_of(run: Run, asked: str | None) -> ModelName:
    """The model that made the maps. `asked`: --model, where its weights are local. Raises
    InputError if its maps are not text-aligned, and UsageError."""
    stored = str(run.fingerprint.get("encoder"))
    name = _named(run, stored, asked)
    feature = run.fingerprint.get("feature")
    if feature not in ALIGNED:
        raise InputError(
            f"{printable(run.path)}: holds --feature {feature} maps of {stored}, which are not in "
            f"the space of texts; {_way_out(encoders.describe(name), stored)}"
        )
    return name


def _named(run: Run, stored: str, asked: str | None) -> ModelName:
    if asked is not None:
        name = encoders.resolve(asked, "any")
        if str(name) != stored:
            raise UsageError(
                f"--model {asked}: {printable(run.path)} was made with {stored}; drop --model, or "
                f"name its weights, {stored}=PATH"
            )
        return name
    try:
        return encoders.resolve(stored, "any")
    except UsageError as error:
        raise InputError(
            f"{printable(run.path)}: was made with {stored}, local weights; name them: --model "
            f"{stored}=PATH"
        ) from error


def _way_out(spec: EncoderSpec | None, stored: str) -> str:
    if spec is not None and not spec.text:
        return "that model has no text tower: encode with one that has, such as clip:ViT-B/16"
    there = [] if spec is None else ["projected"] * (spec.projected_dim is not None)
    there += [] if spec is None else ["value"] * spec.has_value
    if spec is not None and not there:
        return (
            "no cell alone passes that model's head: encode with one whose cells do, such as "
            "clip:ViT-B/16"
        )
    flags = " or ".join(there or ALIGNED)
    return f"encode into another folder with --model {stored} --feature {flags}"


def open_tower(run: Run, name: ModelName, settings: dict[str, Any]) -> tuple[TextEncoder, str]:
    """(the text tower, how it is known to be of the run's weights). Raises UsageError where it is
    not, and WeightsError.

    `settings`: device, trust_weights, quick_gelu, as far as given.
    """
    plain = {"input": "(memory)", "output": "(memory)", "model": str(name)}
    config = EncodeConfig(**{**plain, **settings})
    tower = open_text(name, config)
    return tower, _check_weights(run, name, tower, config)


def _check_weights(run: Run, name: ModelName, tower: TextEncoder, config: EncodeConfig) -> str:
    """By the publisher's sha256 of the files where run and tower have it. Else the image tower is
    read once, and its digest is the run's or not: of local weights a name says nothing."""
    if name.id == "tiny" and name.path is None:
        return "made of the same seed as the maps'"
    before, now = run.about.get("weights_files") or {}, tower.weights_files
    shared = [file for file in now if file in before]
    if any(before[file] != now[file] for file in shared):
        raise _differ(run, name)
    if shared:
        return "its file has the sha256 of the maps'"
    want = Want(feature=run.fingerprint["feature"], pooled=bool(run.fingerprint.get("pooled")))
    options = LoadOptions(
        want=want, trust_weights=config.trust_weights, quick_gelu=config.quick_gelu
    )
    if encoders.load_encoder(name, options).digest != run.fingerprint.get("weights"):
        raise _differ(run, name)
    return "the digest of its image tower is the maps'"


def _differ(run: Run, name: ModelName) -> UsageError:
    return UsageError(
        f"--model {name.typed}: not the weights that made {printable(run.path)}; give those, as "
        f"--model {name}=PATH, or encode again"
    )
