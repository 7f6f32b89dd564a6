"""--fast_decode: JPEGs whose decoder delivers a half, a quarter or an eighth of each side.

libjpeg then computes fewer samples of each 8×8 block, where the resize would throw the others away.
What it delivers is at least twice as large as what the resize makes of it, so that the resize still
decides what the network sees. Sizes, offsets and masks are those of the whole source, as ever.
"""

from __future__ import annotations

from collections.abc import Callable

from featprep.errors import ImageError
from featprep.geometry import Geometry, place
from featprep.images import Reduction
from featprep.records import Picture

# Of 14 photos at 224 pixels, grey levels move by 0.25 on average and 17 at most; with 1 in place of
# 2 by 0.87 and 59, and the decoding takes a quarter less (docs/speed.md).
LEAST = 2


def reduction_for(geometry: Geometry) -> Reduction:
    """How much smaller an image may come, whatever is to be seen of it: as images.decode asks."""

    def reduction(height: int, width: int) -> int:
        try:
            placement = place(geometry, height, width)
        except ImageError:  # which whoever places the picture tells
            return 1
        if placement.windowed or geometry.kernel == "nearest":
            return 1
        rows, columns = (LEAST * side for side in placement.resized)
        fits = (by for by in (8, 4, 2) if height >= by * rows and width >= by * columns)
        return next(fits, 1)

    return reduction


class Pictures:
    """One file's picture as each of several networks may see it, decoded once for each scale."""

    def __init__(self, first: Picture, decode: Callable[[Reduction], Picture]) -> None:
        """`first`: as it was decoded for one of them. `decode`: again, at another scale."""
        self._first, self._decode = first, decode
        self._by_scale = {first.reduced: first}

    def under(self, geometry: Geometry) -> Picture:
        """Raises ImageError and MemoryError, as decoding does."""
        if self._first.reduced is None:
            return self._first
        reduction = reduction_for(geometry)
        by = reduction(*self._first.size)
        if by not in self._by_scale:
            self._by_scale[by] = self._decode(reduction)
        return self._by_scale[by]
