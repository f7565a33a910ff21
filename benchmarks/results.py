"""python benchmarks/results.py --data DIR [--all | NAME ...]: run experiments, put their tables into docs/results/NAME.md.

Then docs/results.md is made from these: a small table and a picture a question. `--page` does only that and needs no data.
Resumable: what an earlier call has finished is not done again. `DIR` is searched for the raw sources.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from results_page.page import page_text, put_between_marks
from results_page.pictures import draw, panels_of
from results_page.questions import QUESTIONS
from results_page.tables import FullTables

from r1ranker.errors import exit_on_user_error
from r1ranker.experiments.tables import SUMMARY, TABLES

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS: dict[str, str | None] = {
    "rec_movie": "*/ml-100k.inter",
    "rec_movie_1m": "*/ml-1m.inter",
    "rec_game": "*/Amazon_Video_Games.inter",
    "rec_music": "*/Amazon_CDs_and_Vinyl.inter",
    "routing": "*/router_data.csv.gz",
    "routing_merits": "*/router_data.csv.gz",
    "passages": "*/train*.parquet",
    "nine": "",
    "algorithms": "*/ml-100k.inter",
    "conversation": "*/ml-100k.inter",
    "credit": "*/ml-100k.inter",
    "losses": "*/ml-100k.inter",
    "rank_ratio": "*/ml-100k.inter",
    "direct_iterative": None,
    "answers": None,
    "thinking": None,
    "model_sizes": None,
    "zero_shot": None,
    "robustness": None,
}
"""experiment -> the file whose directory it reads, empty for the whole of --data; None: the built-in world"""
DOCS = ROOT / "docs"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[[], *EXPERIMENTS], help="experiments")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--page", action="store_true", help="only docs/results.md and its pictures, from docs/results/")
    parser.add_argument("--data", help="a directory that holds the raw sources")
    parser.add_argument("--output", default="checkpoints/results")
    parser.add_argument("--jobs", default="1", help="trainings side by side")
    parser.add_argument("--override", action="append", default=[], help="key=value of all of them, such as seeds=[1]")
    options = parser.parse_args()
    chosen = list(EXPERIMENTS) if options.all else options.names
    if options.page:
        if chosen:
            parser.error("--page runs no experiment; leave out --all and the names")
        return write_page(DOCS)
    if not chosen:
        parser.error("--page, --all or the names of experiments are wanted")
    if options.data is None:
        parser.error("--data: the directory of the raw sources is wanted")
    failed = []
    for name in chosen:
        output = Path(options.output) / name
        command = [sys.executable, "-m", "r1ranker.cli", "experiment", name, *source(parser, name, options.data)]
        command += [*options.override, "--jobs", options.jobs]
        if subprocess.run([*command, "--output", str(output)], check=False).returncode:
            failed.append(name)
        elif (output / SUMMARY).is_file():
            put(DOCS / "results" / f"{name}.md", name, (output / TABLES).read_text(encoding="utf-8"))
    finished = [Path(options.output) / name for name in chosen if (Path(options.output) / name / SUMMARY).is_file()]
    # trained rankers and their runs; the points of curves are measured on fewer rows
    done = [str(path) for one in finished for path in (*one.glob("seed_*/eval/*/after"), *_runs(one))]
    if done:
        report = [sys.executable, "-m", "r1ranker.cli", "report", *done, "--output", f"{options.output}/report.html"]
        subprocess.run(report, check=True)
    write_page(DOCS)
    if failed:
        print(f"not finished: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def source(parser: argparse.ArgumentParser, name: str, data: str) -> list[str]:
    """The override that says where an experiment's data are."""
    pattern = EXPERIMENTS[name]
    if pattern is None:
        return []
    if not pattern:
        return [f"data.source={data}"]
    found = sorted(Path(data).glob(pattern)) or sorted(Path(data).glob(pattern[2:]))
    if not found:
        parser.error(f"--data: no {pattern} in {data}; it is wanted for {name}")
    return [f"data.source={found[0].parent}"]


def _runs(output: Path) -> list[Path]:
    return [file.parent for file in sorted(output.glob("seed_*/*/metrics.jsonl"))]


def put(file: Path, name: str, tables: str) -> None:
    """Replace the tables between the marks of an experiment's file; a file that is not there yet is begun."""
    if not file.is_file():
        file.write_text(f"# {name}\n\n<!-- {name}: begin -->\n\n<!-- {name}: end -->\n", encoding="utf-8")
    text = file.read_text(encoding="utf-8")
    file.write_text(put_between_marks(text, name, tables), encoding="utf-8")


def write_page(docs: Path) -> int:
    """Write docs/results.md and its pictures anew from the full tables in docs/results/; 0."""
    text = page_text(docs)
    (docs / "results.md").write_text(text, encoding="utf-8")
    tables = FullTables(docs / "results")
    for question in QUESTIONS:
        draw(question, panels_of(question, tables), docs / "results" / f"{question.name}.svg")
    return 0


if __name__ == "__main__":
    exit_on_user_error(lambda: sys.exit(main()))
