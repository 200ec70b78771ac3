#!/usr/bin/env bash
# All GPU checks, the operator's benchmark and training's, in one call of at most ten minutes; short tables come last.
#
#   scripts/gpu_check.sh [--out FOLDER] [--minutes N] [--rival FILE.py] [--rehearse]
#
# Needs: a CUDA device, nvcc, and a python3 with torch 2.10 or newer, setuptools, numpy, pytest and hypothesis
# (.venv is taken where it is there; PYTHON names another); for the operator's benchmark also rich, for training what the
# package itself needs. Steps whose packages are missing are named as absent. No network.
# Packages that are missing may be laid beside the repository as wheels, in .whl/: they are installed to a folder of
# their own, and only what is not there yet.
# Exit code: 0 all is well, 1 something failed, 2 there is no CUDA device.
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON="${PYTHON:-}"
if [ -z "$PYTHON" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
if compgen -G ".whl/*.whl" > /dev/null; then
  site="$(mktemp -d)"
  trap 'rm -rf "$site"' EXIT
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$site" .whl/*.whl || exit 1
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$PYTHON" scripts/gpu_check.py "$@"
