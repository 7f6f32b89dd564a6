"""`featprep encode`: a folder of images becomes a folder of feature maps.

Also what encode_with_clip.py and encode_with_dino.py run, with their family fixed. Reading the
flags needs the standard library alone, so that --help answers at once; the work is in
encode_run.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from featprep.commands.flags import encode_parser, read_config

# entry script → (scope of the catalogue, default model)
SCRIPTS = {"clip": ("clip", "ViT-L/14"), "dino": ("dino", "facebook/dinov2-large")}
DESCRIPTION = """Encode images into dense feature maps of a frozen vision encoder.

  {prog} --input photos --output features{model}
  {prog} --input photos --output features --model {tiny}   (no weights needed: a first try)
  {prog} --input photos --output features{model} --plan   (say what would be done)

Per image NAME: NAME.npy (hidden_dim, grid_h, grid_w), NAME_mask.npy (grid_h, grid_w), and with
--save_meta NAME.json. The same command goes on where a stopped run ended. Each switch has a --no_…
"""


def main(argv: Sequence[str], prog: str = "featprep encode", script: str | None = None) -> int:
    """Exit code of one encoding command; `script` is clip or dino, or None for any encoder."""
    family, default = SCRIPTS[script] if script else ("any", "")
    model, tiny = ("", "tiny") if script else (" --model hf:facebook/dinov2-base", "hf:tiny")
    parser = encode_parser(prog, DESCRIPTION.format(prog=prog, model=model, tiny=tiny))
    config = read_config(parser, argv, **({"model": default} if default else {}))
    from featprep.commands import encode_devices, encode_run

    if config.plan:
        return encode_run.plan(config, family)
    if len(encode_devices.names_of(config)) > 1:
        return encode_devices.run(config, family)
    return encode_run.run(config, family)
