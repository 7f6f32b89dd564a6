# shellcheck shell=bash
# Sourced by the other scripts: leaves in $PYTHON, exported, an interpreter that has what is needed.
#
#   $PYTHON if it is set; else the active environment (python3, python) if it has what is needed;
#   else .venv in the project root, which is made on first use.
#
# It sees the caller's arguments: --help needs no more than a Python, and makes nothing. Before
# sourcing it, a script may say
#   featprep_needs="run test"    what is needed (default: run; scripts/_have.py); with optional
#                                parts in it, requirements-all.txt is what is installed
#   featprep_only_venv=1         that only .venv will do
# and the user
#   PYTHON                       the interpreter to use
#   FEATPREP_PIP_ARGS            more arguments for pip, split at blanks: a mirror
#                                (--index-url URL), a torch without CUDA
#                                (--extra-index-url https://download.pytorch.org/whl/cpu)
# Exit codes as the commands have them: 2 a setting to change, 4 network or disk: the same command
# goes on.

featprep_root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
featprep_venv=$featprep_root/.venv
featprep_unfinished=$featprep_venv/.featprep-unfinished # there while .venv is being made
featprep_made=$featprep_venv/.featprep-requirements.txt # written last: what was installed

featprep_list=requirements.txt
for featprep_need in ${featprep_needs:-}; do
    case $featprep_need in run | test | check) ;; *) featprep_list=requirements-all.txt ;; esac
done

featprep_say() { printf 'featprep: %s\n' "$*" >&2; }

featprep_stop() {
    local code=$1
    shift
    featprep_say "$@"
    exit "$code"
}

# INTERPRETER: prints what it lacks; succeeds if that is nothing.
featprep_lacks() {
    local needs
    read -r -a needs <<<"${featprep_needs:-run}"
    "$1" "$featprep_root/scripts/_have.py" "${needs[@]}" 2>/dev/null
}

featprep_wants_help() {
    local argument
    [[ ${featprep_needs:-run} == run ]] || return 1
    for argument in "$@"; do
        case $argument in -h | --help) return 0 ;; esac
    done
    return 1
}

featprep_python_for_help() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python python3.13 python3.12 python3.11 \
        "$featprep_venv/bin/python"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            PYTHON=$candidate
            return
        fi
    done
    featprep_stop 2 "--help needs Python 3.11 or newer, and none is on the PATH: install one, or" \
        "name it with PYTHON=/path/to/python3"
}

featprep_use_given() {
    local lacking
    case $PYTHON in */*) [[ $PYTHON == /* ]] || PYTHON=$PWD/$PYTHON ;; esac
    if ! "$PYTHON" -c '' 2>/dev/null; then
        featprep_stop 2 "PYTHON=$PYTHON does not run: name a Python 3.11 to 3.13, or unset PYTHON"
    fi
    if ! lacking=$(featprep_lacks "$PYTHON"); then
        featprep_stop 2 "PYTHON=$PYTHON lacks ${lacking:-what is needed}: run" \
            "$PYTHON -m pip install -r $featprep_root/$featprep_list, or unset PYTHON"
    fi
}

# Succeeds if the active environment will do; else says in featprep_why why not.
featprep_use_active() {
    local candidate found lacking
    featprep_why=""
    for candidate in python3 python; do
        found=$(command -v "$candidate") || continue
        if lacking=$(featprep_lacks "$found"); then
            PYTHON=$found
            return 0
        fi
        [[ -n $featprep_why || -z $lacking ]] || featprep_why="$found lacks $lacking"
    done
    : "${featprep_why:=no Python that runs on the PATH}"
    return 1
}

# .venv is ours to empty if it holds one of our two marks. One of the user's own making has neither:
# what it holds decides, and nothing of it is ever removed.
featprep_is_ours() { [[ -e $featprep_unfinished || -e $featprep_made ]]; }

featprep_venv_is_ready() {
    [[ ! -e $featprep_unfinished ]] || return 1
    if [[ -e $featprep_made ]]; then
        cmp -s "$featprep_root/requirements.txt" "$featprep_made" || return 1
    fi
    featprep_lacks "$featprep_venv/bin/python" >/dev/null
}

# INTERPRETER: succeeds if featprep runs on its version.
featprep_is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

# Prints the interpreter that .venv is made with.
featprep_base() {
    local candidate tried=""
    for candidate in python3 python python3.13 python3.12 python3.11; do
        "$candidate" -c '' 2>/dev/null || continue
        if ! featprep_is_supported "$candidate"; then
            tried="$tried; $candidate is $("$candidate" -V 2>&1)"
        elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            tried="$tried; $candidate has no venv (on Debian and Ubuntu: apt install python3-venv)"
        else
            command -v "$candidate"
            return
        fi
    done
    featprep_stop 2 "making .venv needs Python 3.11, 3.12 or 3.13, and none on the PATH will" \
        "do${tried}: install one, or name an environment that has what is needed with" \
        "PYTHON=/path/to/python3"
}

# BASE: waits until no other command makes .venv. The lock is held by file descriptor 9, so it ends
# with this shell, however that ends; Python takes it because macOS has no flock command.
featprep_lock() {
    if ! : 2>/dev/null >>"$featprep_venv.lock"; then
        featprep_stop 4 "cannot write in $featprep_root, where .venv is to be made: make it" \
            "writable, or name an environment that has what is needed with PYTHON=/path/to/python3"
    fi
    exec 9>>"$featprep_venv.lock"
    "$1" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("featprep: another command is making .venv; waiting for it", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError as error:
    print("featprep: no file locks here:", error.strerror, file=sys.stderr)
    print("featprep: start no second command before .venv is made", file=sys.stderr)
'
}

featprep_free() {
    df -Pk -- "$1" 2>/dev/null | awk 'NR == 2 { printf "%.1f GB free", $4 / 1048576 }'
}

featprep_announce() {
    local size="6 GB, most of it CUDA" where=$featprep_root
    [[ ! -d $featprep_venv ]] || where=$featprep_venv
    [[ $(uname -s) == Linux ]] || size="2 GB"
    [[ -z ${featprep_why:-} ]] || featprep_say "$featprep_why"
    featprep_say "making $featprep_venv: about $size ($(featprep_free "$where")), once." \
        "PYTHON names another interpreter, FEATPREP_PIP_ARGS a mirror or a torch without CUDA"
}

featprep_has_pip() { "$featprep_venv/bin/python" -m pip --version &>/dev/null; }

# BASE: leaves a .venv that has pip, emptied first if it is ours and broken.
featprep_prepare_venv() {
    if featprep_is_ours; then
        if [[ -e $featprep_unfinished ]] || ! featprep_has_pip; then
            featprep_start_over "$1"
        fi
        : >"$featprep_unfinished"
    elif [[ -n $(ls -A -- "$featprep_venv" 2>/dev/null) ]]; then
        featprep_is_supported "$featprep_venv/bin/python" ||
            featprep_stop 2 "$featprep_venv is not of our making, and its Python is missing or" \
                "not 3.11 to 3.13: remove the folder and run the same command"
        featprep_say "adding what is missing to the .venv that is there"
        featprep_has_pip || "$featprep_venv/bin/python" -m ensurepip >&2
    else
        featprep_start_over "$1"
    fi
}

# BASE: makes .venv anew. It may be a link to a roomier disk: so it is emptied, not removed, and named
# by where it leads, for the venv module refuses links.
featprep_start_over() {
    if ! { mkdir -p -- "$featprep_venv" && : >"$featprep_unfinished" &&
        find "$featprep_venv/" -mindepth 1 ! -name "${featprep_unfinished##*/}" -delete &&
        "$1" -m venv "$(CDPATH='' cd -- "$featprep_venv" && pwd -P)" >&2; }; then
        featprep_stop 4 "$1 -m venv $featprep_venv failed ($(featprep_free "$featprep_venv")):" \
            "the reason stands above; the same command tries again"
    fi
}

