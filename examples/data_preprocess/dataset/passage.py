"""Build the three passage tasks of Ranking-bench from MS MARCO v1.1 QA parquet, in the benchmark's layout.

python examples/data_preprocess/dataset/passage.py --source DIR [--local_dir data/bench]
"""

import sys
from typing import Annotated

try:
    from typer import Option

    from r1ranker.cli.options import one_of
    from r1ranker.cli.run import run_command
    from r1ranker.data.prepare import build_and_print
    from r1ranker.data.raw import LICENCES, passage_source
    from r1ranker.data.sources.passage import MAX_ROWS, MOST_CHARACTERS, SIZES, PassageSettings
except ModuleNotFoundError as missing:
    how = "run: pip install -e . (or bash scripts/setup.sh, then source .venv/bin/activate)"
    print(f"error: r1ranker is not installed ({missing}); {how}", file=sys.stderr)
    sys.exit(2)


def build(
    source: Annotated[str, Option(help="directory with train*.parquet and test*.parquet")],
    task: Annotated[list[str] | None, Option(parser=one_of(SIZES), help=f"{', '.join(SIZES)} (all)")] = None,
    local_dir: Annotated[str, Option(help="where to write")] = "data/bench",
    rows: Annotated[int, Option(help="iterative rows a task and split")] = MAX_ROWS,
    characters: Annotated[int, Option(help="of passage text")] = MOST_CHARACTERS,
    seed: int = 42,
) -> None:
    """Build the passage tasks from MS MARCO's parquet files."""
    settings = PassageSettings(rows, characters, seed)
    found = passage_source(source, settings, task or list(SIZES))
    build_and_print({"passage": found}, local_dir, [f"Passage: {source}. {LICENCES['Passage']}"], seed)


if __name__ == "__main__":
    run_command(build)
