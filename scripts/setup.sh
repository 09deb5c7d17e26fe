#!/usr/bin/env bash
# Create .venv with the locked dependencies. Needs Python 3.11–3.13 and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "setup: needs Python 3.11, 3.12 or 3.13 on PATH (or set PYTHON=/path/to/python)" >&2
  exit 1
}

python=$(find_python)
if [ ! -x .venv/bin/python ]; then
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian ships Python without its venv module.
    package="$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      echo "setup: installing $package"
      apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null
    else
      echo "setup: this Python cannot make virtual environments; run: sudo apt-get install $package" >&2
      exit 1
    fi
  fi
  "$python" -m venv .venv
fi
if [ ! -x .venv/bin/uv ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"
fi
echo "setup: installing the locked dependencies (about 2.5 GB the first time)"
# Compiled bytecode makes every later import of Airflow and TensorFlow two to three times cheaper.
UV_COMPILE_BYTECODE=1 .venv/bin/uv sync --locked --all-extras --inexact --no-progress --quiet