# LOG: says why pip failed. Its own words stand above, but a reader looks for them in vain among
# retries and tracebacks.
featprep_reason() {
    local tmp=${TMPDIR:-/tmp} network='NewConnectionError|ConnectionError|Connection(ResetError| '
    network=$network'refused| reset| broken)|Timeout|NameResolution|ProxyError|SSLError'
    if grep -qE 'No space left on device|Disk quota exceeded' "$1" 2>/dev/null; then
        printf '%s' "no space left ($(featprep_free "$featprep_venv") in .venv," \
            " $(featprep_free "$tmp") in $tmp, where pip unpacks; TMPDIR names another place)"
    elif grep -qE "$network" "$1" 2>/dev/null; then
        printf '%s' "the package index was not reached: check the network, or name a mirror with" \
            " FEATPREP_PIP_ARGS='--index-url URL'"
    else
        printf 'the reason stands above'
    fi
}

# ARGUMENTS of pip install. pip's words go to stderr and, in full, to a log.
featprep_pip() {
    local extra log=$featprep_venv/.featprep-pip.log
    read -r -a extra <<<"${FEATPREP_PIP_ARGS:-}"
    rm -f -- "$log"
    "$featprep_venv/bin/python" -m pip --no-input --disable-pip-version-check --log "$log" install \
        --no-user ${extra[@]+"${extra[@]}"} "$@" >&2 && return
    featprep_stop 4 "pip could not install into $featprep_venv: $(featprep_reason "$log");" \
        "the same command tries again"
}

featprep_make_venv() {
    local base lacking
    base=$(featprep_base) || exit
    featprep_lock "$base"
    if ! featprep_venv_is_ready; then # the command that was waited for may have made it
        featprep_announce
        featprep_prepare_venv "$base"
        featprep_pip -r "$featprep_root/$featprep_list"
        featprep_pip --quiet --no-deps --no-build-isolation -e "$featprep_root"
        lacking=$(featprep_lacks "$featprep_venv/bin/python") ||
            featprep_stop 2 "$featprep_venv still lacks ${lacking:-what is needed}: look at" \
                "FEATPREP_PIP_ARGS, or remove the folder and run the same command"
        if [[ -e $featprep_unfinished ]]; then
            cp -- "$featprep_root/requirements.txt" "$featprep_made"
            rm -f -- "$featprep_unfinished"
        fi
        featprep_say "made $featprep_venv"
    fi
    exec 9>&-
}

if featprep_wants_help "$@"; then
    featprep_python_for_help
elif [[ -z ${featprep_only_venv:-} && -n ${PYTHON:-} ]]; then
    featprep_use_given
elif [[ -n ${featprep_only_venv:-} ]] || ! featprep_use_active; then
    featprep_venv_is_ready || featprep_make_venv
    PYTHON=$featprep_venv/bin/python
fi
export PYTHON
