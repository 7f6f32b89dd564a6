#!/usr/bin/env bash
# Encodes a folder of images with DINOv2 or DINOv3: a dense feature map and a mask for each. Finds
# a Python that has what is needed, or makes one (_env.sh), and hands every argument over to it.
#
#   scripts/encode_dino_features.sh --input photos/ --output maps/
#   scripts/encode_dino_features.sh --input photos/ --output maps/ --size 448 --fp16
#   scripts/encode_dino_features.sh --input list.txt --output maps/ --model tiny --save_meta
set -euo pipefail
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/_env.sh
. "$here/_env.sh"
exec "$PYTHON" "$here/../data-preprocess/encode_with_dino.py" "$@"
