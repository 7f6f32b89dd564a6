#!/usr/bin/env bash
# Hold every encoder's maps against upstream's own modules (clip, transformers), at full size with
# random weights: native, larger, smaller and non-square inputs, batches of 1 and 7, one line each.
# Exits 1 if one lies outside 1e-4 · max(1, rms). Needs 5 GB on disk in $TMPDIR and 10 GB of memory
# for the giants, 4 GB for the others.
#
#   scripts/parity.sh                          all of the catalogue
#   scripts/parity.sh ViT-B/32 dinov2-small    names that contain one of these
#   scripts/parity.sh --layers 2               two blocks of each: about a minute
set -euo pipefail
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/_env.sh
. "$here/_env.sh"
export PYTHONPATH="$here/../data-preprocess${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" "$here/_parity.py" "$@"
