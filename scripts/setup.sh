#!/usr/bin/env bash
# Sourced by the other scripts: makes .venv if there is none and installs the project; a second call changes nothing.
# PYTHON names the interpreter (3.10 to 3.13); TORCH_INDEX_URL an index with the CPU build of torch, where yours lacks it;
# R1RANKER_FLASH_ATTN=0 leaves flash-attn out (see flash_attn.sh).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

stamp=$(cat pyproject.toml scripts/setup.sh scripts/flash_attn.sh | cksum)
if [ ! -x .venv/bin/python ]; then
    python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
    if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
        echo "error: found ${python:-no python3}; Python 3.10 to 3.13 is wanted (set PYTHON=/path/to/python)" >&2
        exit 2
    fi
    "$python" -m venv .venv
fi
if [ "$(cat .venv/.installed 2>/dev/null)" != "$stamp" ]; then
    echo "installing into .venv (once; several minutes) ..."
    if command -v nvidia-smi >/dev/null 2>&1; then
        .venv/bin/pip install --quiet --editable '.[gpu,dev]'
        echo "looking at flash-attn (an hour and more where it is built; R1RANKER_FLASH_ATTN=0 leaves it out) ..."
        PATH="$root/.venv/bin:$PATH" bash scripts/flash_attn.sh
    else
        .venv/bin/pip install --quiet ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} 'torch==2.13.0'
        .venv/bin/pip install --quiet --editable '.[cpu,dev]'
        # vLLM names these, they come built for CUDA, and importing them breaks vLLM; it ranks texts without them
        .venv/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
    fi
    .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        echo "note: vLLM needs Python 3.11 or later; here rollouts are by transformers (rollout.name=hf)" >&2
    # veRL, for its tests alone: beside our transformers, which is newer than it asks for; without it they are left out
    .venv/bin/pip install --quiet --no-deps 'verl==0.9.1' 'tensordict>=0.10,<0.11' 'pyvers>=0.1,<0.2' 'codetiming>=1.4,<2' 'orjson>=3.9,<4' ||
        echo "note: veRL cannot be installed here; its tests are left out" >&2
    rm -rf .venv/lib/python*/site-packages/tests .venv/lib/python*/site-packages/scripts  # it brings these, under our names
    echo "$stamp" > .venv/.installed
fi
PATH="$root/.venv/bin:$PATH"
export PATH
