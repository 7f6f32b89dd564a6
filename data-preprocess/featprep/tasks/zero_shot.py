"""`featprep.pipeline("zero-shot-image-classification", model)`: which labels an image shows.

The labels are any words, put into sentences by templates; the model's text tower makes a vector of
each sentence, once for a set of labels, and an image scores by its cosine with them (scores).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from featprep.encoders.base import EncoderSpec, TextEncoder, Want
from featprep.errors import UsageError
from featprep.python_words import warn_caller
from featprep.records import Failure, Features
from featprep.session import Session
from featprep.settings import shown
from featprep.tasks import scores
from featprep.tasks.calls import Call, refuse_unknown
from featprep.tasks.rows import RowEncoder
from featprep.tasks.scores import Float64
from featprep.tasks.urls import UrlLimits

TASK = "zero-shot-image-classification"
DEFAULT_MODEL = "hf:openai/clip-vit-base-patch32"
DEFAULT_TEMPLATE = "This is a photo of {}."
KEPT_SETS = 8  # of labels; a thousand labels of 768 numbers are 6 MB

Ranking = list[dict[str, Any]]
_IMAGE = Want(pooled=True)
_KEYWORDS = ("candidate_labels", "hypothesis_template", "batch_size", "timeout")


class ZeroShotClassification:
    """Both towers of a model, called with images and labels, from any number of threads."""

    def __init__(self, session: Session, tower: TextEncoder) -> None:
        self.spec = session.encoder.spec
        _check_image_tower(self.spec)
        self._encoder = RowEncoder(session)
        self._labels = LabelVectors(tower)
        self._tower = tower

    def __call__(
        self,
        images: Any,
        candidate_labels: Sequence[str],
        hypothesis_template: str | Sequence[str] = DEFAULT_TEMPLATE,
        *,
        batch_size: int | None = None,
        timeout: float | None = None,
        **unknown: Any,
    ) -> Any:
        """Of one image a list of {"score", "label"}, the highest first; of a list a list of these;
        of a generator, an iterator or a dataset, an iterator of these.

        images: see featprep.tasks.inputs. `hypothesis_template`: a sentence with {} in the label's
        place, or several, whose vectors are averaged. `batch_size`, `timeout`: as in
        featprep.tasks.feature_extraction. Scores are a softmax over the labels, of SigLIP and
        SigLIP2 a sigmoid of each. Raises UsageError, before any image is read, and ImageError with
        position and name of the first image that cannot be read or encoded.
        """
        refuse_unknown(TASK, unknown, _KEYWORDS)
        call = Call(images, batch_size, timeout)
        labels = check_labels(candidate_labels, "candidate_labels=[…]")
        vectors = self._labels.of(labels, check_templates(hypothesis_template))
        rows = self._encoder.rows(call.given, _IMAGE, batch_size, call.limits)
        return call.answer(self._ranking(row, labels, vectors) for row in rows)

    def outcomes(
        self,
        images: Iterator[Any],
        labels: Sequence[str],
        templates: Sequence[str],
        batch_size: int | None = None,
    ) -> Iterator[Ranking | Failure]:
        """As a call with a stream, but an image that fails is a Failure in its place. `labels` and
        `templates` are checked."""
        vectors = self._labels.of(tuple(labels), tuple(templates))
        for outcome in self._encoder.outcomes(images, _IMAGE, batch_size, UrlLimits()):
            if isinstance(outcome, Failure):
                yield outcome
            else:
                yield self._ranking(outcome, labels, vectors)

    def kind_of_scores(self, count: int) -> str:
        """For a message, of so many labels."""
        if self._tower.bias is None:
            return f"shares of 1 over {count:,} labels (softmax)"
        return f"a yes or no to each of {count:,} labels (sigmoid), which do not add up to 1"

    def _ranking(self, row: Features, labels: Sequence[str], vectors: Float64) -> Ranking:
        image = row.vectors["pooled"]
        found = scores.probabilities(image, vectors, self._tower.scale, self._tower.bias)
        return [
            {"score": float(found[index]), "label": labels[index]} for index in scores.ranked(found)
        ]

    def __repr__(self) -> str:
        return f"<{TASK} with {self.spec.name}>"


class LabelVectors:
    """Vectors of label sets, the last few kept."""

    def __init__(self, tower: TextEncoder) -> None:
        self._tower = tower
        self._kept: OrderedDict[tuple[tuple[str, ...], tuple[str, ...]], Float64] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> Float64:
        """(labels, D), of length one."""
        with self._lock:  # two threads with one set: computed once, too
            if (labels, templates) not in self._kept:
                self._kept[labels, templates] = self._compute(labels, templates)
            self._kept.move_to_end((labels, templates))
            if len(self._kept) > KEPT_SETS:
                self._kept.popitem(last=False)
            return self._kept[labels, templates]

    def _compute(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> Float64:
        texts = [template.replace("{}", label) for template in templates for label in labels]
        self._warn(texts)
        vectors = self._tower.encode_text(texts)
        return scores.ensemble(vectors.reshape(len(templates), len(labels), -1))

    def _warn(self, texts: Sequence[str]) -> None:
        long = self._tower.too_long(texts)
        if long:
            count = "1 text is" if len(long) == 1 else f"{len(long):,} texts are"
            warn_caller(
                f"{count} longer than the {self._tower.context} tokens of {self._tower.name}, and "
                f"truncated: {shown(long[0], 60)}"
            )


def check_labels(given: Any, example: str, what: str = "labels") -> tuple[str, ...]:
    """Raises UsageError. `example`: how the caller takes them, `what` they are, for the message."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UsageError(f"{what}: {type(given).__name__} is no list of texts; give {example}")
    if not given:
        raise UsageError(f"{what}: there are none; give {example}")
    seen: set[str] = set()
    for position, label in enumerate(given):
        if not isinstance(label, str) or not label.strip():
            raise UsageError(
                f"{what}: number {position + 1} is {_said(label)}; allowed are texts, such as 'cat'"
            )
        if label in seen:
            raise UsageError(f"{what}: {shown(label)!r} stands there twice; give it once")
        seen.add(label)
    return tuple(given)


def check_templates(given: Any) -> tuple[str, ...]:
    """Raises UsageError."""
    templates = (given,) if isinstance(given, str) else given
    if not isinstance(templates, Sequence) or not templates:
        raise UsageError(f"templates: there are none; for example {DEFAULT_TEMPLATE!r}")
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise UsageError(
                f"template {_said(template)}: {{}} must stand where the label goes; for example "
                f"{DEFAULT_TEMPLATE!r}"
            )
    return tuple(templates)


def _said(given: Any) -> str:
    return repr(shown(given)) if isinstance(given, str) and given.strip() else shown(repr(given))


def _check_image_tower(spec: EncoderSpec) -> None:
    if not spec.pooled:
        raise UsageError(
            f"{spec.name} gives no vector of a whole image to hold against texts; "
            "clip:ViT-B/32 and hf:google/siglip-base-patch16-224 do"
        )
