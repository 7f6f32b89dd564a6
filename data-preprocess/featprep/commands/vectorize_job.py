"""What `featprep vectorize` may be asked for: its flags, and what they come to."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import dataclass

from featprep.commands.flags import Parser, add_settings, parsed_settings
from featprep.config import EncodeConfig, parse_value
from featprep.errors import UsageError
from featprep.settings import nearest, shown

DESCRIPTION = """One vector an image, of one model or of several put together.

  {prog} --image_path photo.jpg --models openai_clip_vit_b32,resnet50      (prints it)
  {prog} --image_path photos --models openai_clip_vit_b32 --output vectors.parquet
  {prog} --image_path photos --models clip:tiny,hf:tiny --output vectors.npy   (no weights needed)

Several models are one vector, their vectors one after the other in the order given. The same
command goes on where a stopped run ended. Each switch has a --no_…
"""
NORMALIZE = ("none", "each", "all")
# Of the settings of encode, those that say what a model sees, where it runs, and which images.
SETTINGS = (
    *("size", "resize", "max_tokens", "background", "pos_embed", "device", "fp16", "precision"),
    *("batch_size", "workers", "decode_timeout", "max_pixels", "allow_truncated", "names"),
    *("overwrite", "moved", "break_lock", "shard", "limit", "trust_weights", "quick_gelu"),
    *("quiet", "verbose"),
)


@dataclass(frozen=True, slots=True)
class VectorJob:
    """What was asked. `config`: the settings shared with encode, of the first model; its output is
    empty where none was given."""

    config: EncodeConfig
    models: tuple[str, ...]
    output: str | None
    normalize: str
    skip_failed: bool


def make_parser(prog: str = "featprep vectorize") -> Parser:
    parser = Parser(prog, DESCRIPTION.format(prog=prog))
    add = parser.add_argument
    add("--image_path", metavar="PATH", help="an image, a folder (recursive), or a .txt list")
    add("--models", metavar="A[,B…]", help="FAMILY:NAME, an alias, FAMILY:NAME=PATH")
    add("--output", metavar="FILE", help="NAME.parquet or NAME.npy; of one image it may be left")
    add("--normalize", metavar="HOW", default="none", help=_NORMALIZE_HELP)
    add("--skip_failed", action="store_true", help="go on without models that do not load")
    add("--no_skip_failed", action="store_false", dest="skip_failed", help=SUPPRESS)
    add_settings(parser, SETTINGS, resize="native", size="native")
    return parser


_NORMALIZE_HELP = (
    "to length one: none of them, each model's vector before they are put together, or all, the "
    "whole vector (default: none)"
)


def read_job(parser: Parser, argv: Sequence[str]) -> VectorJob:
    """Raises UsageError."""
    flags = vars(parser.read(argv))
    own = {name: flags.pop(name) for name in ("image_path", "models", "output", "normalize")}
    skip_failed = flags.pop("skip_failed")
    _check(own, parser.prog)
    asked = parse_value("model", own["models"])
    models = (asked,) if isinstance(asked, str) else asked
    settings = {"mask": "none", "resize": "native", **parsed_settings(flags)}
    config = EncodeConfig(
        input=parse_value("input", own["image_path"]),
        output=own["output"] or "(none)",
        model=models[0],
        **settings,
    )
    return VectorJob(config, models, own["output"], own["normalize"], skip_failed)


def _check(own: dict[str, str | None], prog: str) -> None:
    wanted = {
        "image_path": "an image, a folder or a .txt list",
        "models": "FAMILY:NAME, or several as A,B",
    }
    for name, what in wanted.items():
        if not (own[name] or "").strip():
            raise UsageError(f"--{name} is required: {what}; see {prog} --help")
    how = own["normalize"] or ""
    if how not in NORMALIZE:
        raise UsageError(
            f"--normalize {shown(how)}: allowed is one of {', '.join(NORMALIZE)}."
            f"{nearest(how, NORMALIZE)}"
        )
