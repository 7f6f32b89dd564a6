#!/usr/bin/env bash
# Runs the tests, from any folder, in an environment that it makes if it must (_env.sh). Arguments
# go to pytest; paths among them are relative to the project root.
#
#   scripts/test.sh
#   scripts/test.sh tests/test_geometry.py -k crop -x
#   FEATPREP_TEST_DATA=DIR scripts/test.sh      with the tests that need real images
set -euo pipefail
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
featprep_needs="run test"
# shellcheck source=scripts/_env.sh
. "$here/_env.sh"
if [[ -n ${FEATPREP_TEST_DATA:-} ]]; then
    FEATPREP_TEST_DATA=$(CDPATH='' cd -- "$FEATPREP_TEST_DATA" && pwd)
    export FEATPREP_TEST_DATA
fi
cd "$here/.."
exec "$PYTHON" -m pytest "$@"
