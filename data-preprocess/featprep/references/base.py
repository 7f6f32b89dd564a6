"""What a reference is: upstream's own model, run its own way, asked for what a Want names.

Independent of our encoders on purpose: pixels are normalised by torchvision, models come from
upstream's public loaders, and the norm, the projection and the formulas are spelled out anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from featprep.encoders.base import Facet, Norm, Want
from featprep.records import AnyArray, FeatureMaps, UInt8

if TYPE_CHECKING:
    from torch import Tensor

FACETS: tuple[Facet, ...] = ("query", "key", "value")


class Reference(ABC):
    """In float32 on the CPU. `model`: upstream's own. `patch`: stride of a cell of the last layer.
    `depth`: its layers.

    `_look` runs upstream once; the other methods tell what that pass gave, layers counted from 0,
    as (B, prefix + cells, C), the cells row by row.
    """

    model: Any
    mean: Sequence[float]
    std: Sequence[float]
    patch: int
    depth: int

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Any] = {}
        self._size = (0, 0)

    def answer(self, pixels: UInt8, wants: Sequence[Want]) -> list[FeatureMaps]:
        """What upstream gives for (B, 3, H, W) uint8, once for each want."""
        import torch

        with torch.no_grad():  # timm resamples its parameters in place
            self._kept.clear()
            self._size = (pixels.shape[-2], pixels.shape[-1])
            self._look(normalised(pixels, self.mean, self.std))
            return [self._answer(want) for want in wants]

    def round_weights(self, dtype: str) -> None:
        """To what this precision can hold; they stay float32, and so does what is computed."""
        import torch

        modules = [part for part in vars(self).values() if isinstance(part, torch.nn.Module)]
        for parameter in (item for module in modules for item in module.parameters()):
            parameter.data = parameter.data.to(getattr(torch, dtype)).to(parameter.dtype)

    @abstractmethod
    def bare(self, dtype: str) -> Callable[[Tensor], Any]:
        """Upstream's vision module alone, in this compute precision: what its users would call.
        It is one of the attributes, or a part of one, and takes pixels on the device it is on."""

    @abstractmethod
    def _look(self, pixels: Tensor) -> None:
        """Run upstream over normalised (B, 3, H, W) and keep what it gave."""

    @abstractmethod
    def _layer(self, layer: int, norm: Norm) -> Tensor: ...

    def _projected(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} projects nothing")

    def _value(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no value path")

    def _facet(self, layer: int, facet: Facet) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no facets")

    def _pooled(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} pools nothing")

    def _grid(self, layer: int) -> tuple[int, int]:
        height, width = self._size
        return height // self.patch, width // self.patch

    def _answer(self, want: Want) -> FeatureMaps:
        layers = [layer % self.depth for layer in want.layers]
        tokens = {layer: self._tokens(layer, want) for layer in layers}
        maps, first = {}, layers[0]
        for layer, rows in tokens.items():
            grid = self._grid(layer)
            cells = rows[:, rows.shape[1] - grid[0] * grid[1] :]
            maps[layer] = _host(cells.unflatten(1, grid).movedim(-1, 1))  # type: ignore[no-untyped-call]
        prefix = tokens[first].shape[1] - maps[first][0, 0].size
        return FeatureMaps(
            maps,
            prefix=_host(tokens[first][:, :prefix]) if want.prefix else None,
            pooled=_host(self._pooled()) if want.pooled else None,
        )

    def _tokens(self, layer: int, want: Want) -> Tensor:
        if want.feature == "projected":
            return self._projected()
        if want.feature == "value":
            return self._value()
        if want.facet != "token":
            return self._facet(layer, want.facet)
        return self._layer(layer, want.norm)

    def _keep_output(self, module: Any, what: str, layer: int = 0) -> None:
        """Keep what a module returns in each pass, the first time it is called."""

        def keep(_: Any, args: tuple[Any, ...], out: Any) -> None:
            self._kept.setdefault((what, layer), out)

        module.register_forward_hook(keep)

    def _keep_input(self, module: Any, what: str, layer: int = 0) -> None:
        def keep(_: Any, args: tuple[Any, ...]) -> None:
            self._kept.setdefault((what, layer), args[0])

        module.register_forward_pre_hook(keep)


def normalised(pixels: UInt8, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) uint8 → float32, by torchvision's ToTensor and Normalize."""
    import torch
    from torchvision.transforms import functional

    images = [functional.to_tensor(np.moveaxis(image, 0, -1)) for image in pixels]
    return torch.stack([functional.normalize(image, list(mean), list(std)) for image in images])


def transformers_positions(
    table: Tensor, native: tuple[int, int], grid: tuple[int, int], prefix: int
) -> Tensor:
    """([1,] prefix + cells, C) of another grid, by transformers' own ViTEmbeddings."""
    import torch
    from transformers import ViTConfig
    from transformers.models.vit.modeling_vit import ViTEmbeddings

    if grid == native:
        return table
    rows = table.detach().reshape(-1, table.shape[-1])
    config: Any = ViTConfig(hidden_size=rows.shape[1], image_size=native, patch_size=1)
    embeddings: Any = ViTEmbeddings(config)
    stand_in = torch.zeros(1, rows.shape[1])  # for its CLS row
    embeddings.position_embeddings.data = torch.cat((stand_in, rows[prefix:]))[None]
    tokens = torch.empty(1, 1 + grid[0] * grid[1], rows.shape[1])
    placed = embeddings.interpolate_pos_encoding(tokens, *grid)[0, 1:]
    return torch.cat((rows[:prefix], placed)).detach().reshape(*table.shape[:-2], -1, rows.shape[1])


def _host(tensor: Tensor) -> AnyArray:
    array: AnyArray = tensor.contiguous().numpy()
    return array


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """It draws a bar, and tells at length of text towers that are drawn at random."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
