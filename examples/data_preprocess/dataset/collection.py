"""Files that `r1ranker rank --run` takes, from BEIR, BRIGHT or R2MED: queries, documents, judgments and BM25's first 100.

python examples/data_preprocess/dataset/collection.py --layout beir --source BeIR/scifact --output data/scifact
python examples/data_preprocess/dataset/collection.py --layout bright --source xlangai/BRIGHT --split biology --output data/biology
python examples/data_preprocess/dataset/collection.py --layout r2med --source R2MED/Biology --output data/r2med
"""

import sys
from typing import Annotated

try:
    from typer import Option

    from r1ranker.cli.run import run_command
    from r1ranker.data.sources.collection import Layout, read_collection, write_collection
    from r1ranker.errors import check_at_least
except ModuleNotFoundError as missing:
    how = "run: pip install -e . (or bash scripts/setup.sh, then source .venv/bin/activate)"
    print(f"error: r1ranker is not installed ({missing}); {how}", file=sys.stderr)
    sys.exit(2)


def build(
    layout: Annotated[Layout, Option(help="whose files they are")],
    source: Annotated[str, Option(help="hub data set, or a directory with its files")],
    output: Annotated[str, Option(help="directory to write")] = "data/collection",
    split: Annotated[str, Option(help="beir: of the judgments; bright: the domain, such as biology")] = "test",
    depth: Annotated[int, Option(help="documents of a query in BM25's run")] = 100,
) -> None:
    """Write queries.tsv, collection.jsonl, qrels.txt and run.bm25.txt."""
    check_at_least("--depth", depth, 1)
    collection = read_collection(layout, source, split)
    write_collection(collection, output, depth)
    print(f"{output}: {len(collection.queries):,} judged queries, {len(collection.documents):,} documents")


if __name__ == "__main__":
    run_command(build)
