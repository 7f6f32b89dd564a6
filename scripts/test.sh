#!/usr/bin/env bash
# Runs the tests, from any folder, in an environment that it makes if it must (_env.sh). Arguments
# go to pytest; paths among them are relative to the project root.
#
#   scripts/test.sh                             all of them, two at a time
#   scripts/test.sh tests/test_geometry.py -k crop -x
#   FEATPREP_TEST_DATA=DIR scripts/test.sh      with the tests that need real images
set -euo pipefail
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
featprep_needs="run test vectors retrieval"
# shellcheck source=scripts/_env.sh
. "$here/_env.sh"
if [[ -n ${FEATPREP_TEST_DATA:-} ]]; then
    FEATPREP_TEST_DATA=$(CDPATH='' cd -- "$FEATPREP_TEST_DATA" && pwd)
    export FEATPREP_TEST_DATA
fi
cd "$here/.."
if [[ $# -eq 0 ]]; then
    # Two processes of one thread each: torch's own threads would fight over the cores.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    set -- -n 2
fi
exec "$PYTHON" -m pytest "$@"
