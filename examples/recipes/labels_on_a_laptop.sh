#!/usr/bin/env bash
# Constrained labels on a laptop: the ranker answers with a label, as [3], and can say nothing but labels of the pool.
#
# An answer is then a few tokens long and always valid. A pool has only so many answers, so all of them are weighed
# instead of some sampled, and a step costs little more than its prompts.
#
# Needs: two cores. No GPU, no download with the tiny model.
# Takes: about 40 s of processor time. The tiny model stays at chance (MRR 30 -> 30): it shows the way and its cost.
# Makes: $OUTPUT/actor (the ranker), $OUTPUT/eval (every ranking), and a table of the model before and after training.
#
#   bash examples/recipes/labels_on_a_laptop.sh                   # arguments are settings of the training
#   BASE_MODEL=Qwen/Qwen2.5-0.5B-Instruct LR=1e-6 bash examples/recipes/labels_on_a_laptop.sh
#
# A label names a place, and a model has to look up what stands there. The tiny model does not learn that. Nor did it in 150 steps after
# a cold start of 300 steps by the most frequent label. To rank by labels take a pretrained BASE_MODEL.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/setup.sh" # makes .venv at the first call; goes to the checkout

OUTPUT=${OUTPUT:-checkpoints/recipes/labels_on_a_laptop}
BASE_MODEL=${BASE_MODEL:-}         # directory or hub id; empty: a tiny model is made
SIZE=${SIZE:-200}                  # training requests a task; each becomes a pool of every size from 2 on
STEPS=${STEPS:-80}                 # of GRPO
BATCH_SIZE=${BATCH_SIZE:-64}       # pools a step
LR=${LR:-1e-3}                     # suits the tiny model; take 1e-6 for a pretrained one
TASKS=(Rec-Movie Rec-Music Router-Performance)

# 1. data: candidates stand as [1], [2], ... in the prompt
r1ranker prepare --from toy --output "$OUTPUT/data" --size "$SIZE" --answer-style label --no-think \
    "${TASKS[@]/#/--task=}"

# 2. a base model of random weights, which can say nothing but labels all the same
if [ -z "$BASE_MODEL" ]; then
    BASE_MODEL=$OUTPUT/base
    r1ranker init-model "$BASE_MODEL" --data "$OUTPUT/data/iterative_ranking/train.parquet" \
        --vocab-size 600 --title-tokens --title-words
fi

# 3. GRPO over every answer of a pool with its probability (every_answer), none of it sampled
r1ranker train --config-name quickstart \
    data.train_files="$OUTPUT/data/iterative_ranking/train.parquet" \
    data.val_files="$OUTPUT/data/iterative_ranking/test.parquet" \
    data.answer_style=label \
    data.think=false \
    data.train_batch_size="$BATCH_SIZE" \
    actor_rollout_ref.model.path="$BASE_MODEL" \
    actor_rollout_ref.actor.ppo_mini_batch_size="$BATCH_SIZE" \
    actor_rollout_ref.actor.optim.lr="$LR" \
    actor_rollout_ref.rollout.constrain=candidates \
    actor_rollout_ref.rollout.every_answer=true \
    algorithm.adv_estimator=grpo \
    trainer.total_training_steps="$STEPS" \
    trainer.default_local_dir="$OUTPUT" \
    trainer.resume_mode=disable \
    "$@"

# 4. requests that were not trained on, before and after
python eval/eval.py --dataset "$(IFS=,; echo "${TASKS[*]}")" --data "$OUTPUT/data/bench" \
    --model_path "$BASE_MODEL" "$OUTPUT/actor" \
    --strategy iterative --answer_style label --no-think --constrain candidates --engine hf --output_dir "$OUTPUT/eval"

echo "IRanker by labels: $OUTPUT/actor"
echo "every ranking: $OUTPUT/eval"
