"""Every setting of an encoding run: its name, default, kind and meaning, in one table.

Defaults < YAML < flags. The command line, the YAML reader and configs/README.md are all made from
the fields below. Checks that need no encoder are here; what depends on the encoder is checked where
the encoder is known, still before any work.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featprep import settings as kinds
from featprep.errors import UsageError
from featprep.settings import Kind, nearest, shown

_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + kind for kind in ("str", "int", "float", "bool", "null", "timestamp")}


def _setting(default: Any, kind: Kind, help: str, shown: str | None = None) -> Any:
    """A field with its kind, its meaning and, where the default reads oddly, how to show it."""
    return field(default=default, metadata={"kind": kind, "help": help, "shown": shown})


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeConfig:
    """The settings of one run, checked. Field order is the order of `--help` and of the table."""

    input: str = _setting(
        "", kinds.text("a folder, one image, or a .txt list"), "what to encode", "required"
    )
    output: str = _setting(
        "",
        kinds.text("a folder"),
        "where results go; may lie inside the input, or be it",
        "required",
    )
    model: str | tuple[str, ...] = _setting(
        "",
        kinds.models("a name, FAMILY:NAME, a local folder or file, or tiny; several as A,B"),
        "the encoder",
        "`ViT-L/14` (CLIP), `facebook/dinov2-large` (DINO), else required",
    )
    size: tuple[int, int] | str | None = _setting(
        None,
        kinds.size(),
        "input side in pixels, a multiple of the patch",
        "224 for DINO named without its family, else native",
    )
    resize: str = _setting(
        "crop",
        kinds.choice("crop", "squash", "pad", "keep", "native"),
        "short side then centre crop; stretch; long side then pad; no crop, own size; the "
        "checkpoint's recipe",
    )
    max_tokens: int = _setting(
        16384,
        kinds.count(1, example=16384),
        "with --resize keep: images of more cells are made smaller, to this many",
    )
    tile: tuple[int, int] | str | None = _setting(
        None,
        kinds.size(),
        "encode large inputs in windows of this size, the encoder's native one or a multiple of "
        "the patch, and blend them",
        "no windows",
    )
    overlap: int | None = _setting(
        None,
        kinds.count(0, example=56),
        "with --tile: pixels that neighbouring windows share, rounded to whole patches",
        "a quarter of the tile",
    )
    grid: tuple[int, int] | None = _setting(
        None,
        kinds.cells(),
        "resample every map to these cells, and make the mask anew for them",
        "the network's own",
    )
    background: str = _setting(
        "black", kinds.colour(), "what stands behind transparent pixels and in padding"
    )
    mask: str = _setting(
        "any",
        kinds.choice("any", "coverage", "none"),
        "1 where any pixel of the cell is opaque enough; the share of alpha as float32; no mask",
    )
    alpha_threshold: float = _setting(
        0.0, kinds.number(0, 1, 0.5), "a pixel counts for the mask if its alpha is above this"
    )
    mask_dir: str | None = _setting(
        None, kinds.text("a folder"), "masks from image files of the same key, instead of alpha"
    )
    layer: tuple[int, ...] = _setting(
        (-1,),
        kinds.layers(),
        "blocks (stages of a CNN) to take: 0 is the first, -1 the last; the first listed is "
        "NAME.npy, the others NAME@L.npy",
        "-1",
    )
    norm: str = _setting(
        "auto",
        kinds.choice("auto", "final", "none"),
        "the model's last norm: as its family has the last block, and none before; on every "
        "layer; on none",
    )
    feature: str = _setting(
        "patch",
        kinds.choice("patch", "projected", "value"),
        "a layer's map; or of the last, for models of images and texts: the final norm and "
        "projection of each patch; the same of its attention's value path",
    )
    facet: str = _setting(
        "token",
        kinds.choice("token", "query", "key", "value"),
        "what a block gives; or, of its attention, queries, keys or values, heads concatenated, "
        "before rotation and scaling",
    )
    prefix: bool = _setting(
        False, kinds.switch(), "CLS and register tokens of the first layer into NAME_vec.npz"
    )
    pooled: bool = _setting(
        False, kinds.switch(), "the model's vector of the whole image into NAME_vec.npz"
    )
    masked_pool: bool = _setting(
        False, kinds.switch(), "the mean over the mask's cells, of each layer, into NAME_vec.npz"
    )
    pos_embed: str = _setting(
        "transformers",
        kinds.choice("transformers", "hub"),
        "whose interpolation of position embeddings to follow off the native size",
    )
    device: str = _setting(
        "auto",
        kinds.text("auto, cpu, cuda, gpu, cuda:N, mps; several as cuda:0,cuda:1"),
        "where the encoder runs; auto is cuda, else mps, else cpu; several share the images, a "
        "process each",
    )
    fp16: bool = _setting(
        False, kinds.switch(), "half-precision compute where it pays, float16 storage"
    )
    precision: str | None = _setting(
        None, kinds.choice("fp32", "bf16", "fp16"), "compute alone", "from --fp16 and the device"
    )
    batch_size: int | None = _setting(
        None, kinds.count(1, auto=True), "images a forward pass", "auto"
    )
    compile: str = _setting(
        "auto",
        kinds.choice("auto", "on", "off"),
        "transformers' blocks through torch.compile, and on CUDA a batch as one graph; auto: where "
        "a run is long enough to gain by it",
    )
    deterministic: bool = _setting(
        False,
        kinds.switch(),
        "the same bytes after any resume: threads, kernels and batch size are fixed for the output",
    )
    workers: int | None = _setting(
        None, kinds.count(1, auto=True, example=4), "processes that read and decode", "auto"
    )
    decode_timeout: float = _setting(
        60.0, kinds.number(0.1, 86400, 60), "seconds an image may take to decode"
    )
    fast_decode: bool = _setting(
        False,
        kinds.switch(),
        "let the decoder make large JPEGs smaller, to no less than twice the resize's target: "
        "features differ a little",
    )
    max_pixels: int = _setting(
        200_000_000, kinds.count(1, example=200000000), "larger images are refused undecoded"
    )
    allow_truncated: bool = _setting(
        False,
        kinds.switch(),
        "of an image file that ends too early encode what is there, and note it; else it fails",
    )
    names: str = _setting(
        "stem",
        kinds.choice("stem", "full"),
        "a/b.png gives a/b.npy; or a/b.png.npy, for inputs whose stems collide",
    )
    save_meta: bool = _setting(False, kinds.switch(), "write NAME.json beside each feature file")
    overwrite: bool = _setting(False, kinds.switch(), "replace results that are there")
    moved: bool = _setting(False, kinds.switch(), "the images moved: accept another input folder")
    break_lock: bool = _setting(
        False, kinds.switch(), "take over the output from a run on another host that is known dead"
    )
    shard: tuple[int, int] | None = _setting(
        None, kinds.shard(), "only the I-th of N disjoint parts, for job arrays", "all"
    )
    limit: int | None = _setting(
        None, kinds.count(1, example=100), "only the first N images, on one device", "all"
    )
    trust_weights: bool = _setting(
        False, kinds.switch(), "open a TorchScript archive that OpenAI did not publish"
    )
    quick_gelu: bool | None = _setting(
        None,
        kinds.switch(),
        "activation of an openclip:ARCH=FILE, whose tag is not known: QuickGELU, or GELU",
        "as the tag says",
    )
    plan: bool = _setting(False, kinds.switch(), "say what would be done, do nothing")
    quiet: bool = _setting(False, kinds.switch(), "errors and the closing lines only")
    verbose: bool = _setting(False, kinds.switch(), "every image's shapes")
    summary: str | None = _setting(
        None, kinds.text("a file name"), "write the closing figures there as JSON"
    )

    def __post_init__(self) -> None:
        for name in ("input", "output", "model"):
            if not getattr(self, name):
                about = FIELDS[name].metadata
                raise UsageError(f"--{name} is required: {about['help']}, {about['kind'].allowed}")
        if self.quiet and self.verbose:
            raise UsageError("--quiet and --verbose exclude each other: drop one, or --no_quiet")
        if self.overlap is not None and self.tile is None:
            raise UsageError("--overlap is of --tile: add --tile native, or drop it")
        if self.mask_dir is not None and self.mask == "none":
            raise UsageError("--mask_dir with --mask none: drop one of them")
        if self.masked_pool and self.mask == "none":
            raise UsageError("--masked_pool with --mask none: there are no cells; drop one of them")
        if self.alpha_threshold and self.mask != "any":
            raise UsageError(f"--alpha_threshold is of --mask any: drop it, or --mask {self.mask}")
        if self.max_tokens != FIELDS["max_tokens"].default and self.resize != "keep":
            raise UsageError("--max_tokens is of --resize keep: add --resize keep, or drop it")
        if self.mask_dir is not None and not Path(self.mask_dir).is_dir():
            raise UsageError(f"--mask_dir {shown(self.mask_dir)}: no such folder; check the path")
        if self.resize in ("keep", "native") and self.size not in (None, "native"):
            own = {"keep": "each image's own size", "native": "the checkpoint's own size"}
            raise UsageError(
                f"--resize {self.resize} takes {own[self.resize]}: drop --size, or use "
                "--resize crop, squash or pad"
            )


FIELDS = {item.name: item for item in dataclasses.fields(EncodeConfig)}
SWITCHES = {name for name, item in FIELDS.items() if item.metadata["kind"].is_switch}


def parse_value(name: str, raw: object) -> Any:
    """The value of setting `name` from its text, as a flag or a YAML scalar has it, or from a plain
    Python value. Raises UsageError."""
    kind: Kind = FIELDS[name].metadata["kind"]
    parts = raw if isinstance(raw, list | tuple) else [raw]
    if not all(isinstance(part, str | numbers.Real) for part in parts):
        raise UsageError(f"--{name} wants a plain value, not {type(raw).__name__}: {kind.allowed}")
    try:
        words = [_text(part) for part in parts]
        if kind.parse_several is not None and len(words) > 1:
            return kind.parse_several(name, words)
        text = ",".join(words)
    except ValueError:  # Python spells no int of more than 4,300 digits
        raise UsageError(f"--{name}: that number is too long; allowed is {kind.allowed}") from None
    return kind.parse(name, text)


def _text(part: object) -> str:
    return str(int(part)) if isinstance(part, float) and part.is_integer() else str(part)


def read_yaml(path: str) -> dict[str, Any]:
    """Settings of a YAML file, parsed and checked one by one. Raises UsageError.

    Nodes are read and nothing is constructed: no tag can make an object, no alias can multiply, and
    a folder called 0001 or 2024_01 stays what was written.
    """
    import yaml

    try:
        root = yaml.compose(Path(path).read_bytes(), yaml.SafeLoader)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--config {shown(path)}: {reason}; give a YAML file") from error
    except (yaml.YAMLError, RecursionError) as error:
        first = shown(str(error), 200)
        raise UsageError(f"--config {shown(path)}: not YAML: {first}") from error
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise UsageError(
            f"--config {shown(path)}: not a table of settings; write lines such as size: 224"
        )
    settings: dict[str, Any] = {}
    for key, value in root.value if root is not None else ():
        where = f"--config {shown(path)}, line {key.start_mark.line + 1}"
        name = _known_name(key.value, where)
        if name in settings:
            raise UsageError(f"{where}: {name} stands there twice; drop one of them")
        settings[name] = _node_value(name, value, where)
    return settings


def _known_name(key: object, where: str) -> str:
    name = key.replace("-", "_") if isinstance(key, str) else ""
    if name not in FIELDS:
        hint = nearest(name, FIELDS) or " configs/README.md lists the keys."
        raise UsageError(f"{where}: unknown key {shown(str(key))}.{hint}")
    return name


def _node_value(name: str, node: Any, where: str) -> Any:
    parts = node.value if node.tag == _TAG + "seq" else [node]
    tags = {getattr(part, "tag", "") for part in parts}  # a mapping holds pairs, which have none
    if not tags <= _SCALARS:
        raise UsageError(f"{where}: {name} wants a plain value, without tags or nesting")
    if node.tag == _TAG + "null":
        hint = "; quote a colour: '#ff8800'" if name == "background" else ""
        raise UsageError(f"{where}: {name} has no value{hint}; give one or drop the key")
    try:
        return parse_value(name, [part.value for part in parts])
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def make_config(
    flags: Mapping[str, Any], config_file: str | None = None, **defaults: Any
) -> EncodeConfig:
    """Defaults < YAML < flags (already parsed values)."""
    from_yaml = {} if config_file is None else read_yaml(config_file)
    return EncodeConfig(**{**defaults, **from_yaml, **flags})


def markdown_table() -> str:
    """The body of configs/README.md."""
    rows = ["| key | meaning | allowed | default |", "|---|---|---|---|"]
    for name, item in FIELDS.items():
        shown = item.metadata["shown"] or str(item.default).lower()
        if item.default is None and not item.metadata["shown"]:
            shown = "none"
        rows.append(
            f"| `{name}` | {item.metadata['help']} | {item.metadata['kind'].allowed} | {shown} |"
        )
    return "\n".join(rows) + "\n"
