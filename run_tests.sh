#!/usr/bin/env bash
# Run the linter, the format check and the tests in .venv (or in VENV=path). Arguments are passed to pytest.
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh
make_environment requirements/{requirement,timm,deploy,test}.txt
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
# Two processes; each test file runs in one of them.
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile "$@"
