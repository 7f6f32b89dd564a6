"""What a user would write or pick instead, with the libraries' own public calls and threads.

Each reads the same files, makes the same size of input, runs the same architecture and writes one
.npy an image. Where a library cannot load the weights at hand, its twin of the architecture has
random ones, which is as fast. Nothing of featprep runs in them but the opening of the reference.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from featprep.bench.loaders import Loader, Processed, batch_of
from featprep.bench.processes import Figures, Job, Maker, Ready
from featprep.encoders.base import ModelName
from featprep.references import open_reference

if TYPE_CHECKING:
    from torch import Tensor

# model_type → the class that has the image tower alone
_TOWERS = {
    "altclip": "AltCLIPVisionModel",
    "blip": "BlipVisionModel",
    "clip": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
}
# ours → timm's name of the same architecture
_TIMM = {
    **{
        f"hf:facebook/dinov2-{size}": f"vit_{size}_patch14_dinov2"
        for size in ("small", "base", "large", "giant")
    },
    **{
        f"hf:facebook/dinov2-with-registers-{size}": f"vit_{size}_patch14_reg4_dinov2"
        for size in ("small", "base", "large", "giant")
    },
    "clip:ViT-B/32": "vit_base_patch32_clip_quickgelu_224",
    "clip:ViT-B/16": "vit_base_patch16_clip_quickgelu_224",
    "clip:ViT-L/14": "vit_large_patch14_clip_quickgelu_224",
    "clip:ViT-L/14@336px": "vit_large_patch14_clip_quickgelu_336",
    "hf:openai/clip-vit-base-patch32": "vit_base_patch32_clip_quickgelu_224",
    "hf:google/vit-base-patch16-224-in21k": "vit_base_patch16_224",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """`title`: what it is, for the table. `name`: its weights. `key`: in JSON."""

    key: str
    title: str
    make: Maker
    name: ModelName


def peers_of(typed: str, local: ModelName, converted: dict[str, ModelName]) -> list[Peer]:
    """Those that there are for a model: `typed` is its published name, `local` where its weights
    are, `converted` the same weights for other families."""
    found = []
    hf = local if local.family == "hf" else converted.get("hf")
    if hf:
        found += [
            Peer("transformers_loop_fp32", "transformers, one by one, float32", loop, hf),
            Peer("transformers_pipeline", "transformers' pipeline, batched", pipeline, hf),
            Peer("transformers_tuned", "transformers, tuned loop, DataLoader", tuned, hf),
        ]
    libraries = {"clip": "clip", "openclip": "open_clip", "torchvision": "torchvision"}
    for name in (local, *converted.values()):
        if name.family in libraries:
            title = libraries[name.family]
            found.append(Peer(f"{title}_loader", f"{title}, DataLoader", library_loop, name))
    twin = typed.removeprefix("timm:") if local.family == "timm" else _TIMM.get(typed)
    if twin:
        name = ModelName("timm", twin)
        found.append(Peer("timm_loader", "timm, DataLoader", timm_loop, name))
    return found


def loop(job: Job) -> Ready:
    """The processor and the model of transformers, one image after the other, in float32."""
    import torch

    device, _ = job.resolved()
    processor, model = _processor(job), _tower(job, torch.float32).to(device)

    def run(paths: Sequence[str]) -> Iterator[Any]:
        for path in paths:
            image = Image.open(path).convert("RGB")
            inputs = processor(images=image, return_tensors="pt").to(device)
            with torch.no_grad():
                yield _maps(model(**inputs).last_hidden_state).float().cpu().numpy()[0]

    return _ready(job, run, {"precision": "float32", "batch_size": 1})


def pipeline(job: Job) -> Ready:
    """transformers' pipeline over the paths, at our precision."""
    import transformers

    library: Any = transformers
    device, dtype = _device_and_dtype(job)
    pipe = library.pipeline(
        "image-feature-extraction",
        model=_tower(job, dtype),
        image_processor=_processor(job),
        device=device,
        dtype=dtype,
    )
    batch = batch_of(job, device)

    def run(paths: Sequence[str]) -> Iterator[Any]:
        for tokens in pipe(list(paths), batch_size=batch, return_tensors=True):
            yield _maps(tokens).half().cpu().numpy()[0]

    return _ready(job, run, {"precision": str(dtype), "batch_size": batch})


