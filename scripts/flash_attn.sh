#!/usr/bin/env bash
# Installs flash-attn where it can work; setup.sh calls it on machines with a GPU, the venv's python and pip first on PATH.
# Nothing needs it: torch's own kernel does the same. It comes as source, is built against the torch that is installed, and ends
# vLLM where it was built against another. So it comes after torch and vLLM, and stays only if it can be imported.
# R1RANKER_FLASH_ATTN=0 leaves it out, =1 builds it whatever CUDA toolkit there is. Says one line and never fails.
set -uo pipefail
requirement='flash-attn>=2.8,<3'
wish=${R1RANKER_FLASH_ATTN:-}

say() { # what was done, why
    echo "flash-attn: $1 ($2)"
    exit 0
}
imports() { # leaves the reason in $reason where it does not
    reason=$(python -c 'from flash_attn import flash_attn_varlen_func' 2>&1) && return
    reason=${reason##*$'\n'}
    return 1
}
remove() {
    pip uninstall --quiet --yes flash-attn >/dev/null 2>&1
}
without='left out, attention is by the kernel that torch has'

if [ "$wish" = 0 ]; then
    say "$without" "R1RANKER_FLASH_ATTN=0"
fi
if pip show flash-attn >/dev/null 2>&1; then
    imports && say "kept" "it is installed and can be imported"
    remove
fi
cuda=$(python -c 'import torch; print(torch.version.cuda or "")' 2>/dev/null)
if [ -z "$cuda" ]; then
    say "$without" "the torch that is installed is not built for CUDA"
fi

# the CUDA toolkit that torch's builder would take; it refuses one of another major release
toolkit=${CUDA_HOME:-${CUDA_PATH:-}}
if [ -z "$toolkit" ] && command -v nvcc >/dev/null; then
    toolkit=$(dirname "$(dirname "$(command -v nvcc)")")
fi
nvcc=${toolkit:-/usr/local/cuda}/bin/nvcc
release=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p')
if [ "$wish" = 1 ] || [ "${release%%.*}" = "${cuda%%.*}" ]; then
    what="built with CUDA ${release:-of an unknown release}, torch has $cuda"
    failed=""
else
    # its set-up then takes a wheel that was built for this torch and Python, or makes one without kernels
    export FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE
    what="a wheel was built for this torch and Python"
    failed="no wheel was built for this torch and Python, and there is no CUDA toolkit"
    if [ -n "$release" ]; then
        failed="no wheel was built for this torch and Python, and the CUDA toolkit is $release where torch has $cuda"
    fi
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# --no-deps: torch stays as it is; --no-cache-dir: a wheel of an earlier build may be for another torch, or without kernels
if ! { pip install --quiet setuptools wheel packaging psutil ninja einops &&
    pip install --quiet --no-cache-dir --no-build-isolation --no-deps "$requirement"; } >"$log" 2>&1; then
    reason=$(grep -i 'error' "$log" | tail -n 1)
    remove
    say "$without" "${failed:-it cannot be built: ${reason:-pip failed}}"
fi
if ! imports; then
    remove
    say "$without" "${failed:-it was built and cannot be imported: $reason}"
fi
say "installed" "$what"
