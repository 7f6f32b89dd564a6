"""Encoders that are a module from pixels to maps, as timm's and torchvision's: asked, not assumed.

What a module makes of a size is asked of the module itself, on the meta device, where a forward
pass works out shapes and computes nothing. Knows no architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featprep.encoders.base import EncoderSpec, Facet, LoadOptions, Want, predict_grid
from featprep.encoders.positions import Grid, PositionCache, call_with, resample
from featprep.encoders.torch_encoder import Taken, TorchEncoder, place
from featprep.encoders.wants import is_normed
from featprep.encoders.weights import Found, one_line
from featprep.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Ask:
    """What a network is to give. Layers count from 0; `normed`: those after the last norm."""

    layers: tuple[int, ...]
    normed: frozenset[int] = frozenset()
    facet: Facet = "token"
    pooled: bool = False


@dataclass(slots=True)
class Given:
    """`maps`: layer → (B, C, rows, columns). `prefixes`: layer → (B, P, C), of ViTs.
    `pooled`: (B, D)."""

    maps: dict[int, Tensor]
    prefixes: dict[int, Tensor] = field(default_factory=dict)
    pooled: Tensor | None = None


Forward = Callable[[Any, "Tensor", Ask], Given]


def as_network(model: nn.Module, forward: Forward) -> nn.Module:
    """A module around upstream's, whose call is `forward`: the model, normalised (B, 3, H, W), Ask
    → Given. It must hold no model of its own, or a copy of the module would run the original's."""
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: Tensor, ask: Ask) -> Given:
            return forward(self.model, pixels, ask)

    return Network()


class ModuleEncoder(TorchEncoder):
    """`network`: see as_network. `positions`: the name of its position embeddings,
    (1, prefix + cells, C), resampled to every other grid and swapped in; None where there are none
    or the network sees to them itself."""

    def __init__(
        self,
        spec: EncoderSpec,
        network: nn.Module,
        options: LoadOptions,
        digest: str,
        found: Found,
        *,
        positions: str | None = None,
    ) -> None:
        super().__init__(spec, network, options, digest, found)
        # Resampled from the checkpoint's own numbers, whatever the precision of the compute.
        self._native = None if positions is None else network.get_parameter(positions).detach()
        self.network: Any = place(network.to(self._compute), spec, options.device)
        self._name = positions
        self._positions = PositionCache(self._resampled)
        self._grids: dict[tuple[int, int], dict[int, Grid]] = {}

    def grid(self, height: int, width: int, layer: int = -1) -> Grid:
        spec, side = self.spec, f"--size {height},{width}: "
        if spec.fixed_size and (height, width) != spec.native_size:
            rows, columns = spec.native_size
            raise UsageError(f"{side}{spec.name} takes {rows},{columns} only; drop --size")
        if spec.unit is None and min(height, width) < spec.patch:
            raise UsageError(
                f"{side}smaller than a patch of {spec.name}; allowed are multiples of {spec.patch}"
            )
        if (height, width) not in self._grids:
            self._grids[height, width] = self._ask(height, width)
        return self._grids[height, width][layer % spec.depth]

    def _ask(self, height: int, width: int) -> dict[int, Grid]:
        layers = tuple(range(self.spec.depth)) if self.spec.has_layers else (self.spec.depth - 1,)
        if self._name is not None:  # the rule of patches; every map is checked against it
            return dict.fromkeys(layers, predict_grid(self.spec, height, width))
        try:
            maps = outline(self.network, height, width, Ask(layers)).maps
        except Exception as error:  # asserts, shapes that do not fit: each architecture has its own
            example = ",".join(str(side) for side in self.spec.native_size)
            raise UsageError(
                f"--size {height},{width}: {self.spec.name} refuses it ({one_line(error, 80)}); "
                f"its own is --size {example}"
            ) from error
        return {layer: (item.shape[2], item.shape[3]) for layer, item in maps.items()}

    def _take(self, pixels: Tensor, want: Want) -> Taken:
        height, width = pixels.shape[-2:]
        normed = frozenset(layer for layer in want.layers if is_normed(self.spec, want, layer))
        ask = Ask(want.layers, normed, want.facet, want.pooled)
        given: Given
        if self._name is None:
            given = self.network(pixels, ask)
        else:
            positions = self._positions.at(self.grid(height, width))
            given = call_with(self.network, self._name, positions, pixels, ask)
        for layer, item in given.maps.items():
            if item.shape[-2:] != self.grid(height, width, layer):
                raise AssertionError(f"{self.spec.name}: layer {layer} of {tuple(item.shape)}")
        first = want.layers[0] if want.prefix else None
        tokens = {layer: _as_tokens(given, layer, layer == first) for layer in want.layers}
        return Taken(tokens, given.pooled)

    def _resampled(self, grid: Grid) -> Tensor:
        own = predict_grid(self.spec, *self.spec.native_size)
        current: Tensor = self.network.get_parameter(self._name)
        if grid == own or self._native is None:
            return current
        return resample(self._native.to(current.device), own, grid).to(current)


