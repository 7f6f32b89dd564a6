"""Scores of images and texts: pure functions of vectors. Knows no model.

A logit is scale · cosine + bias. CLIP and its kin were trained to choose among texts: a softmax
over them. SigLIP was trained to say yes or no to each: a sigmoid of each, whatever the others are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featprep.records import AnyArray

Float64 = NDArray[np.float64]


def unit(vectors: AnyArray) -> Float64:
    """Rows of length one; a row of zeros stays one, and has cosine 0 with everything."""
    wide = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(wide, axis=-1, keepdims=True)
    scaled: Float64 = wide / np.where(lengths > 0, lengths, 1.0)
    return scaled


def ensemble(vectors: AnyArray) -> Float64:
    """(templates, labels, D) → (labels, D): the mean of the unit vectors of a label in each of its
    templates, brought back to length one (Radford et al. 2021, section 3.1.4)."""
    return unit(unit(vectors).mean(axis=0))


def probabilities(image: AnyArray, labels: Float64, scale: float, bias: float | None) -> Float64:
    """(D,) and unit (labels, D) → (labels,): a softmax over the labels, or with a bias a sigmoid of
    each."""
    logits: Float64 = scale * (labels @ unit(image)) + (bias or 0.0)
    if bias is not None:
        return np.exp(-np.logaddexp(0.0, -logits))
    powers = np.exp(logits - logits.max())
    shares: Float64 = powers / powers.sum()
    return shares


def ranked(scores: AnyArray) -> Sequence[int]:
    """Positions, the highest score first; those that are alike in the order they came."""
    order: Sequence[int] = np.argsort(-scores, kind="stable").tolist()
    return order
