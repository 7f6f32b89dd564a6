"""Whether an encoder's maps are those of its reference, and depend on nothing but their image.

Compares and judges. Knows no file and prints nothing; the questions are in certify_cases.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np

from featprep.certify_cases import Case, default_cases, generate_images, is_offered
from featprep.devices import reduced_precisions
from featprep.encoders import describe, load_encoder
from featprep.encoders.base import (
    ComputeDtype,
    Encoder,
    EncoderSpec,
    LoadOptions,
    ModelName,
    PosEmbed,
    Want,
)
from featprep.records import AnyArray, FeatureMaps
from featprep.references import open_reference
from featprep.references.conversions import CONVERSIONS, openai_state

__all__ = [
    "Case", "Difference", "Verdict", "certify", "certify_conversion", "default_cases",
    "generate_images", "measure",
]  # fmt: skip

TOLERANCE = 1e-4  # of max(1, rms of the reference), in float32
LEAST_COSINE = 0.999  # of the whole map, in bfloat16 and float16
# Times the movement of a network whose weights alone are rounded so, once a layer, where a run in
# that precision rounds every intermediate: several a layer. Never more than _LARGEST.
_UNSTABLE, _LARGEST = 10, 0.1
Rule = Literal["close", "aligned", "equal"]
_OWN = ("neighbours", "order", "alone")


@dataclass(frozen=True, slots=True)
class Difference:
    """How far an array is from what it should be. `cosine`: of the whole arrays, flattened;
    `low_cosine`: the 1st percentile of the cosines of their cells. `rms`: of what it should be."""

    max_abs: float
    rms: float
    relative: float  # ‖ours − reference‖ / ‖reference‖
    cosine: float
    low_cosine: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """`part`: what was compared, map@11, prefix, pooled against the reference; or our own map of
    one image against itself: alone, among others (neighbours), in another order.

    `rule`: close, within TOLERANCE; aligned, of reduced precision; equal, bit for bit. `movement`:
    1 - cosine of upstream's own map when its weights alone are rounded to that precision: of an
    unstable network, such as a random CNN, it can be more than LEAST_COSINE leaves.
    """

    case: Case
    part: str
    rule: Rule
    difference: Difference
    movement: float = 0.0

    @property
    def is_own(self) -> bool:
        """Whether ours is held against itself."""
        return self.part in _OWN

    @property
    def share(self) -> float:
        """Of what the rule allows, how much is used: above 1 it is broken."""
        found = self.difference
        if not np.isfinite([found.max_abs, found.cosine]).all():
            return float("inf")
        if self.rule == "aligned":
            unstable = min(_LARGEST, _UNSTABLE * self.movement)
            return (1 - found.cosine) / max(1 - LEAST_COSINE, unstable)
        if self.rule == "equal":
            return float("inf") if found.max_abs else 0.0
        return found.max_abs / (TOLERANCE * max(1.0, found.rms))

    @property
    def is_within(self) -> bool:
        return self.share <= 1


_NO_LIKENESS = Difference(float("inf"), 0.0, float("inf"), 0.0, 0.0)
_NOTHING: AnyArray = np.empty(0)


def certify(
    name: ModelName, cases: Sequence[Case] | None = None, options: LoadOptions | None = None
) -> list[Verdict]:
    """Every case against the family's reference, which runs on the CPU, and, of the default ones,
    invariance too.

    One model is held at a time: ours in each precision, then the reference. Raises WeightsError.
    """
    options = options or LoadOptions()
    reduced = reduced_precisions(options.device)
    asked = default_cases(_spec(name), reduced) if cases is None else cases
    answers, own = _answers(name, asked, options, is_whole=cases is None)
    return [*_against_reference(name, answers, options.quick_gelu), *own]


def certify_conversion(
    name: ModelName, family: str, options: LoadOptions | None = None
) -> list[Verdict]:
    """The weights of one of clip: through another library: our encoder of `family` on what
    conversions makes of them, against our encoder of clip:, in float32. Raises WeightsError."""
    with tempfile.TemporaryDirectory(prefix="featprep-convert-") as folder:
        path = CONVERSIONS[family](openai_state(name), Path(folder))
        other = ModelName(family, "converted", str(path))
        specs = [_spec(name), _spec(other)]
        cases = [
            case
            for case in default_cases(specs[0])
            if not case.is_reduced and is_offered(specs[1], case.want)
        ]
        load = options or LoadOptions()
        ours, theirs = (_answers(one, cases, load)[0] for one in (name, other))
    return [verdict for case in cases for verdict in compare(case, theirs[case], ours[case])]


def _spec(name: ModelName) -> EncoderSpec:
    return describe(name) or load_encoder(name, LoadOptions()).spec


Answers = dict[Case, FeatureMaps]


def _answers(
    name: ModelName, cases: Sequence[Case], options: LoadOptions, *, is_whole: bool = False
) -> tuple[Answers, list[Verdict]]:
    """(what our encoder gives, and with `is_whole` how it holds against itself)."""

    def setting(case: Case) -> tuple[ComputeDtype, PosEmbed]:
        return case.compute, case.pos_embed

    answers, own = Answers(), list[Verdict]()
    for (compute, pos_embed), alike in groupby(sorted(cases, key=setting), setting):
        group = list(alike)
        want = Want(pooled=any(case.want.pooled for case in group))
        encoder = load_encoder(
            name, replace(options, compute=compute, pos_embed=pos_embed, want=want)
        )
        answers |= {case: encoder.encode(case.pixels, case.want) for case in group}
        if is_whole and pos_embed == "transformers":
            own += invariance(encoder, min(group, key=lambda case: case.height * case.width))
        del encoder  # before the next is loaded
        gc.collect()
    return answers, own


def _against_reference(name: ModelName, answers: Answers, quick_gelu: bool | None) -> list[Verdict]:
    """The reference sees each batch once for all that is asked of it."""
    verdicts: list[Verdict] = []
    expected = _expected(name, list(answers), quick_gelu)
    for case, reference in expected.items():
        verdicts += compare(case, answers[case], reference)
    shaky = {one.case for one in verdicts if one.rule == "aligned" and not one.is_within}
    for compute in {case.compute for case in shaky}:
        unstable = [case for case in shaky if case.compute == compute]
        rounded = _expected(name, unstable, quick_gelu, compute)
        verdicts = [
            _allowing(one, rounded[one.case], expected[one.case]) if one.case in rounded else one
            for one in verdicts
        ]
    return verdicts


def _expected(
    name: ModelName, cases: Sequence[Case], quick_gelu: bool | None, rounded: str | None = None
) -> Answers:
    def batch(case: Case) -> tuple[str, int, int, int]:
        return case.pos_embed, case.height, case.width, case.batch

    answers = Answers()
    for pos_embed, group in groupby(sorted(cases, key=batch), lambda case: case.pos_embed):
        with warnings.catch_warnings():  # upstream's, of its own deprecations
            warnings.simplefilter("ignore")
            reference = open_reference(name, pos_embed, quick_gelu)
            if rounded:
                reference.round_weights(rounded)
            for _, alike in groupby(group, batch):
                same = list(alike)
                found = reference.answer(same[0].pixels, [case.want for case in same])
                answers |= dict(zip(same, found, strict=True))
        del reference
        gc.collect()
    return answers


def _allowing(verdict: Verdict, rounded: FeatureMaps, expected: FeatureMaps) -> Verdict:
    left, right = _parts(rounded).get(verdict.part), _parts(expected).get(verdict.part)
    if left is None or right is None:  # shapes differ
        return verdict
    return replace(verdict, movement=1 - measure(left, right).cosine)


def compare(case: Case, ours: FeatureMaps, reference: FeatureMaps) -> list[Verdict]:
    """A verdict on each array there is: every layer's map, the prefix, the pooled vector."""
    rule: Rule = "aligned" if case.is_reduced else "close"
    left, right = _parts(ours), _parts(reference)
    verdicts = []
    for part in {**left, **right}:
        found, wanted = left.get(part, _NOTHING), right.get(part, _NOTHING)
        if found.shape != wanted.shape or not found.size:  # never broadcast
            part = f"{part} is {found.shape}, not {wanted.shape}"
            verdicts.append(Verdict(case, part, rule, _NO_LIKENESS))
        else:
            axis = 1 if part.startswith("map") else -1
            verdicts.append(Verdict(case, part, rule, measure(found, wanted, axis)))
    return verdicts


