#!/usr/bin/env bash
# Fuzzes everything that reads what others may have written: images, lists, settings, and the files
# of a run. Prints one JSON object; the exit code is 1 if something was found. docs/security.md says
# what is held to be true of every input.
#
#   scripts/fuzz.sh                             100,000 inputs
#   scripts/fuzz.sh --inputs 1000000 --seed 7 --keep found
#   FEATPREP_TEST_DATA=DIR scripts/fuzz.sh --only image
set -euo pipefail
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/_env.sh
. "$here/_env.sh"
exec "$PYTHON" "$here/../tests/fuzz.py" "$@"
