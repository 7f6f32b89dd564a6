"""What every text tower does alike: texts in, float32 vectors out, a bounded batch at a time.

Knows no architecture and no checkpoint: a family brings its tokenizer and its module.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featprep.encoders.base import LoadOptions, ModelName
from featprep.encoders.torch_encoder import full_float32, is_out_of_memory
from featprep.encoders.weights import Found
from featprep.errors import UsageError
from featprep.records import Float32

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 64  # texts a forward pass
Tokens = Mapping[str, "Tensor"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a family brings. `tokenize`: texts → tensors, padded and truncated; `embed`: these, on
    the device → (N, D); `is_long`: of each text, whether tokenize truncates it."""

    module: nn.Module
    tokenize: Callable[[Sequence[str]], Tokens]
    embed: Callable[[Tokens], Tensor]
    is_long: Callable[[Sequence[str]], Sequence[bool]]
    dim: int
    context: int
    scale: float
    bias: float | None = None


class TextTower:
    """base.TextEncoder, of torch; for calls from any thread, one at a time on the device."""

    def __init__(
        self, name: ModelName, parts: Parts, options: LoadOptions, digest: str, found: Found
    ) -> None:
        self.name, self.digest, self.origin = str(name), digest, found.origin
        self.weights_files = found.sha256
        self.dim, self.context = parts.dim, parts.context
        self.scale, self.bias = parts.scale, parts.bias
        self._parts, self._device = parts, options.device
        self._lock = threading.Lock()  # tokenizers of Rust set their truncation before each call
        try:
            parts.module.eval().requires_grad_(False).to(options.device)
        except (RuntimeError, MemoryError) as error:
            raise self._no_room(error) from error

    def encode_text(self, texts: Sequence[str]) -> Float32:
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        parts = [
            self._encode(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)
        ]
        return np.concatenate(parts)

    def too_long(self, texts: Sequence[str]) -> list[str]:
        with self._lock:
            long = self._parts.is_long(texts) if texts else ()
        return [text for text, is_long in zip(texts, long, strict=True) if is_long]

    def _encode(self, texts: Sequence[str]) -> Float32:
        import torch

        try:
            with self._lock, torch.inference_mode(), full_float32():
                tokens = self._parts.tokenize(list(texts))
                there = {key: item.to(self._device) for key, item in tokens.items()}
                vectors: Any = self._parts.embed(there)
                found: Float32 = vectors.float().cpu().numpy()
                return found
        except (RuntimeError, MemoryError) as error:
            raise self._no_room(error) from error

    def _no_room(self, error: BaseException) -> BaseException:
        if not is_out_of_memory(error):
            return error
        return UsageError(
            f"--device {self._device}: no room for the text tower of {self.name}; take a smaller "
            "model, or --device cpu"
        )


def scalar(item: Tensor) -> float:
    """Of a tensor with one value, of any shape."""
    return float(item.detach().float().reshape(-1)[0])


def refusal(name: ModelName) -> UsageError:
    """Of a model that has no text tower."""
    return UsageError(
        f"--model {name}: no text tower; models of images and texts have one, such as "
        "clip:ViT-B/32, openclip:ViT-B-32/laion2b_s34b_b79k or hf:google/siglip-base-patch16-224 "
        "(featprep models shows which, under text)"
    )
