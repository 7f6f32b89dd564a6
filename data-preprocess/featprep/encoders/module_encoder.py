"""Encoders that are a module from pixels to a map, as timm's and torchvision's: asked, not assumed.

What a module makes of a size, and which of its tensors count, is asked of the module itself, on the
meta device, where a forward pass works out shapes and computes nothing. Knows no architecture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featprep.encoders.base import EncoderSpec, Feature, LoadOptions, predict_grid
from featprep.encoders.torch_encoder import TorchEncoder, place
from featprep.encoders.weights import one_line
from featprep.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

_GRIDS_KEPT = 8  # position embeddings: --resize keep meets any number of grids
COUNTER = "num_batches_tracked"  # of BatchNorm's training; no output depends on it


class ModuleEncoder(TorchEncoder):
    """`network`: normalised (B, 3, H, W) → (B, C, rows, columns). `prefix`: tokens that it drops.

    `positions`: the name of the network's position embeddings, (1, prefix + cells, C), resampled to
    every other grid and swapped in; None where there are none or the network sees to them itself.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        network: nn.Module,
        options: LoadOptions,
        digest: str,
        origin: str,
        *,
        prefix: int = 0,
        positions: str | None = None,
    ) -> None:
        super().__init__(spec, network, options, digest, origin)
        self.prefix = prefix
        self.network: Any = place(network.to(self._compute), spec, options.device)
        self._shapes: dict[tuple[int, int], tuple[int, int]] = {}
        self._name = positions
        self._positions: dict[tuple[int, int], Tensor] = {}

    def grid(self, height: int, width: int) -> tuple[int, int]:
        spec, side = self.spec, f"--size {height},{width}: "
        if spec.fixed_size and (height, width) != spec.native_size:
            rows, columns = spec.native_size
            raise UsageError(f"{side}{spec.name} takes {rows},{columns} only; drop --size")
        if spec.unit is None and min(height, width) < spec.patch:
            raise UsageError(
                f"{side}smaller than a patch of {spec.name}; allowed are multiples of {spec.patch}"
            )
        if (height, width) not in self._shapes:
            self._shapes[height, width] = self._ask(height, width)
        return self._shapes[height, width]

    def _ask(self, height: int, width: int) -> tuple[int, int]:
        if self._name is not None:  # the rule of patches; every map is checked against it
            return predict_grid(self.spec, height, width)
        try:
            return map_shape(self.network, height, width)[1:]
        except Exception as error:  # asserts, shapes that do not fit: each architecture has its own
            example = ",".join(str(side) for side in self.spec.native_size)
            raise UsageError(
                f"--size {height},{width}: {self.spec.name} refuses it ({one_line(error, 80)}); "
                f"its own is --size {example}"
            ) from error

    def _tokens(self, pixels: Tensor, feature: Feature) -> Tensor:
        from torch.func import functional_call

        grid = self.grid(*pixels.shape[-2:])
        swapped = {} if self._name is None else {self._name: self._positions_at(grid)}
        maps: Tensor = functional_call(self.network, swapped, (pixels,))
        if maps.shape[-2:] != grid:
            raise AssertionError(f"{self.spec.name}: a map of {tuple(maps.shape)}, not {grid}")
        return maps.flatten(2).mT  # seen as tokens, which TorchEncoder turns back without a copy

    def _positions_at(self, grid: tuple[int, int]) -> Tensor:
        if grid not in self._positions:
            if len(self._positions) == _GRIDS_KEPT:
                self._positions.pop(next(iter(self._positions)))
            native = self.network.get_parameter(self._name)
            own = predict_grid(self.spec, *self.spec.native_size)
            self._positions[grid] = resample_positions(native, own, grid)
        return self._positions[grid]


def resample_positions(positions: Tensor, own: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(1, prefix + own cells, C) → (1, prefix + cells of grid, C), as transformers' ViT does.

    ViTEmbeddings.interpolate_pos_encoding in models/vit/modeling_vit.py: bicubic,
    align_corners=False, no antialiasing, the prefix as it is. timm antialiases, and torchvision's
    interpolate_embeddings aligns corners.
    """
    import torch
    from torch.nn.functional import interpolate

    if grid == own:
        return positions
    prefix = positions.shape[1] - own[0] * own[1]
    cells = positions[:, prefix:].mT.unflatten(2, own).float()  # type: ignore[no-untyped-call]
    resampled = interpolate(cells, size=grid, mode="bicubic", align_corners=False)
    return torch.cat((positions[:, :prefix], resampled.flatten(2).mT.to(positions.dtype)), dim=1)


def map_shape(network: nn.Module, height: int, width: int) -> tuple[int, int, int]:
    """(C, rows, columns) of the network's map of an input of this size; nothing is computed."""
    import torch

    with torch.no_grad():
        maps = _on_meta(network, _stand_ins(network), height, width)
    channels, rows, columns = maps.shape[1:]
    return channels, rows, columns


def measure_unit(network: nn.Module, patch: int, height: int, width: int) -> int | None:
    """EncoderSpec.unit, by asking where the grid steps up; None if other sizes are refused."""
    try:
        whole = map_shape(network, height, width)[1]
        base = height - height % patch
        floor = whole if base == height else map_shape(network, base, width)[1]
        for unit in (unit for unit in range(1, patch) if patch % unit == 0):
            if map_shape(network, base + unit, width)[1] > floor:
                return unit
    except Exception:  # an assert or a mismatch: what each architecture has
        return None
    return patch


def used_tensors(network: nn.Module, height: int, width: int) -> set[str]:
    """The names in the state dict that the map depends on: those its autograd graph leads to.

    A buffer counts unless its module's parameters do not, as of a BatchNorm after the last stage.
    """
    stand_ins = _stand_ins(network)
    parameters = {name: stand_ins[name].requires_grad_() for name, _ in network.named_parameters()}
    reached, seen = set(), set()
    todo = [_on_meta(network, stand_ins, height, width).grad_fn]
    while todo:
        node: Any = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        todo.extend(parent for parent, _ in node.next_functions)
    idle = {name for name, item in parameters.items() if id(item) not in reached}
    asleep = _modules_of(idle) - _modules_of(parameters.keys() - idle)
    return {
        name
        for name in network.state_dict()
        if name not in idle and not name.endswith(COUNTER) and name.rpartition(".")[0] not in asleep
    }


def _modules_of(names: set[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


def _stand_ins(network: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the network by shape alone."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: item.detach().to("meta") for name, item in tensors.items()}


def _on_meta(network: nn.Module, stand_ins: dict[str, Tensor], height: int, width: int) -> Tensor:
    import torch
    from torch.func import functional_call

    dtype = next(network.parameters()).dtype
    pixels = torch.empty(1, 3, height, width, device="meta", dtype=dtype)
    maps: Tensor = functional_call(network, stand_ins, (pixels,))
    if maps.ndim != 4:
        raise ValueError(f"a result of shape {tuple(maps.shape)}, not a map")
    return maps
