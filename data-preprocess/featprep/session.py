"""A config → a loaded encoder with its settings: what the command and the Python call share."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from featprep import devices, encoders
from featprep.batching import BatchEncoder
from featprep.config import EncodeConfig
from featprep.decoding import DecodeRules
from featprep.devices import ONE_HAND, Hands, Precision
from featprep.encoders.base import Encoder, LoadOptions, ModelName
from featprep.encoders.thread_copies import ThreadCopies
from featprep.resolve import (
    Resolved,
    by_patch,
    fingerprint,
    fixed,
    metadata,
    resolve,
    want_of,
    wrapped,
)


@dataclass(frozen=True, slots=True)
class Decided:
    """What holds for all runs of one output, since the last bits of maps depend on it: what `auto`
    came to, and the threads of --deterministic. None: nothing yet."""

    batch_size: int | None = None
    threads: int | None = None
    compiled: bool | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """Everything that is decided once and holds for the whole run."""

    config: EncodeConfig
    encoder: Encoder
    exact: Callable[[], Encoder]  # its float32 twin, loaded when a map first asks for it
    resolved: Resolved
    precision: Precision
    device: str
    batch_size: int
    batch_reason: str
    threads: int | None = None  # of the CPU, where they are fixed: --deterministic
    hands: Hands = ONE_HAND  # of a run; a caller with one thread leaves its own to torch
    compiled: bool = False
    compile_reason: str = ""

    @property
    def rules(self) -> DecodeRules:
        config = self.config
        return DecodeRules(
            self.resolved.geometry,
            config.max_pixels,
            config.mask_dir,
            config.allow_truncated,
            config.fast_decode,
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        config, encoder = self.config, self.encoder
        run = fingerprint(config, encoder.spec, encoder.digest, self.resolved, self.precision)
        return run | fixed(config, self.threads, self.batch_size, self.compiled)

    @property
    def metadata(self) -> dict[str, Any]:
        run = metadata(self.fingerprint, self.precision, devices.library_versions())
        return {**run, "weights_files": dict(self.encoder.weights_files)}

    def batch_encoder(
        self, on_halved: Callable[[int], None] = lambda size: None, hands: int = 1
    ) -> BatchEncoder:
        """`hands`: from how many threads it will be called."""
        return BatchEncoder(
            self.encoder if hands == 1 else ThreadCopies(self.encoder, hands),
            self.resolved.want,
            self.batch_size,
            self.exact,
            self.precision.compute,
            on_halved,
            self.resolved.masked_pool,
            self.config.deterministic,
        )


@contextmanager
def _without_collections() -> Iterator[None]:
    """Importing libraries makes a million objects that stay: to look for garbage among them again
    and again takes a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_collections()
def open_session(
    config: EncodeConfig,
    name: ModelName,
    *,
    before: Decided = Decided(),
    images: int = 0,
    pooled_if_any: bool = False,
) -> Session:
    """Choose device and precision, load the weights, resolve the settings.

    `before`: what an earlier run of the same output decided. `images`: how many there are to
    encode, which decides what pays. `pooled_if_any`: load what the pooled vector needs, for whoever
    learns from the spec that there is one. Raises UsageError and WeightsError, both before any
    image is touched.
    """
    device, _ = devices.choose_device(config.device)
    precision = devices.choose_precision(config.fp16, config.precision, device)
    options = LoadOptions(
        device=device,
        compute=precision.compute,
        pos_embed="hub" if config.pos_embed == "hub" else "transformers",
        trust_weights=config.trust_weights,
        want=want_of(config, precision.storage),
        quick_gelu=config.quick_gelu,
        threads=devices.fix_threads(before.threads) if config.deterministic else None,
        pooled_if_any=pooled_if_any,
    )
    _check_early(config, name, precision)
    encoder = encoders.load_encoder(name, options)
    resolved = resolve(
        config, encoder.spec, precision.storage, encoder.grid, is_plain=name.is_plain
    )
    size, reason = _batch_size(config, device, encoder, resolved, before.batch_size)
    sizes_vary = resolved.geometry.size is None and resolved.tiling is None
    compiled, why = devices.choose_compile(
        config.compile, device, images, sizes_vary, before.compiled
    )
    if compiled:
        encoder.compile(resolved.want)
    whole = wrapped(encoder, config, resolved)
    return Session(
        config,
        whole,
        _twin(name, options, whole, lambda twin: wrapped(twin, config, resolved)),
        resolved,
        precision,
        device,
        size,
        reason,
        options.threads,
        devices.choose_hands(device, options.threads),
        compiled,
        why,
    )


def _check_early(config: EncodeConfig, name: ModelName, precision: Precision) -> None:
    """Where the spec is known without the weights, a bad setting is refused before they load."""
    spec = encoders.describe(name)
    if spec is not None:
        resolve(config, spec, precision.storage, by_patch(spec), is_plain=name.is_plain)


def _twin(
    name: ModelName, options: LoadOptions, encoder: Encoder, wrap: Callable[[Encoder], Encoder]
) -> Callable[[], Encoder]:
    if options.compute == "float32":
        return lambda: encoder
    exact = replace(options, compute="float32")
    return functools.cache(lambda: wrap(encoders.load_encoder(name, exact)))


def _batch_size(
    config: EncodeConfig, device: str, encoder: Encoder, resolved: Resolved, before: int | None
) -> tuple[int, str]:
    if config.batch_size is not None:
        return config.batch_size, "--batch_size"
    if before is not None:
        return before, "as this output's run began"
    size = resolved.geometry.size
    if resolved.tiling:
        return devices.choose_window_batch(device, encoder.spec, resolved.tiling.tile, size)
    return devices.choose_batch_size(device, encoder.spec, sizes_vary=size is None, size=size)
