"""The DataLoader of who batches with one: files in its workers, which outlive a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from featprep.bench.processes import Figures, Job
from featprep.devices import choose_workers

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8  # of who batches on a CPU; larger ones lose there
_GPU_BATCH = 64


def batch_of(job: Job, device: str) -> int:
    return job.batch_size or (BATCH if device == "cpu" else _GPU_BATCH)


class Processed:
    """An image as transformers' processor has it."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Image.Image) -> Tensor:
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels


class Images:
    """A dataset; decoded and transformed in the DataLoader's workers."""

    def __init__(self, load: Callable[[Image.Image], Tensor]) -> None:
        self.load, self.paths = load, list[str]()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Tensor:
        return self.load(Image.open(self.paths[place]).convert("RGB"))


class Loader:
    """A DataLoader whose workers outlive a round, as they do over a long folder.

    Without workers or with one a free core, whichever `choose` found faster: on few cores a worker
    and threads that spin as they wait can hold each other up until neither gets on.
    """

    def __init__(self, job: Job, device: str, load: Callable[[Image.Image], Tensor]) -> None:
        self.batch, self.load = batch_of(job, device), load
        self.workers, _ = choose_workers()
        self.tried: dict[str, float] = {}
        self.paths: Sequence[str] = ()
        self.loader: Any = None

    def about(self) -> Figures:
        return {"batch_size": self.batch, "workers": self.workers, "images_per_s_tried": self.tried}

    def choose(self, run: Callable[[Sequence[str]], Iterable[Any]], paths: Sequence[str]) -> None:
        """By three batches, after one to warm up."""
        few, rates = list(paths[: 3 * self.batch]), {}
        for workers in sorted({0, self.workers}):
            self.workers, self.paths = workers, ()
            for some in (few[: self.batch], few):
                began = time.perf_counter()
                done = sum(1 for _ in run(some))
                rates[workers] = done / (time.perf_counter() - began)
        self.workers, self.paths = max(rates, key=lambda workers: rates[workers]), ()
        self.tried = {str(workers): rate for workers, rate in rates.items()}

    def batches(self, paths: Sequence[str]) -> Iterable[Tensor]:
        from torch.utils.data import DataLoader

        if self.paths != paths:
            images: Any = Images(self.load)
            images.paths, self.paths = list(paths), paths
            self.loader = DataLoader(
                images,
                self.batch,
                num_workers=self.workers,
                persistent_workers=self.workers > 0,
            )
        batches: Iterable[Tensor] = self.loader
        return batches
