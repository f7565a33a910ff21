#!/usr/bin/env bash
# Real clients of rerankers, unchanged and in environments of their own, against `r1ranker serve`.
#   bash tests/clients/run.sh MODEL       (a model's directory; .venv of scripts/setup.sh serves it)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
model=${1:?a model directory is wanted}
source scripts/setup.sh
work=${R1RANKER_CLIENTS:-build/clients}
mkdir -p "$work"

environment() { # name, packages: two, since langchain-cohere wants an older cohere
    local name=$1
    shift
    if [ "$(cat "$work/$name/.installed" 2>/dev/null)" != "$*" ]; then
        python -m venv "$work/$name"
        "$work/$name/bin/pip" install --quiet "$@"
        echo "$*" > "$work/$name/.installed"
    fi
}
environment new 'cohere>=7,<8' 'voyageai>=0.5,<0.6' 'litellm>=1.110,<2'
environment old 'langchain-cohere>=0.6,<0.7' 'llama-index-postprocessor-cohere-rerank' 'llama-index-postprocessor-jinaai-rerank' \
    'llama-index-postprocessor-tei-rerank' 'infinity_client>=0.0.78,<0.1'

echo secret > "$work/keys"
python -m r1ranker.cli serve "$model" --port 0 --engine hf --no-think --constrain candidates --max-tokens 64 --api-key-file "$work/keys" \
    2> "$work/serve.log" &
server=$!
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true' EXIT
for _ in $(seq 600); do
    address=$(sed -n 's/.* is served at \(http[^ ]*\) .*/\1/p' "$work/serve.log")
    if [ -n "$address" ] && python -c "import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + '/health')" "$address" 2>/dev/null; then
        break
    fi
    if ! kill -0 $server 2>/dev/null; then
        cat "$work/serve.log" >&2
        exit 1
    fi
    sleep 0.1
done
status=0
"$work/new/bin/python" tests/clients/check.py "$address" cohere_v2 cohere_v1 cohere_error voyage litellm_cohere litellm_jina litellm_vllm \
    litellm_tei litellm_infinity || status=1
"$work/old/bin/python" tests/clients/check.py "$address" cohere_v2 langchain llama_index_cohere llama_index_jina llama_index_tei infinity ||
    status=1
exit $status
