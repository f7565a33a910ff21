"""Evaluate a ranker on a task of Ranking-bench; the same as `r1ranker eval`, with the same options.

python eval/eval.py --dataset Rec-Movie --model_path DIR [--data DIR] [--strategy iterative|direct] [--gpu_id 0]
"""

import sys

try:
    from r1ranker.cli.evaluation import evaluate
    from r1ranker.cli.run import run_command
except ModuleNotFoundError as missing:
    how = "run: pip install -e . (or bash scripts/setup.sh, then source .venv/bin/activate)"
    print(f"error: r1ranker is not installed ({missing}); {how}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    run_command(evaluate)
