"""Which input sizes an encoder takes: its own, or multiples of its patch. Before any work."""

from __future__ import annotations

from featprep.encoders.base import EncoderSpec
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
