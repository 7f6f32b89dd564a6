"""Which input sizes an encoder takes: its own, multiples of its patch, or any."""

from __future__ import annotations

from featprep.encoders.base import EncoderSpec, predict_grid
from featprep.errors import UsageError

Size = tuple[int, int]  # (height, width)


def checked(spec: EncoderSpec, flag: str, asked: Size | str) -> Size:
    """The size that `--flag ASKED` stands for; a word is `native`. Raises UsageError."""
    if isinstance(asked, str) or asked == spec.native_size:
        return spec.native_size
    if spec.fixed_size:
        way_out = {"size": "drop --size, or add --tile native", "tile": "type --tile native"}[flag]
        raise UsageError(
            f"--{flag} {typed(asked)}: {spec.name} takes {typed(spec.native_size)} only; {way_out}"
        )
    if spec.unit is not None:  # a CNN's
        if min(predict_grid(spec, *asked)) < 1:
            raise UsageError(
                f"--{flag} {typed(asked)}: {spec.name} makes no cell of it; allowed is {spec.unit} "
                "or more"
            )
        return asked
    if any(side % spec.patch for side in asked):
        near = tuple(max(1, round(side / spec.patch)) * spec.patch for side in asked)
        raise UsageError(
            f"--{flag} {typed(asked)}: {spec.name} takes multiples of its patch, {spec.patch}, or "
            f"native; for example --{flag} {typed(near)}"
        )
    return asked


def typed(size: tuple[int, ...]) -> str:
    """As a flag takes it."""
    return str(size[0]) if len(set(size)) == 1 else ",".join(map(str, size))
