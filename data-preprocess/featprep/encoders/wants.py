"""What may be taken from an encoder: a Want held against a spec. Pure; before any work."""

from __future__ import annotations

from dataclasses import replace

from featprep.encoders.base import EncoderSpec, Want
from featprep.errors import UsageError


def check(spec: EncoderSpec, want: Want) -> Want:
    """The want with its layers counted from 0. Raises UsageError for what the encoder lacks."""
    resolved = replace(want, layers=_layers(spec, want.layers))
    _check_feature(spec, resolved)
    _check_facet(spec, resolved)
    _check_norm(spec, resolved)
    if want.prefix and not spec.cls + spec.registers:
        there = "--pooled or --masked_pool" if spec.pooled else "--masked_pool"
        raise UsageError(f"--prefix: {spec.name} has no CLS or register tokens; there is {there}")
    if want.pooled and not spec.pooled:
        there = "--prefix or --masked_pool" if spec.cls + spec.registers else "--masked_pool"
        raise UsageError(f"--pooled: {spec.name} has no pooled vector; there is {there}")
    if want.before_projection and not (want.pooled and spec.pooler):
        raise UsageError(f"{spec.name} gives no pooled vector before its projection")
    return resolved


def channels(spec: EncoderSpec, want: Want, layer: int) -> int:
    """Channels of the map of a layer, counted from 0."""
    if want.feature != "patch":
        assert spec.projected_dim is not None
        return spec.projected_dim
    return spec.stages[layer].channels if spec.stages else spec.hidden_dim


def stride(spec: EncoderSpec, layer: int) -> int:
    """Stride of the cells of a layer, counted from 0, in pixels."""
    return spec.stages[layer].stride if spec.stages else spec.patch


def is_normed(spec: EncoderSpec, want: Want, layer: int) -> bool:
    """Whether the map of a layer, counted from 0, is after the model's last norm."""
    if want.facet != "token":
        return False
    if want.feature != "patch":  # after the final norm; of a CNN, where there is one
        return not spec.stages or "final" in spec.norms
    if want.norm == "auto":
        return spec.final_norm and layer == spec.depth - 1
    return want.norm == "final"


def _layers(spec: EncoderSpec, asked: tuple[int, ...]) -> tuple[int, ...]:
    depth, last = spec.depth, spec.depth - 1
    typed = ",".join(str(layer) for layer in asked)
    if not spec.has_layers and any(layer not in (-1, last) for layer in asked):
        raise UsageError(
            f"--layer {typed}: of {spec.name}, allowed is -1 (or {last}), the last block"
        )
    if not asked or any(not -depth <= layer < depth for layer in asked):
        unit = "stages" if spec.stages else "blocks"
        raise UsageError(
            f"--layer {typed}: {spec.name} has {depth} {unit}; allowed are 0 to {last}, or -1 (the "
            f"last) to -{depth}"
        )
    layers = tuple(layer % depth for layer in asked)
    if len(set(layers)) < len(layers):
        raise UsageError(f"--layer {typed}: of {spec.name}, a layer stands there twice; drop one")
    return layers


def _check_feature(spec: EncoderSpec, want: Want) -> None:
    features = [
        "patch",
        *["projected"] * (spec.projected_dim is not None),
        *["value"] * spec.has_value,
    ]
    if want.feature not in features:
        lacking = {"projected": "projection", "value": "value path to a projection"}[want.feature]
        raise UsageError(
            f"--feature {want.feature}: {spec.name} has no {lacking}; allowed is --feature "
            f"{' or '.join(features)}"
        )
    if want.feature != "patch" and want.layers != (spec.depth - 1,):
        raise UsageError(
            f"--feature {want.feature} is of the last block; drop --layer, or --feature"
        )


def _check_facet(spec: EncoderSpec, want: Want) -> None:
    if want.facet == "token":
        return
    if not spec.has_facets:
        raise UsageError(
            f"--facet {want.facet}: {spec.name} has no attention that gives one; allowed is "
            "--facet token"
        )
    if want.feature != "patch":
        raise UsageError(f"--facet {want.facet} with --feature {want.feature}: drop one of them")


def _check_norm(spec: EncoderSpec, want: Want) -> None:
    if want.norm == "auto":
        return
    if want.facet != "token" and want.norm == "final":
        raise UsageError(f"--norm final: a {want.facet} is no token and has no norm; drop it")
    if want.feature != "patch" and want.norm == "none":
        raise UsageError(f"--norm none: --feature {want.feature} is after the final norm; drop it")
    if want.norm == "final" and spec.stages and want.layers != (spec.depth - 1,):
        raise UsageError(f"--norm final: the norm of {spec.name} is its last stage's; drop --layer")
    if want.norm not in spec.norms:
        raise UsageError(
            f"--norm {want.norm}: {spec.name} has no other map of it; allowed is --norm "
            f"{' or '.join(spec.norms)}"
        )
