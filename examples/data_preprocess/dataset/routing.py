"""Build the three routing tasks of Ranking-bench from router_data.csv, in the benchmark's layout.

python examples/data_preprocess/dataset/routing.py --router_data router_data.csv [--descriptions llm_descriptions.json] [--local_dir data/bench]
"""

import argparse

from r1ranker.data.prepare import build_and_show
from r1ranker.data.raw import LICENCES, routing_source
from r1ranker.data.sources.routing import OBJECTIVES
from r1ranker.errors import exit_on_user_error


def main() -> None:
    """Read the arguments and build."""
    parser = argparse.ArgumentParser(description="Build the routing tasks from router_data.csv.")
    parser.add_argument(
        "--router_data", required=True, help="task_id, query, effect, cost and optionally llm; or .csv.gz"
    )
    parser.add_argument("--descriptions", help="JSON of LLM -> description")
    parser.add_argument("--task", choices=list(OBJECTIVES), action="append", help="default: all three")
    parser.add_argument("--local_dir", default="data/bench", help="where to write (%(default)s)")
    parser.add_argument("--test_share", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    source = routing_source(options.router_data, options.descriptions, options.seed, options.task or list(OBJECTIVES))
    line = f"Router: {options.router_data}. {LICENCES['Router']}"
    build_and_show({"routing": source}, options.local_dir, [line], options.seed, options.test_share)


if __name__ == "__main__":
    exit_on_user_error(main)
