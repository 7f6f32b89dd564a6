#!/usr/bin/env bash
# Format, lint, types and shell scripts: every check runs, and the exit code is 1 if one failed.
#
#   scripts/check.sh
#   scripts/check.sh --fix                      formats, and mends what ruff can mend
#   PYTHON=/path/to/python3 scripts/check.sh    with the tools of that interpreter
set -euo pipefail
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
case ${1:-} in
    "") format=(--check) lint=() ;;
    --fix) format=() lint=(--fix) ;;
    *) printf 'check.sh takes --fix or nothing, and not %s\n' "$1" >&2 && exit 2 ;;
esac
featprep_needs="run check"
# shellcheck source=scripts/_env.sh
. "$here/_env.sh"
cd "$here/.."

failed=""
check() {
    printf '%s\n' "== $1" >&2
    "${@:2}" || failed="$failed $1"
}
check format "$PYTHON" -m ruff format ${format[@]+"${format[@]}"} .
check lint "$PYTHON" -m ruff check ${lint[@]+"${lint[@]}"} .
check types "$PYTHON" -m mypy
shellcheck=$(dirname -- "$PYTHON")/shellcheck # the wheel puts it beside the interpreter
[[ -x $shellcheck ]] || shellcheck=$(command -v shellcheck || true)
if [[ -n $shellcheck ]]; then
    check shell "$shellcheck" --source-path=. scripts/*.sh .ci/run
else
    printf '%s\n' "== shell: skipped, shellcheck is not installed" >&2
fi
[[ -z $failed ]] || { printf '%s\n' "failed:$failed" >&2 && exit 1; }
