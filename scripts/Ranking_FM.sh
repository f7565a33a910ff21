#!/usr/bin/env bash
# Trains a ranker with the published settings. Needs the variables below; arguments are hydra overrides (veRL's keys).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

need() { # name, example
    if [ -z "${!1:-}" ]; then
        echo "error: the variable $1 is not set; for example: export $1=$2" >&2
        exit 2
    fi
}
need N_GPUS 4
need BASE_MODEL Qwen/Qwen2.5-3B-Instruct
need DATA_DIR data/iterative_ranking
need ROLLOUT_TP_SIZE 1
need EXPERIMENT_NAME iterative_ranking

export N_GPUS BASE_MODEL DATA_DIR ROLLOUT_TP_SIZE EXPERIMENT_NAME

python=python3
[ -x "$root/.venv/bin/python" ] && python="$root/.venv/bin/python"
# the config looks the variables up itself: hydra would read their values, put here, as words of its grammar
exec "$python" -m r1ranker.cli train --config-name published \
    data.train_files='${oc.env:DATA_DIR}/train.parquet' \
    data.val_files='${oc.env:DATA_DIR}/test.parquet' \
    actor_rollout_ref.model.path='${oc.env:BASE_MODEL}' \
    critic.model.path='${oc.env:BASE_MODEL}' \
    actor_rollout_ref.rollout.tensor_model_parallel_size='${oc.env:ROLLOUT_TP_SIZE}' \
    trainer.n_gpus_per_node='${oc.env:N_GPUS}' \
    trainer.experiment_name='${oc.env:EXPERIMENT_NAME}' \
    "$@"
