"""Write training parquet for direct ranking from Ranking-bench, or from a directory of its layout.

python examples/data_preprocess/direct_data_generation.py [--source PATH_OR_HUB_ID] [--local_dir data/direct_ranking]
"""

import sys

try:
    from r1ranker.cli.data import rows_command
    from r1ranker.cli.run import run_command
except ModuleNotFoundError as missing:
    how = "run: pip install -e . (or bash scripts/setup.sh, then source .venv/bin/activate)"
    print(f"error: r1ranker is not installed ({missing}); {how}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    run_command(rows_command("direct"))
