# run_demo.sh and run_tests.sh source this file. `make_environment FILE...` creates or reuses the virtual environment
# $VENV, and installs the given requirements files into it.

VENV=${VENV:-.venv}

find_python() {
    local name
    for name in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "error: no Python 3.10 to 3.13 found; install one, or set PYTHON, for example: PYTHON=/path/to/python3.12 $0" >&2
    exit 2
}

make_environment() {
    local file python
    if [ ! -x "$VENV/bin/python" ]; then
        python=$(find_python)
        echo "creating the environment $VENV with $("$python" --version)"
        "$python" -m venv "$VENV"
    fi
    for file in "$@"; do
        # The environment keeps a copy of each file that was installed, so a file that has not changed is skipped.
        if ! cmp -s "$file" "$VENV/$(basename "$file")"; then
            echo "installing $file (a few minutes the first time)"
            "$VENV/bin/python" -m pip install --quiet -r "$file"
            cp "$file" "$VENV/"
        fi
    done
}
