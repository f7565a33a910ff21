"""Build a recommendation task of Ranking-bench from RecBole's atomic files, in the benchmark's layout.

python examples/data_preprocess/dataset/recommendation.py --task Rec-Movie --inter ml-1m.inter --item ml-1m.item [--local_dir data/bench]
"""

import sys
from typing import Annotated

try:
    from typer import Option

    from r1ranker.cli.options import one_of
    from r1ranker.cli.run import run_command
    from r1ranker.data.prepare import build_and_print, raw_settings
    from r1ranker.data.raw import LICENCES, recommendation_source
    from r1ranker.data.sources.recommendation import RECBOLE_DATA_SETS
except ModuleNotFoundError as missing:
    how = "run: pip install -e . (or bash scripts/setup.sh, then source .venv/bin/activate)"
    print(f"error: r1ranker is not installed ({missing}); {how}", file=sys.stderr)
    sys.exit(2)


def build(
    task: Annotated[str, Option(parser=one_of(RECBOLE_DATA_SETS), help=", ".join(RECBOLE_DATA_SETS))],
    inter: Annotated[str, Option(help="user_id, item_id, rating, timestamp; tab-separated")],
    item: Annotated[str, Option(help="item_id, title; tab-separated")],
    local_dir: Annotated[str, Option(help="where to write")] = "data/bench",
    history: Annotated[int, Option(help="items shown")] = 20,
    candidates: int = 20,
    users: Annotated[int, Option(help="0: all")] = 657,
    positions: Annotated[int, Option(help="requests a user at most")] = 1,
    test_share: float = 0.2,
    seed: int = 42,
) -> None:
    """Build a recommendation task from RecBole's atomic files."""
    settings = raw_settings([str(history)], candidates=candidates, users=users, seed=seed, positions=positions)
    source = recommendation_source(task, inter, item, settings.for_task(task))
    build_and_print({task: source}, local_dir, [f"{task}: {inter}, {item}. {LICENCES[task]}"], seed, test_share)


if __name__ == "__main__":
    run_command(build)
