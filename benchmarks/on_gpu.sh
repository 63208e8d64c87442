#!/usr/bin/env bash
# Check and measure training on a GPU in less than ten minutes: benchmarks/on_gpu.sh OUT. --help lists the options.
# The virtual environment .venv (or VENV=path) is used if it exists, otherwise python3 (or PYTHON=path). No network is
# needed. Packages that are missing are installed from the wheels in .whl/, if there is such a folder.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
source "$ROOT/environment.sh"
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE OMP_NUM_THREADS
if [ -x "$ROOT/$VENV/bin/python" ]; then VENV="$ROOT/$VENV"; fi
if [ -x "$VENV/bin/python" ]; then PYTHON="$VENV/bin/python"; else PYTHON=$(find_python); fi
if [ -d "$ROOT/.whl" ]; then
    (cd "$ROOT" && "$PYTHON" -c 'from benchmarks.gpu.report import missing_packages; print(*missing_packages(), sep="\n")') |
        while read -r requirement; do
            [ -z "$requirement" ] || "$PYTHON" -m pip install --quiet --no-index --find-links "$ROOT/.whl" "$requirement" ||
                echo "not installed: $requirement" >&2
        done
fi
exec "$PYTHON" "$ROOT/benchmarks/on_gpu.py" "$@"
