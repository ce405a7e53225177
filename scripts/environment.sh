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
    local extra=$1 python venv stamp wanted
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
            [[ ! -L $venv ]] || fail "$venv is a link to an environment of another checkout, or another Python: remove it"
            printf 'making %s\n' "$venv" >&2
            "$python" -m venv --clear "$venv"
            printf '%s\n' "$root $("$python" -VV)" >"$venv/made-for"
        fi
        rm -f "$venv"/installed-*
        printf 'installing ddphub[%s], the first time with torch: this takes minutes on a slow network\n' "$extra" >&2
        # --constraint holds torch to the one version that is wanted; without it pip would pick the newest.
        "$bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
            --editable "${root}[$extra]" --constraint "$root/constraints.txt" ||
            fail "the installation failed; pip's message above says why"
        printf '%s\n' "$wanted" >"$stamp"
        if [[ $extra == dev ]]; then # dev holds demo
            printf '%s\n' "$wanted" >"$venv/installed-demo"
        fi
    fi
    exec 9>&-
}

# The trainers that tests run ddphub in, after make_environment dev: they are no part of its environment, and no two of
# them can live in one. Each list in tests/trainer_env makes .venv-*/trainers/LIST. Without one the tests that need it
# say so and are skipped; in CI they fail.
make_trainers() {
    local lists=$root/tests/trainer_env trainers=${bin%/bin}/trainers list name target wanted

    mkdir -p "$trainers"
    exec 9<"$trainers"
    if command -v flock >/dev/null; then
        flock 9
    fi
    # What is shared comes first: a trainer is set up with it.
    for list in "$lists/shared.txt" "$lists"/[0-9]*.txt "$lists/lightning.txt"; do
        name=$(basename "$list" .txt)
        target=$trainers/$name
        wanted=$(cat "$lists/set_up.py" "$lists/shared.txt" "$list" && "$bin/python" -VV)
        if [[ -f $target/installed && $(<"$target/installed") == "$wanted" ]]; then
            continue
        fi
        printf 'installing tests/trainer_env/%s.txt\n' "$name" >&2
        rm -rf "$target"
        if "$bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
            --no-deps --only-binary :all: --target "$target" --requirement "$list" &&
            "$bin/python" "$lists/set_up.py" "$target"; then
            printf '%s\n' "$wanted" >"$target/installed"
        else
            printf '%s: tests/trainer_env/%s.txt was not installed, the message above says why\n' \
                "${0##*/}" "$name" >&2
            if [[ $name == shared ]]; then
                break
            fi
        fi
    done
    exec 9>&-
}

# In CI, the programs that tests/needs.py names, and those of the benchmarks; elsewhere the tests that need one say so
# and are skipped.
install_programs() {
    local -A packages=([bindfs]=bindfs [chromedriver]=chromium-driver [chromium]=chromium [curl]=curl
        [fusermount3]=fuse3 [ip]=iproute2 [mkfs.ext4]=e2fsprogs [mkfs.xfs]=xfsprogs [munged]=munge [rsync]=rsync
        [slurmctld]=slurm-wlm [strace]=strace)
    local -a missing=()
    local program policy=/usr/sbin/policy-rc.d own_policy='' code=0
    if [[ ${CI:-} != true ]]; then
        return
    fi
    for program in "${!packages[@]}"; do
        command -v "$program" >/dev/null || missing+=("${packages[$program]}")
    done
    # Debian keeps its programs off the path; tests/postgres.py finds them.
    if ! command -v postgres >/dev/null && ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
        missing+=(postgresql)
    fi
    if [[ ${#missing[@]} -gt 0 ]]; then
        export DEBIAN_FRONTEND=noninteractive
        # Debian starts a daemon when it installs it, unless this program says that it may not (101).
        if [[ ! -e $policy ]]; then
            own_policy=$policy
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || code=$?
        rm -f ${own_policy:+"$own_policy"}
        [[ $code -eq 0 ]] || fail "could not install ${missing[*]}"
    fi
}
