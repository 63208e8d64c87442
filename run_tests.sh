#!/usr/bin/env bash
# Lint, format check and tests in .venv (VENV=path puts it elsewhere). Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh
make_environment requirements/requirement.txt requirements/test.txt
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
# Two files of tests at a time.
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile "$@"
