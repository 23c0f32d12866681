#!/usr/bin/env bash
# One process of `egoscale train`: what every launcher starts, on every machine, with the same arguments; the environment tells it who it
# is (egoscale_jax/train/distributed.py). EGOSCALE_PYTHON names the Python of an environment that is there already, as in a container;
# without it .venv is made in the checkout, and EGOSCALE_EXTRA=tpu or cuda adds what such a machine needs.
set -euo pipefail
if [ -z "${EGOSCALE_PYTHON:-}" ]; then
  source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
  EGOSCALE_PYTHON="$PWD/.venv/bin/python"
  [ -z "${EGOSCALE_EXTRA:-}" ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$EGOSCALE_EXTRA]"
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "$EGOSCALE_PYTHON" -m egoscale_jax.cli train "$@"
