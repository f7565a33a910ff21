#!/usr/bin/env bash
# IRanker by PPO with a critic: a ranker that answers with the worst candidate, which goes out, until one is left.
#
# Needs: two cores. No GPU, no download: the data are built in, and the base model is made here.
# Takes: six minutes on two cores that had other work as well (136 s of processor time); MRR 25 -> 91.
# Makes: $OUTPUT/actor (the ranker), $OUTPUT/eval (every ranking), and a table of the model before and after training.
#
#   bash examples/recipes/iranker_ppo.sh                          # arguments are settings of the training:
#   bash examples/recipes/iranker_ppo.sh critic.optim.lr=3e-4
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/setup.sh" # makes .venv at the first call; goes to the checkout

OUTPUT=${OUTPUT:-checkpoints/recipes/iranker_ppo}
BASE_MODEL=${BASE_MODEL:-}         # directory or hub id; empty: a tiny model is made
SIZE=${SIZE:-200}                  # training requests a task; each becomes a pool of every size from 2 on
STEPS=${STEPS:-150}                # of PPO
BATCH_SIZE=${BATCH_SIZE:-256}      # pools a step, one answer each; two updates are made from them
LR=${LR:-3e-3}                     # suits the tiny model; take 1e-6 for a pretrained one
CRITIC_LR=${CRITIC_LR:-1e-3}       # and here 2e-6
ENGINE=${ENGINE:-hf}               # vllm for models of some size
TASKS=(Rec-Movie Rec-Music Router-Performance)

# 1. data: requests of an invented world
r1ranker prepare --from toy --output "$OUTPUT/data" --size "$SIZE" --no-think "${TASKS[@]/#/--task=}"

# 2. a base model of random weights; it need not learn to answer first, as answers are constrained to the pool
if [ -z "$BASE_MODEL" ]; then
    BASE_MODEL=$OUTPUT/base
    r1ranker init-model "$BASE_MODEL" --data "$OUTPUT/data/iterative_ranking/train.parquet" \
        --vocab-size 600 --title-tokens --title-words
fi

# 3. PPO: advantages are the rewards less what the critic expects; a KL term keeps the actor near the base model
r1ranker train --config-name quickstart_ppo \
    data.train_files="$OUTPUT/data/iterative_ranking/train.parquet" \
    data.val_files="$OUTPUT/data/iterative_ranking/test.parquet" \
    data.train_batch_size="$BATCH_SIZE" \
    actor_rollout_ref.model.path="$BASE_MODEL" \
    actor_rollout_ref.actor.ppo_mini_batch_size="$((BATCH_SIZE / 2))" \
    actor_rollout_ref.actor.optim.lr="$LR" \
    actor_rollout_ref.actor.use_kl_loss=true \
    actor_rollout_ref.rollout.name="$ENGINE" \
    actor_rollout_ref.rollout.constrain=candidates \
    critic.model.path="$BASE_MODEL" \
    critic.optim.lr="$CRITIC_LR" \
    algorithm.adv_estimator=gae \
    trainer.total_training_steps="$STEPS" \
    trainer.default_local_dir="$OUTPUT" \
    trainer.resume_mode=disable \
    "$@"

# 4. requests that were not trained on, before and after
python eval/eval.py --dataset "$(IFS=,; echo "${TASKS[*]}")" --data "$OUTPUT/data/bench" \
    --model_path "$BASE_MODEL" "$OUTPUT/actor" \
    --strategy iterative --no-think --constrain candidates --engine "$ENGINE" --output_dir "$OUTPUT/eval"

echo "IRanker: $OUTPUT/actor"
echo "every ranking: $OUTPUT/eval"