def _as_tokens(given: Given, layer: int, has_prefix: bool) -> Tensor:
    """(B, [P +] cells, C); without a prefix seen so, and turned back later without a copy."""
    import torch

    cells = given.maps[layer].flatten(2).mT
    return torch.cat((given.prefixes[layer], cells), dim=1) if has_prefix else cells


# --- what a network is, asked of its shapes


def outline(network: nn.Module, height: int, width: int, ask: Ask) -> Given:
    """What the network gives of an input of this size, by shapes alone; nothing is computed."""
    import torch

    with torch.no_grad():
        return _on_meta(network, _stand_ins(network), height, width, ask)


def measure_unit(network: nn.Module, ask: Ask, patch: int, height: int, width: int) -> int | None:
    """EncoderSpec.unit, by asking where the grid steps up; None if other sizes are refused."""

    def rows_at(side: int) -> int:
        return outline(network, side, width, ask).maps[ask.layers[-1]].shape[2]

    base = height - height % patch
    try:
        floor = rows_at(base)
        if rows_at(base + patch - 1) == floor:
            return patch
        for unit in (unit for unit in range(1, patch) if patch % unit == 0):
            if rows_at(base + unit) > floor:
                return unit
    except Exception:  # an assert or a mismatch: what each architecture has
        return None
    return patch


@dataclass(frozen=True, slots=True)
class Graph:
    """What a result depends on. `tensors`: names in the state dict. `size`: operations."""

    tensors: frozenset[str]
    size: int


def trace(network: nn.Module, height: int, width: int, ask: Ask) -> Graph:
    """What the answer depends on: that to which its autograd graph leads.

    A buffer counts unless its module's parameters do not, as of a BatchNorm after the last stage.
    """
    stand_ins = _stand_ins(network)
    parameters = {name: stand_ins[name].requires_grad_() for name, _ in network.named_parameters()}
    given = _on_meta(network, stand_ins, height, width, ask)
    results = [*given.maps.values(), *given.prefixes.values(), given.pooled]
    reached, seen = set(), set()
    todo: list[Any] = [item.grad_fn for item in results if item is not None]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        todo.extend(parent for parent, _ in node.next_functions)
    idle = {name for name, item in parameters.items() if id(item) not in reached}
    asleep = _modules_of(idle) - _modules_of(parameters.keys() - idle)
    used = (name for name in network.state_dict() if name not in idle and is_counted(name))
    return Graph(
        frozenset(name for name in used if name.rpartition(".")[0] not in asleep), len(seen)
    )


def is_counted(name: str) -> bool:
    """BatchNorm counts its batches in training; no output depends on it."""
    return not name.endswith("num_batches_tracked")


def _modules_of(names: set[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


def _stand_ins(network: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the network by shape alone."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: item.detach().to("meta") for name, item in tensors.items()}


def _on_meta(
    network: nn.Module, stand_ins: dict[str, Tensor], height: int, width: int, ask: Ask
) -> Given:
    import torch
    from torch.func import functional_call

    dtype = next(network.parameters()).dtype
    pixels = torch.empty(1, 3, height, width, device="meta", dtype=dtype)
    given: Given = functional_call(network, stand_ins, (pixels, ask))
    for item in given.maps.values():
        if item.ndim != 4:
            raise ValueError(f"a result of shape {tuple(item.shape)}, not a map")
    return given
