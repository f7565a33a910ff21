#!/usr/bin/env bash
# DRanker by GRPO: a ranker that answers once, with the whole ranking, and earns the NDCG of that ranking.
#
# Needs: two cores. No GPU, no download: the data are built in, and the base model is made here.
# Takes: three minutes on two cores that had other work as well (70 s of processor time); MRR 28 -> 94.
# Makes: $OUTPUT/actor (the ranker), $OUTPUT/eval (every ranking), and a table of the model before and after training.
#
#   bash examples/recipes/dranker_grpo.sh                                  # arguments are settings of the training:
#   bash examples/recipes/dranker_grpo.sh algorithm.adv_estimator=rloo
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/setup.sh" # makes .venv at the first call; goes to the checkout

OUTPUT=${OUTPUT:-checkpoints/recipes/dranker_grpo}
BASE_MODEL=${BASE_MODEL:-}   # directory or hub id; empty: a tiny model is made
SIZE=${SIZE:-200}            # training requests a task
STEPS=${STEPS:-200}          # of GRPO
LR=${LR:-3e-3}               # suits the tiny model; take 1e-6 for a pretrained one
ENGINE=${ENGINE:-hf}         # vllm for models of some size
TASKS=(Rec-Movie Rec-Music Router-Performance)

# 1. data: requests of an invented world
r1ranker prepare --from toy --output "$OUTPUT/data" --size "$SIZE" --no-think "${TASKS[@]/#/--task=}"

# 2. a base model of random weights; it need not learn to answer first, as answers are constrained to the pool
if [ -z "$BASE_MODEL" ]; then
    BASE_MODEL=$OUTPUT/base
    r1ranker init-model "$BASE_MODEL" --data "$OUTPUT/data/direct_ranking/train.parquet" \
        --vocab-size 600 --title-tokens --title-words
fi

# 3. GRPO: eight answers a request, each compared with the mean of the eight
r1ranker train --config-name quickstart_direct \
    data.train_files="$OUTPUT/data/direct_ranking/train.parquet" \
    data.val_files="$OUTPUT/data/direct_ranking/test.parquet" \
    actor_rollout_ref.model.path="$BASE_MODEL" \
    actor_rollout_ref.actor.optim.lr="$LR" \
    actor_rollout_ref.rollout.name="$ENGINE" \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.constrain=candidates \
    algorithm.adv_estimator=grpo \
    trainer.total_training_steps="$STEPS" \
    trainer.default_local_dir="$OUTPUT" \
    trainer.resume_mode=disable \
    "$@"

# 4. requests that were not trained on, before and after
python eval/eval.py --dataset "$(IFS=,; echo "${TASKS[*]}")" --data "$OUTPUT/data/bench" \
    --model_path "$BASE_MODEL" "$OUTPUT/actor" \
    --strategy direct --no-think --constrain candidates --engine "$ENGINE" --output_dir "$OUTPUT/eval"

echo "DRanker: $OUTPUT/actor"
echo "every ranking: $OUTPUT/eval"
