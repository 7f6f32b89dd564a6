"""A map and its mask → one vector. Pure, of arrays; knows no file and no encoder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from featprep.records import AnyArray


def masked_mean(feature: AnyArray, mask: AnyArray) -> AnyArray:
    """(C, gh, gw) and weights (gh, gw) → (C,): the mean over the cells, weighted by the mask.

    Summed in float64, given back in the map's own dtype, which holds it: a mean lies between the
    cells. Zeros where no cell is set.
    """
    weights = mask.astype(np.float64)
    total = weights.sum()
    if not total:
        return np.zeros(len(feature), feature.dtype)
    cells = feature.reshape(len(feature), -1).astype(np.float64)
    mean: AnyArray = (cells @ (weights.ravel() / total)).astype(feature.dtype)
    return mean


def masked_vectors(maps: Mapping[int, AnyArray], mask: AnyArray) -> dict[str, AnyArray]:
    """What --masked_pool stores: `masked` of the first layer, `masked@L` of the others, and
    `empty`, a bool: whether no cell is set."""
    first, *others = maps
    return {
        "masked": masked_mean(maps[first], mask),
        **{f"masked@{layer}": masked_mean(maps[layer], mask) for layer in sorted(others)},
        "empty": np.array(not mask.any()),
    }
