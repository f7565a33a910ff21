#!/usr/bin/env bash
# As published: Ranking-bench, Qwen2.5-3B-Instruct, PPO with a critic on four GPUs, all nine tasks measured.
#
# Needs: four GPUs of 80 GB; step 2 says whether yours hold it. Hub access for data and model, or directories in their place.
# Takes: not measured here; 1,501 steps of 64 prompts with thoughts are a matter of days. It goes on where it was stopped.
# Makes: $OUTPUT/actor (the ranker), $OUTPUT/metrics.jsonl, $OUTPUT/eval (every ranking) and $OUTPUT/report.html.
#
#   bash examples/recipes/published_4_gpus.sh                       # arguments are settings of the training
#   MODE=direct bash examples/recipes/published_4_gpus.sh           # the DRanker
#   N_GPUS=8 BASE_MODEL=/models/Qwen2.5-7B-Instruct SOURCE=/data/Ranking-bench bash examples/recipes/published_4_gpus.sh
#
# Without a GPU the same commands run N_GPUS processes on the CPU, for a model as small as that allows.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/setup.sh" # makes .venv at the first call; goes to the checkout

MODE=${MODE:-iterative}                               # or direct
SOURCE=${SOURCE:-ulab-ai/Ranking-bench}               # hub data set, or a directory in its layout
STEPS=${STEPS:-1501}
DATASET=${DATASET:-all}                               # what is measured: one of the nine tasks, several with commas, or all
LIMIT=${LIMIT:-}                                      # requests a task that are measured; empty: every one
ENGINE=${ENGINE:-vllm}                                # hf where vLLM is not installed
export N_GPUS=${N_GPUS:-4}
export BASE_MODEL=${BASE_MODEL:-Qwen/Qwen2.5-3B-Instruct}
export DATA_DIR=${DATA_DIR:-data/${MODE}_ranking}
export ROLLOUT_TP_SIZE=${ROLLOUT_TP_SIZE:-1}          # GPUs that an engine spans
export EXPERIMENT_NAME=${EXPERIMENT_NAME:-${MODE}_ranking}
OUTPUT=${OUTPUT:-checkpoints/Ranking-FM/$EXPERIMENT_NAME}

settings=(
    actor_rollout_ref.rollout.name="$ENGINE"
    trainer.total_training_steps="$STEPS"
    trainer.default_local_dir="$OUTPUT"
    "$@"
)

# 1. training rows
if [ ! -e "$DATA_DIR/train.parquet" ]; then
    python "examples/data_preprocess/${MODE}_data_generation.py" --source "$SOURCE" --local_dir "$DATA_DIR"
fi

# 2. what would run where and the memory that it needs; what cannot fit ends here
bash scripts/Ranking_FM.sh --dry-run "${settings[@]}"

# 3. PPO with the published settings (configs/published.yaml)
bash scripts/Ranking_FM.sh "${settings[@]}"

# 4. the test requests, each ranked as the model was trained
python eval/eval.py --dataset "$DATASET" --data "$SOURCE" --model_path "$OUTPUT/actor" \
    --engine "$ENGINE" ${LIMIT:+--limit "$LIMIT"} --output_dir "$OUTPUT/eval"
r1ranker report "$OUTPUT" --output "$OUTPUT/report.html"

echo "ranker: $OUTPUT/actor"
echo "every ranking: $OUTPUT/eval"
echo "curves, results and examples: $OUTPUT/report.html"
