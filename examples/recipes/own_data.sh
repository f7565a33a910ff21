#!/usr/bin/env bash
# Own data: from a file of requests to a ranker of your own, measured on requests that it has not seen.
#
# Needs: two cores. A file of requests; here a help desk's, in examples/own_data. No GPU, no download with the tiny model.
# Takes: a minute on two cores. Eighteen requests are too few to learn from: it shows the way, not a result.
# Makes: $OUTPUT/data (training and test rows), $OUTPUT/actor (the ranker), $OUTPUT/eval (every ranking), $OUTPUT/report.html.
#
#   bash examples/recipes/own_data.sh
#   SOURCE=examples/own_data/plants.csv TASK=Plants TEMPLATE= bash examples/recipes/own_data.sh    # histories, no template
#   SOURCE=my.jsonl TEMPLATE=my.yaml BASE_MODEL=Qwen/Qwen2.5-0.5B-Instruct LR=1e-6 ENGINE=vllm bash examples/recipes/own_data.sh
#
# Paths are seen from the checkout. Arguments are settings of the training. docs/data.md says what a file may hold.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/setup.sh" # makes .venv at the first call; goes to the checkout

SOURCE=${SOURCE:-examples/own_data/support.jsonl}     # .jsonl, .csv or .parquet
TEMPLATE=${TEMPLATE-examples/own_data/support.yaml}   # the task's words; empty: the usual ones
TASK=${TASK:-}                                        # the task's name, where neither rows nor template give it
OUTPUT=${OUTPUT:-checkpoints/recipes/own_data}
BASE_MODEL=${BASE_MODEL:-}                            # directory or hub id; empty: a tiny model is made
STEPS=${STEPS:-40}                                    # of GRPO
BATCH_SIZE=${BATCH_SIZE:-16}                          # requests a step, eight answers each
LR=${LR:-3e-3}                                        # suits the tiny model; take 1e-6 for a pretrained one
ENGINE=${ENGINE:-hf}                                  # vllm for models of some size

# 1. data: split by request; the words of the template go with them
r1ranker prepare --from "$SOURCE" ${TEMPLATE:+--template "$TEMPLATE"} ${TASK:+--task "$TASK"} \
    --output "$OUTPUT/data" --shuffle --no-think

# 2. a base model of random weights; it need not learn to answer first, as answers are constrained to the pool
if [ -z "$BASE_MODEL" ]; then
    BASE_MODEL=$OUTPUT/base
    r1ranker init-model "$BASE_MODEL" --data "$OUTPUT/data/iterative_ranking/train.parquet" \
        --title-tokens --title-words
fi

# 3. an IRanker by GRPO; for a DRanker take direct_ranking here and above, and --strategy direct below
r1ranker train --config-name quickstart \
    data.train_files="$OUTPUT/data/iterative_ranking/train.parquet" \
    data.val_files="$OUTPUT/data/iterative_ranking/test.parquet" \
    data.train_batch_size="$BATCH_SIZE" \
    actor_rollout_ref.model.path="$BASE_MODEL" \
    actor_rollout_ref.actor.ppo_mini_batch_size="$BATCH_SIZE" \
    actor_rollout_ref.actor.optim.lr="$LR" \
    actor_rollout_ref.rollout.name="$ENGINE" \
    trainer.total_training_steps="$STEPS" \
    trainer.default_local_dir="$OUTPUT" \
    trainer.resume_mode=disable \
    "$@"

# 4. test requests, beside all orders that need no language model
python eval/eval.py --dataset all --data "$OUTPUT/data/bench" --model_path "$OUTPUT/actor" \
    --strategy iterative --no-think --constrain candidates --engine "$ENGINE" --baselines --output_dir "$OUTPUT/eval"
r1ranker report "$OUTPUT" --output "$OUTPUT/report.html"

echo "ranker: $OUTPUT/actor"
echo "every ranking: $OUTPUT/eval"
echo "curves, results and examples: $OUTPUT/report.html"
