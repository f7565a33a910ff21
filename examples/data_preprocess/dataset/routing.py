"""Build the three routing tasks of Ranking-bench from router_data.csv, in the benchmark's layout.

python examples/data_preprocess/dataset/routing.py --router_data router_data.csv [--descriptions llm_descriptions.json] [--local_dir data/bench]
"""

import sys
from typing import Annotated

try:
    from typer import Option

    from r1ranker.cli.options import one_of
    from r1ranker.cli.run import run_command
    from r1ranker.data.prepare import build_and_print
    from r1ranker.data.raw import LICENCES, routing_source
    from r1ranker.data.sources.routing import OBJECTIVES
except ModuleNotFoundError as missing:
    how = "run: pip install -e . (or bash scripts/setup.sh, then source .venv/bin/activate)"
    print(f"error: r1ranker is not installed ({missing}); {how}", file=sys.stderr)
    sys.exit(2)


def build(
    router_data: Annotated[str, Option(help="task_id, query, effect, cost and optionally llm; or .csv.gz")],
    descriptions: Annotated[str | None, Option(help="JSON of LLM -> description")] = None,
    task: Annotated[list[str] | None, Option(parser=one_of(OBJECTIVES), help=f"{', '.join(OBJECTIVES)} (all)")] = None,
    local_dir: Annotated[str, Option(help="where to write")] = "data/bench",
    test_share: float = 0.2,
    seed: int = 42,
) -> None:
    """Build the routing tasks from router_data.csv."""
    source = routing_source(router_data, descriptions, seed, task or list(OBJECTIVES))
    line = f"Router: {router_data}. {LICENCES['Router']}"
    build_and_print({"routing": source}, local_dir, [line], seed, test_share)


if __name__ == "__main__":
    run_command(build)
