# shellcheck shell=bash
# The Python environment that scripts/demo and scripts/test share; sourced, with $root set.
#
# One folder for each version of Python, .venv-3.11 and so on; an extra that is installed leaves the file
# .venv-*/installed-EXTRA, which holds what it was installed from.

# Neither the caller's hub, key and run directories nor the caller's packages are ours to use.
unset "${!DDPHUB_@}" PYTHONHOME PYTHONPATH

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Prints a Python that is new enough: $PYTHON if it is set, else the first on the path.
find_python() {
    local candidate
    local -a candidates=(python3 python3.13 python3.12 python3.11 python)
    if [[ -n ${PYTHON:-} ]]; then
        candidates=("$PYTHON")
    fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 or newer and found none (tried: ${candidates[*]});" \
        "install one, or name one with PYTHON=/path/to/python3"
}

# What an environment is made of: when any of it changes, it is installed again.
sources() {
    cat "$root/pyproject.toml" "$root/constraints.txt"
    printf '%s\n' "$root"
    "$1" -VV
}

# Sets $bin to the folder of an environment's programs, made if need be: make_environment demo|dev
make_environment() {
    local extra=$1 python venv stamp wanted one
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments; install its venv module (Debian, Ubuntu: python3-venv)"
    venv=$root/.venv-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    bin=$venv/bin
    stamp=$venv/installed-$extra

    # Two scripts that start at once take turns.
    mkdir -p "$venv"
    exec 9<"$venv"
    if command -v flock >/dev/null; then
        flock 9
    fi
    wanted=$(sources "$python")
    if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
        # A moved checkout or another Python: what is there has the old paths in it.
        if [[ ! -f $venv/made-for || $(<"$venv/made-for") != "$root $("$python" -VV)" ]]; then
            printf 'making %s\n' "$venv" >&2
            "$python" -m venv --clear "$venv"
            printf '%s\n' "$root $("$python" -VV)" >"$venv/made-for"
        fi
        rm -f "$venv"/installed-*
        printf 'installing ddphub[%s], the first time with torch: this takes minutes on a slow network\n' "$extra" >&2
        # --constraint holds torch to the one version that is wanted; without it pip would pick the newest.
        "$bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
            --editable "$root[$extra]" --constraint "$root/constraints.txt" ||
            fail "the installation failed; pip's message above says why"
        printf '%s\n' "$wanted" >"$stamp"
        if [[ $extra == dev ]]; then # dev holds demo
            printf '%s\n' "$wanted" >"$venv/installed-demo"
        fi
    fi
    exec 9>&-
}

# In CI, the programs that tests/needs.py names; elsewhere the tests that need one say so and are skipped.
install_programs() {
    local -A packages=([bindfs]=bindfs [fusermount3]=fuse3 [mkfs.ext4]=e2fsprogs [mkfs.xfs]=xfsprogs [strace]=strace)
    local -a missing=()
    local program
    if [[ ${CI:-} != true ]]; then
        return
    fi
    for program in "${!packages[@]}"; do
        command -v "$program" >/dev/null || missing+=("${packages[$program]}")
    done
    if [[ ${#missing[@]} -gt 0 ]]; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq "${missing[@]}" >/dev/null || fail "could not install ${missing[*]}"
    fi
}