def _parts(found: FeatureMaps) -> dict[str, AnyArray]:
    maps = {f"map@{layer}": array for layer, array in found.maps.items()}
    more = {"prefix": found.prefix, "pooled": found.pooled}
    return maps | {part: array for part, array in more.items() if array is not None}


def measure(ours: AnyArray, reference: AnyArray, axis: int = 1) -> Difference:
    """Of two arrays of one shape. `axis`: the channels'."""
    left, right = ours.astype(np.float64), reference.astype(np.float64)
    difference, tiny = left - right, np.finfo(np.float64).tiny
    lengths = np.linalg.norm(left, axis=axis) * np.linalg.norm(right, axis=axis)
    norm, own = float(np.linalg.norm(right)), float(np.linalg.norm(left))
    return Difference(
        max_abs=float(np.abs(difference).max()),
        rms=norm / right.size**0.5,
        relative=float(np.linalg.norm(difference)) / max(norm, tiny),
        cosine=float((left * right).sum()) / max(own * norm, tiny),
        low_cosine=float(np.quantile((left * right).sum(axis) / np.maximum(lengths, tiny), 0.01)),
    )


def invariance(encoder: Encoder, like: Case) -> list[Verdict]:
    """That the first image's map does not depend on the others of its batch, in this precision.

    Padded to the same size it is the same bits. Alone, or at another place of the batch, it may
    differ as another order of additions does: of EfficientNets' convolutions it does by 1e-5.
    """
    case = replace(like, batch=4, want=Want())
    pixels = case.pixels
    padded, alone = pixels.copy(), pixels[:1]
    padded[1:] = 0

    def first(batch: AnyArray, place: int = 0) -> AnyArray:
        return encoder.encode(np.ascontiguousarray(batch), case.want).map[[place]]

    expected = first(pixels)
    size: Rule = "aligned" if case.is_reduced else "close"
    return [
        Verdict(case, part, rule, measure(found, expected))
        for part, rule, found in zip(
            _OWN,
            ("equal", size, size),
            (first(padded), first(pixels[::-1], -1), first(alone)),
            strict=True,
        )
    ]
