"""Build the three passage tasks of Ranking-bench from MS MARCO v1.1 QA parquet, in the benchmark's layout.

python examples/data_preprocess/dataset/passage.py --source DIR [--local_dir data/bench]
"""

import argparse

from r1ranker.data.prepare import build_and_show
from r1ranker.data.raw import LICENCES, passage_source
from r1ranker.data.sources.passage import MOST_CHARACTERS, ROWS, SIZES, PassageSettings
from r1ranker.errors import exit_on_user_error


def main() -> None:
    """Read the arguments and build."""
    parser = argparse.ArgumentParser(description="Build the passage tasks from MS MARCO's parquet files.")
    parser.add_argument("--source", required=True, help="directory with train*.parquet and test*.parquet")
    parser.add_argument("--task", choices=list(SIZES), action="append", help="default: all three")
    parser.add_argument("--local_dir", default="data/bench", help="where to write (%(default)s)")
    parser.add_argument("--rows", type=int, default=ROWS, help="iterative rows a task and split (%(default)s)")
    parser.add_argument("--characters", type=int, default=MOST_CHARACTERS, help="of passage text (%(default)s)")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    settings = PassageSettings(options.rows, options.characters, options.seed)
    source = passage_source(options.source, settings, options.task or list(SIZES))
    line = f"Passage: {options.source}. {LICENCES['Passage']}"
    build_and_show({"passage": source}, options.local_dir, [line], options.seed)


if __name__ == "__main__":
    exit_on_user_error(main)
