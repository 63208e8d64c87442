# Sourced by run_demo.sh and run_tests.sh: make_environment FILE... makes $VENV with those requirements, or reuses it.

VENV=${VENV:-.venv}

find_python() {
    local name
    for name in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python 3.10 to 3.13 found; install one, or name it: PYTHON=/path/to/python3.12 $0" >&2
    exit 2
}

make_environment() {
    local file python
    if [ ! -x "$VENV/bin/python" ]; then
        python=$(find_python)
        echo "making the environment $VENV with $("$python" --version)"
        "$python" -m venv "$VENV"
    fi
    for file in "$@"; do
        # A copy of what was installed, taken after it succeeded: a second run with the same file installs nothing.
        if ! cmp -s "$file" "$VENV/$(basename "$file")"; then
            echo "installing $file (a few minutes the first time)"
            "$VENV/bin/python" -m pip install --quiet -r "$file"
            cp "$file" "$VENV/"
        fi
    done
}

# On CPUs, glibc would give the pages of every large tensor back to the system and fetch them anew for the next one:
# half of the time of a forward pass. So it keeps what it has.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184
