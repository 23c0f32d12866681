# Sourced by the other scripts: makes .venv in the checkout with the package and its dependencies, once for each version of setup.py.
# PYTHON names another interpreter (3.11 or newer). No root, nothing outside the checkout but pip's cache.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "setup: $python: expected Python 3.11 or newer, found $("$python" --version 2>&1 | head -n 1); name another with PYTHON=..." >&2
  exit 1
fi

stamp="$(cat setup.py launch/setup.sh; "$python" --version; pwd)"
if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
  echo "setup: installing into .venv (about a minute)" >&2
  rm -rf .venv
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,serve]'
  # The TPU compiler, for `egoscale plan`. Beside the packages: where it can be imported, every JAX program without a TPU complains.
  libtpu="$(.venv/bin/python -c 'import importlib.metadata as m; print(next(r.split(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))')"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/libtpu "$libtpu"
  # A client of the policy server, for its tests. Beside the packages too: it asks for numpy 1 and runs with numpy 2.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/openpi_client 'openpi-client==0.1.2'
  printf '%s' "$stamp" >.venv/stamp
fi
