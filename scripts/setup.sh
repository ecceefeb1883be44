#!/usr/bin/env bash
# Make .venv with mindgap and its development tools. CUDA packages are installed only where there is a GPU.
# WHEEL=FILE installs that wheel instead, as a user would have it, into VENV.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${VENV:-.venv}
torch=${TORCH:-torch==2.13.0}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

brings_cuda() { # whether the torch pip would choose here asks for NVIDIA packages
  "${pip[@]}" install --dry-run --quiet --ignore-installed --report - "$torch" 2>/dev/null |
    "$venv/bin/python" -c 'import json, sys
names = [item["metadata"]["name"].lower() for item in json.load(sys.stdin)["install"]]
sys.exit(0 if any(name.startswith(("nvidia", "cuda")) for name in names) else 1)'
}

if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    echo "installing $torch for the GPU"
    "${pip[@]}" install --quiet "$torch"
  elif brings_cuda; then
    echo "installing $torch from PyTorch's CPU wheels"
    "${pip[@]}" install --quiet --index-url https://download.pytorch.org/whl/cpu "$torch"
  else
    echo "installing $torch (CPU)"
    "${pip[@]}" install --quiet "$torch"
  fi
fi
if [ -n "${WHEEL:-}" ]; then
  echo "installing $WHEEL"
  "${pip[@]}" install --quiet "$WHEEL"
else
  echo "installing mindgap"
  "${pip[@]}" install --quiet --editable '.[dev]'
fi
touch "$venv/.ready"
