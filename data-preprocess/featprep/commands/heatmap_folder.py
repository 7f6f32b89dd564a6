"""The folder `featprep heatmap` writes: what lies where, and that nothing else lies there.

DIR/heatmap.json           the texts, the run, the colours
DIR/cosines/KEY.npy        (texts, rows, columns) float32
DIR/1_a_red_car/KEY.png    the first text, and so on
DIR/segments/KEY.npy .png  of several texts: the nearest of each cell
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featprep.errors import UsageError
from featprep.naming import printable
from featprep.stores.base import write_whole

if TYPE_CHECKING:
    from featprep.records import AnyArray, Float32, UInt8

ABOUT = "heatmap.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class HeatmapFolder:
    """`about`: what the pictures are of; a folder that says otherwise is left alone. `limits`: the
    cosines of the colours' ends, None for each picture's own."""

    path: str
    texts: Sequence[str]
    about: dict[str, Any]
    limits: tuple[float, float] | None

    def check(self, run: str) -> None:
        """Raises UsageError where the folder is among the maps, or holds what is not ours."""
        real, maps = os.path.realpath(self.path), os.path.realpath(run)
        shown = f"--to {printable(self.path)}"
        if os.path.commonpath([real, maps]) == maps:
            raise UsageError(f"{shown}: lies among the maps of {printable(run)}; name another")
        if not os.path.isdir(real):
            if os.path.lexists(self.path):
                raise UsageError(f"{shown}: not a folder; name another")
            return
        if not os.listdir(real):
            return
        before = self._read()
        if before is None:
            raise UsageError(f"{shown}: holds other files; name a folder that is new or empty")
        if before != self._said():
            raise UsageError(
                f"{shown}: holds heatmaps of other texts, colours or maps; name another folder, or "
                "remove it first"
            )

    def claim(self) -> None:
        """Raises OutputError."""
        text = json.dumps(self._said(), indent=1, ensure_ascii=False) + "\n"
        write_whole(os.path.join(self.path, ABOUT), [text.encode("utf-8", "backslashreplace")])

    def write(self, key: str, found: Float32, mask: AnyArray | None, pixels: UInt8 | None) -> None:
        """Numbers and pictures of one image. Raises OutputError."""
        from featprep.tasks import heatmap
        from featprep.tasks import heatmap_pictures as pictures

        self._write_array(f"cosines/{key}", found)
        for number, cosine in enumerate(found):
            cells = pictures.heat(cosine, mask, self.limits)
            self._write_picture(f"{self.folder_of(number)}/{key}", cells, pixels)
        if len(found) > 1:
            nearest = heatmap.segments(found, mask)
            self._write_array(f"segments/{key}", nearest)
            self._write_picture(f"segments/{key}", pictures.labels(nearest), pixels)

    def folder_of(self, number: int) -> str:
        """Of a text: its number, and enough of it to be told by."""
        words = re.sub(r"\W+", "_", self.texts[number])[:40].strip("_")
        return f"{number + 1}_{words}" if words else str(number + 1)

    def _said(self) -> dict[str, Any]:
        from featprep.tasks.heatmap_pictures import hex_colour

        folders = {
            self.folder_of(number): {
                "text": text,
                "colour": hex_colour(number),
            }
            for number, text in enumerate(self.texts)
        }
        plain: dict[str, Any] = json.loads(json.dumps({**self.about, "range": self.limits}))
        return {"format": _FORMAT, "texts": folders, **plain}

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads((Path(self.path) / ABOUT).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) and "format" in found else None

    def _write_array(self, name: str, array: AnyArray) -> None:
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        write_whole(os.path.join(self.path, f"{name}.npy"), [content.getvalue()])

    def _write_picture(self, name: str, cells: UInt8, pixels: UInt8 | None) -> None:
        from featprep.tasks.heatmap_pictures import picture

        content = io.BytesIO()
        picture(cells, pixels).save(content, "PNG")
        write_whole(os.path.join(self.path, f"{name}.png"), [content.getvalue()])
