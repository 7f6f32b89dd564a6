#!/usr/bin/env bash
# From nothing to feature maps, without weights: makes an environment if it must (_env.sh), draws a
# few images, encodes them with CLIP and with DINOv2 on `--model tiny`, whose weights are random and
# whose features mean nothing, prints what was written, and makes a picture of each. Works from any
# folder, and any number of times.
#
#   scripts/quickstart.sh                      into quickstart-output/ in the project root
#   scripts/quickstart.sh /tmp/first-look      into another folder
#   PYTHON=/path/to/python3 scripts/quickstart.sh
set -euo pipefail
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
case ${1:-} in
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}" && exit ;;
    -*) printf 'quickstart.sh takes an output folder, or nothing, not %s\n' "$1" >&2 && exit 2 ;;
esac
out=${1:-$here/../quickstart-output}
# shellcheck source=scripts/_env.sh
. "$here/_env.sh"
# for `-m featprep`: an environment of the user's own need not have it installed
export PYTHONPATH="$here/../data-preprocess${PYTHONPATH:+:$PYTHONPATH}"

step() { printf '\n== %s\n' "$*"; }

step "1 of 4  draw images"
mkdir -p -- "$out"
out=$(CDPATH='' cd -- "$out" && pwd)
"$PYTHON" "$here/draw_examples.py" "$out/images"

# --overwrite, for maps that another version of this project left here.
for family in clip dino; do
    step "$([[ $family == clip ]] && echo 2 || echo 3) of 4  encode them with $family"
    "$here/encode_${family}_features.sh" --input "$out/images" --output "$out/$family" \
        --model tiny --save_meta --overwrite
done

step "4 of 4  look at the results"
"$PYTHON" - "$out" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np

out = Path(sys.argv[1])
for family in ("clip", "dino"):
    print(f"{family}/")
    for path in sorted((out / family).rglob("*")):
        name = path.relative_to(out / family)
        if path.suffix == ".npy":
            array = np.load(path)
            print(f"    {str(name):28} {array.dtype.name} {array.shape}")
        elif path.suffix == ".json" and name.parts[0] != ".featprep":
            print(f"    {str(name):28} what it was made from, and how")
PYTHON
for family in clip dino; do
    "$PYTHON" -m featprep show "$out/$family" group --out "$out/$family.png"
done
printf '\n%s\n' "image | mask | first three principal components: $out/clip.png, $out/dino.png"
