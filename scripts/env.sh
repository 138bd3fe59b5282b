#!/usr/bin/env bash
# The environment that every script runs in:  source env.sh base, docs or test, each of which holds the one before it
# Goes to the repository's root; makes .venv from constraints.txt where it is missing, unfinished or out of date; puts it
# first on PATH. A .venv that this script did not finish is replaced.
set -euo pipefail

find_python() {
    local candidate found=""
    for candidate in python3.11 python3.12 python3.13 python3 python; do
        # Ask, because a name on PATH may be a shim with nothing behind it.
        "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || continue
        found=$candidate
        "$candidate" -c 'import ensurepip, venv' 2>/dev/null || continue
        command -v "$candidate"
        return
    done
    if [[ $found ]]; then
        echo "gptbench: $found cannot make a virtual environment: install its venv package (Debian: $found-venv)" >&2
    else
        echo "gptbench: no Python from 3.11 to 3.13 on PATH (python3.11, python3.12, python3.13, python3)" >&2
    fi
    return 1
}

# What a finished .venv was made from. The folder is part of it, because an environment does not survive being moved.
fingerprint() {
    pwd -P
    cat constraints.txt pyproject.toml | cksum
}

# Whether .venv holds the set ($1) as it should be now.
is_current() {
    [[ -f .venv/made-$1 && $(fingerprint) == "$(<".venv/made-$1")" ]] && .venv/bin/python -c '' 2>/dev/null
}

# Whether .venv was finished once, here, and can be brought up to date.
is_finished() {
    [[ -f .venv/made-base && $(head -n 1 .venv/made-base) == "$(pwd -P)" ]] && .venv/bin/python -c '' 2>/dev/null
}

pip_install() {
    if ! .venv/bin/python -m pip install --constraint constraints.txt "$@" >>.venv/install.log 2>&1; then
        tail -n 30 .venv/install.log >&2
        echo "gptbench: could not install into .venv; all of it: .venv/install.log" >&2
        return 1
    fi
}

make_venv() {
    local extras="" python
    [[ $1 == base ]] || extras="[$1]"
    if is_finished; then
        echo "gptbench: bringing .venv up to date for $1: takes a minute (log: .venv/install.log)" >&2
    else
        python=$(find_python) || return 1
        [[ ! -e .venv ]] || echo "gptbench: removing .venv: not finished by scripts/env.sh in this folder" >&2
        rm -rf .venv
        echo "gptbench: making .venv with $python: takes minutes, once (log: .venv/install.log)" >&2
        "$python" -m venv .venv || return 1
    fi
    rm -f .venv/made-*  # until it is finished: an interrupted installation must not pass for a whole one
    : >.venv/install.log
    pip_install pip setuptools hatchling editables || return 1
    pip_install --no-build-isolation --editable ".$extras" || return 1
    fingerprint >.venv/unfinished
    [[ $1 != test ]] || cp .venv/unfinished .venv/made-test
    [[ $1 == base ]] || cp .venv/unfinished .venv/made-docs
    mv .venv/unfinished .venv/made-base
}

# One at a time: the second of two calls waits, and then finds nothing left to do.
make_venv_alone() {
    if command -v flock >/dev/null; then
        flock 9
    fi
    is_current "$1" || make_venv "$1"
}

cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
case ${1-base} in
    base | docs | test) ;;
    *) echo "gptbench: env.sh: $1 is neither base, docs nor test" >&2; exit 2 ;;
esac
is_current "${1-base}" || make_venv_alone "${1-base}" 9<.
export PATH="$PWD/.venv/bin:$PATH"
