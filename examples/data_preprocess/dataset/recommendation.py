"""Build a recommendation task of Ranking-bench from RecBole's atomic files, in the benchmark's layout.

python examples/data_preprocess/dataset/recommendation.py --task Rec-Movie --inter ml-1m.inter --item ml-1m.item [--local_dir data/bench]
"""

import argparse

from r1ranker.data.prepare import build_and_show, raw_settings
from r1ranker.data.raw import LICENCES, recommendation_source
from r1ranker.data.sources.recommendation import ATOMIC
from r1ranker.errors import exit_on_user_error


def main() -> None:
    """Read the arguments and build."""
    parser = argparse.ArgumentParser(description="Build a recommendation task from RecBole's atomic files.")
    parser.add_argument("--task", required=True, choices=list(ATOMIC))
    parser.add_argument("--inter", required=True, help="user_id, item_id, rating, timestamp; tab-separated")
    parser.add_argument("--item", required=True, help="item_id, title; tab-separated")
    parser.add_argument("--local_dir", default="data/bench", help="where to write (%(default)s)")
    parser.add_argument("--history", type=int, default=20, help="items shown (%(default)s)")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--users", type=int, default=657, help="0: all (%(default)s)")
    parser.add_argument("--positions", type=int, default=1, help="requests a user at most (%(default)s)")
    parser.add_argument("--test_share", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    settings = raw_settings(
        [str(options.history)], options.candidates, options.users, options.seed, positions=options.positions
    ).of(options.task)
    source = recommendation_source(options.task, options.inter, options.item, settings)
    line = f"{options.task}: {options.inter}, {options.item}. {LICENCES[options.task]}"
    build_and_show({options.task: source}, options.local_dir, [line], options.seed, options.test_share)


if __name__ == "__main__":
    exit_on_user_error(main)