def tuned(job: Job) -> Ready:
    """What someone writes who knows how: no_grad, reduced precision, batches, a DataLoader."""
    import torch

    device, dtype = _device_and_dtype(job)
    processor, model = _processor(job), _tower(job, dtype).to(device)
    loader = Loader(job, device, Processed(processor))

    def run(paths: Sequence[str]) -> Iterator[Any]:
        for pixels in loader.batches(paths):
            with torch.no_grad():
                hidden = model(pixel_values=pixels.to(device, dtype)).last_hidden_state
                yield from _maps(hidden).half().cpu().numpy()

    return _ready(job, run, {"precision": str(dtype)}, loader)


def library_loop(job: Job) -> Ready:
    """The library's own image tower (encode_image of clip), with torchvision's transform."""
    import torch

    device, dtype = _device_and_dtype(job)
    reference = open_reference(job.name)
    for part in vars(reference).values():
        if isinstance(part, torch.nn.Module):
            part.to(device)
    forward = reference.bare(str(dtype).rpartition(".")[2])
    return _own_loop(job, forward, (reference.mean, reference.std))


def timm_loop(job: Job) -> Ready:
    """timm's forward_features, on random weights."""
    import timm

    library: Any = timm
    device, dtype = _device_and_dtype(job)
    sized = {"img_size": job.size} if "vit" in job.name.id else {}
    model = library.create_model(job.name.id, pretrained=False, num_classes=0, **sized)
    model = model.eval().to(device, dtype)
    config = model.pretrained_cfg
    return _own_loop(job, model.forward_features, (config["mean"], config["std"]))


def _own_loop(job: Job, forward: Callable[[Tensor], Any], statistics: Any) -> Ready:
    import torch
    from torchvision import transforms

    device, dtype = _device_and_dtype(job)
    steps = [
        transforms.Resize(min(job.size), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(job.size),
        transforms.ToTensor(),
        transforms.Normalize(*statistics),
    ]
    loader = Loader(job, device, transforms.Compose(steps))

    def run(paths: Sequence[str]) -> Iterator[Any]:
        for pixels in loader.batches(paths):
            with torch.no_grad():
                yield from forward(pixels.to(device, dtype)).half().cpu().numpy()

    return _ready(job, run, {"precision": str(dtype)}, loader)


def _ready(
    job: Job,
    run: Callable[[Sequence[str]], Iterable[Any]],
    about: Figures,
    loader: Loader | None = None,
) -> Ready:
    """Times `run` over the first images; every map is written as NNN.npy. A loader chooses its
    workers at the first call, which is the warm-up: while everyone loads it could not tell."""
    os.makedirs(job.folder, exist_ok=True)

    def task(count: int) -> Figures:
        if loader and not loader.tried:
            loader.choose(run, job.paths)
        began = time.perf_counter()
        done = 0
        for array in run(job.paths[:count]):
            np.save(os.path.join(job.folder, f"{done}.npy"), array)
            done += 1
        seconds = time.perf_counter() - began
        if done != count:
            raise RuntimeError(f"{done} results of {count} images")
        figures = {"seconds": seconds, "images": count, "images_per_s": count / seconds}
        return figures | ({"loader": loader.about()} if loader else {})

    return Ready({"run": task}, about)


def _device_and_dtype(job: Job) -> tuple[str, Any]:
    import torch

    device, precision = job.resolved()
    return device, getattr(torch, precision.compute)


def _processor(job: Job) -> Any:
    """The checkpoint's own, for inputs of our size."""
    import transformers

    library: Any = transformers
    source, (height, width) = job.name.path or job.name.id, job.size
    own = library.AutoImageProcessor.from_pretrained(source)
    sides = {"height": height, "width": width}
    more: dict[str, Any] = {"size": sides}
    if "shortest_edge" in dict(own.size or {}):
        more = {"size": {"shortest_edge": min(height, width)}, "crop_size": sides}
    return library.AutoImageProcessor.from_pretrained(source, **more)


def _tower(job: Job, dtype: Any) -> Any:
    import transformers

    library: Any = transformers
    source = job.name.path or job.name.id
    kind = library.AutoConfig.from_pretrained(source).model_type
    return getattr(library, _TOWERS.get(kind, "AutoModel")).from_pretrained(
        source, dtype=dtype
    ).eval()  # fmt: skip


def _maps(hidden: Tensor) -> Tensor:
    """(B, P + n², C) of a ViT → (B, C, n, n), the largest n there is; of a CNN, what it is."""
    if hidden.ndim != 3:
        return hidden
    side = math.isqrt(hidden.shape[1])
    return hidden[:, -side * side :].mT.reshape(len(hidden), -1, side, side)
