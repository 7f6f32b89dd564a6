"""What a certificate asks: which sizes, which kinds of feature, which precisions, on which images.

Follows from an encoder's spec alone. Knows no model and no reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featprep.encoders import wants
from featprep.encoders.base import ComputeDtype, EncoderSpec, Facet, PosEmbed, Want
from featprep.errors import UsageError
from featprep.records import UInt8

_FACETS: tuple[Facet, ...] = ("query", "key", "value")
_SHORT = {"float32": "", "bfloat16": " bf16", "float16": " fp16"}
_MAP = Want()
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Case:
    """One question put to our encoder and to its reference, which answers in float32 always."""

    height: int
    width: int
    batch: int = 1
    want: Want = _MAP
    compute: ComputeDtype = "float32"
    pos_embed: PosEmbed = "transformers"

    @property
    def pixels(self) -> UInt8:
        return generate_images(self.batch, self.height, self.width)

    @property
    def is_reduced(self) -> bool:
        return self.compute != "float32"

    def text(self, part: str) -> str:
        """A part of its answer as people read it: 'query@11 96×192 bf16', 'pooled 224×224'."""
        what, _, layer = part.partition("@")
        if what == "map":
            norm = "" if self.want.norm == "auto" else f" norm {self.want.norm}"
            kind = self.want.feature if self.want.facet == "token" else self.want.facet
            what = f"{kind}@{layer}{norm}" if self.want.feature == "patch" else kind
        hub = f" {self.pos_embed}" if self.pos_embed != "transformers" else ""
        return f"{what} {self.height}×{self.width}{_SHORT[self.compute]}{hub}"


def default_cases(spec: EncoderSpec, reduced: Sequence[ComputeDtype] = ("bfloat16",)) -> list[Case]:
    """Every kind at small, higher and wider inputs; the main ones at the native and a larger size;
    all again at one size in each of the `reduced` precisions; --pos_embed hub where there is one.
    """
    large, small = _sizes(spec)
    every, main = list(kinds(spec)), list(main_kinds(spec))
    full = [Case(*size, 1, want) for size in large for want in main]
    full += [Case(*size, 2, want) for size in small for want in every]
    wide, native = small[-1], spec.native_size
    half = [Case(*wide, 2, want, compute) for compute in reduced for want in every]
    if wide != native:
        half += [Case(*native, 1, want, compute) for compute in reduced for want in main]
    hub = [
        Case(*size, 1, pos_embed="hub")
        for size in (native, *small)
        if "hub" in spec.pos_embeds and not spec.fixed_size
    ]
    return [*full, *half, *hub]


def kinds(spec: EncoderSpec) -> Iterator[Want]:
    """Every kind of feature that the spec says it has."""
    last, middle = spec.depth - 1, spec.depth // 2
    several = tuple(dict.fromkeys((last, 0, middle)))
    inner = several[1:]
    yield from _offered(
        spec,
        Want(),
        Want(layers=(0,)),
        Want(layers=(middle,)),
        Want(layers=several),
        Want(norm="none"),
        Want(norm="final"),
        Want(layers=inner, norm="final"),
        Want(feature="projected"),
        Want(feature="value"),
        *(Want(layers=several, facet=facet) for facet in _FACETS),
        Want(prefix=True),
        Want(layers=inner, prefix=True),
        Want(pooled=True),
    )


def main_kinds(spec: EncoderSpec) -> Iterator[Want]:
    """What is taken most: in as few passes as it can be, for large inputs."""
    whole = replace(Want(), prefix=bool(spec.cls + spec.registers), pooled=spec.pooled)
    yield from _offered(spec, whole, Want(feature="projected"))


def _offered(spec: EncoderSpec, *asked: Want) -> Iterator[Want]:
    yield from (want for want in dict.fromkeys(asked) if is_offered(spec, want))


def is_offered(spec: EncoderSpec, want: Want) -> bool:
    try:
        wants.check(spec, want)
    except UsageError:
        return False
    return True


def _sizes(spec: EncoderSpec) -> tuple[list[Size], list[Size]]:
    """(native and larger, smaller and H > W and H < W); all native where no other is allowed."""
    patch, native = spec.patch, spec.native_size
    if spec.fixed_size:
        return [], [native]
    rows, columns = (max(1, side // patch) for side in native)
    larger = ((rows + 2) * patch, (columns + 2) * patch)
    smaller = ((rows + 1) // 2 * patch, (columns + 1) // 2 * patch)
    odd = [(3 * patch + 1, 5 * patch - 1)] if spec.unit is not None else []  # of what takes any
    return [native, larger], [smaller, *odd, (5 * patch, 3 * patch), (3 * patch, 6 * patch)]


def generate_images(count: int, height: int, width: int) -> UInt8:
    """(count, 3, H, W): smooth gradients, one unlike the other, under noise. Same every time."""
    noise = np.random.default_rng([count, height, width]).integers(0, 96, (count, 3, height, width))
    rows, columns = np.mgrid[0:height, 0:width]
    images = [
        [(rows * (i + 1) + columns * (c + 1) * 2) * 160 // (height + width) % 160 for c in range(3)]
        for i in range(count)
    ]
    return (np.asarray(images) + noise).astype(np.uint8)
