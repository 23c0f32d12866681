#!/usr/bin/env bash
# All that CI runs: style, then the tests on both cores. `./launch/test.sh --setup-only` does the set-up alone; other arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
[ "${1:-}" != "--setup-only" ] || exit 0

.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow" "$@"
