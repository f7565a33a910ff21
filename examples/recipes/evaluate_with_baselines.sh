#!/usr/bin/env bash
# Evaluation with baselines: one table of several rankers and all orders that need no language model, a test, a report.
#
# Needs: trained rankers and test data in Ranking-bench's layout; by default the two that other recipes leave behind.
# Takes: about 80 s of processor time for the two rankers of the recipes, 240 requests each, and all baselines.
# Makes: $OUTPUT/*.json (every ranking, a file a ranker), $OUTPUT/report.html, and the tables.
#
#   bash examples/recipes/evaluate_with_baselines.sh                            # arguments are options of eval.py:
#   bash examples/recipes/evaluate_with_baselines.sh --limit 20 --trec_dir trec
#   MODEL_PATH="DIR_1 DIR_2 DIR_3" DATA=ulab-ai/Ranking-bench DATASET=Rec-Movie bash examples/recipes/evaluate_with_baselines.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/setup.sh" # makes .venv at the first call; goes to the checkout

MODEL_PATH=${MODEL_PATH:-checkpoints/recipes/dranker_grpo/actor checkpoints/recipes/iranker_ppo/actor}   # blanks between
DATA=${DATA:-checkpoints/recipes/dranker_grpo/data/bench}
DATASET=${DATASET:-Rec-Movie,Rec-Music,Router-Performance}      # one task, several with commas, or all
METRIC=${METRIC:-mrr}                                 # that the test is about: mrr, hit@K or ndcg@K
ENGINE=${ENGINE:-hf}                                  # vllm for models of some size
OUTPUT=${OUTPUT:-checkpoints/recipes/evaluate_with_baselines}

read -ra models <<<"$MODEL_PATH"
for model in "${models[@]}"; do
    if [[ $model == checkpoints/recipes/*/actor && ! -e $model ]]; then
        echo "error: $model is not there; run bash examples/recipes/$(basename "$(dirname "$model")").sh first, or set MODEL_PATH and DATA" >&2
        exit 2
    fi
done
mkdir -p "$OUTPUT"
touch "$OUTPUT/began"

# 1. every ranker as it was trained, on the same requests; the table has p against the first
python eval/eval.py --dataset "$DATASET" --data "$DATA" --model_path "${models[@]}" \
    --baselines --engine "$ENGINE" --output_dir "$OUTPUT" "$@"

# 2. two rankers task by task: is the difference more than chance?
mapfile -t results < <(find "$OUTPUT" -maxdepth 1 -name '*.json' ! -name '*.timing.json' -newer "$OUTPUT/began" | sort)
if [ ${#results[@]} -ge 2 ]; then
    r1ranker compare "${results[0]}" "${results[1]}" --metric "$METRIC"
fi

# 3. results with intervals, errors and whole eliminations, as one file for the browser
r1ranker report "${results[@]}" --output "$OUTPUT/report.html"

printf 'every ranking: %s\n' "${results[@]}"
echo "report: $OUTPUT/report.html"
