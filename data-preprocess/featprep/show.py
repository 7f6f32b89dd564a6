"""One result as a picture: image | mask | first three principal components. Pure, of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from featprep.records import AnyArray, UInt8

PANEL = 336  # least height of a panel, pixels
GAP = 8
GROUND = (176, 176, 176)  # a white mask must not melt into the gap


def principal_components(feature: AnyArray, mask: AnyArray | None) -> UInt8:
    """(C, gh, gw) → (gh, gw, 3) uint8: the first three principal components of the cells as RGB.

    The components are those of the masked cells (of all, where fewer than four are masked); each is
    stretched from its 1st to its 99th percentile there. Signs are fixed by the largest loading, so
    that a picture does not change from run to run. Cells outside the mask are white.
    """
    channels, height, width = feature.shape
    cells = feature.reshape(channels, -1).T.astype(np.float64)
    inside = np.ones(len(cells), bool) if mask is None else np.asarray(mask).reshape(-1) > 0
    basis_cells = cells[inside] if inside.sum() > 3 else cells
    centre = basis_cells.mean(axis=0)
    _, _, axes = np.linalg.svd(basis_cells - centre, full_matrices=False)
    axes = axes[:3]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    scores = np.zeros((len(cells), 3))
    scores[:, : len(axes)] = (cells - centre) @ axes.T
    low, high = np.percentile(scores[inside] if inside.any() else scores, [1, 99], axis=0)
    stretched = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    stretched[~inside] = 1.0
    colours: UInt8 = np.rint(stretched * 255).astype(np.uint8).reshape(height, width, 3)
    return colours


def panels(pixels: UInt8 | None, mask: AnyArray | None, feature: AnyArray) -> Image.Image:
    """Side by side at one height: `pixels` (3, H, W) as the network saw them, the mask, the map.

    All have the shape of the image, whose cells need not be square (--grid)."""
    rows, columns = (feature if pixels is None else pixels).shape[1:]
    height = max(PANEL, pixels.shape[1] if pixels is not None else 0)
    width = round(height * columns / rows)
    parts = []
    if pixels is not None:
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        parts.append(image.resize((width, height), Image.Resampling.BICUBIC))
    if mask is not None:
        grey: NDArray[np.uint8] = np.rint(np.asarray(mask, np.float64) * 255).astype(np.uint8)
        panel = _cells(Image.fromarray(grey).convert("RGB"), (width, height))
        ImageDraw.Draw(panel).rectangle((0, 0, width - 1, height - 1), outline=GROUND)
        parts.append(panel)  # with a frame: the mask of an opaque photo is all white
    parts.append(_cells(Image.fromarray(principal_components(feature, mask)), (width, height)))
    sheet = Image.new("RGB", (len(parts) * (width + GAP) - GAP, height), GROUND)
    for i, part in enumerate(parts):
        sheet.paste(part, (i * (width + GAP), 0))
    return sheet


def _cells(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.NEAREST)
