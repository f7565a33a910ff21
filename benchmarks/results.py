"""python benchmarks/results.py --data DIR [--all | NAME ...]: run experiments on real data and put their tables into docs/results.md.

Resumable: what an earlier call has finished is not done again. `DIR` is searched for the raw sources.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from r1ranker.experiments.summary import mean_curve
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
    "direct_iterative": None,
    "answers": None,
    "thinking": None,
    "model_sizes": None,
    "zero_shot": None,
    "robustness": None,
}
"""experiment -> the file whose directory it reads, empty for the whole of --data; None: the built-in world"""
RESULTS = ROOT / "docs" / "results.md"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[[], *EXPERIMENTS], help="experiments")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--data", required=True, help="a directory that holds the raw sources")
    parser.add_argument("--output", default="checkpoints/results")
    parser.add_argument("--jobs", default="1", help="trainings side by side")
    parser.add_argument("--override", action="append", default=[], help="key=value of all of them, such as seeds=[1]")
    options = parser.parse_args()
    chosen = list(EXPERIMENTS) if options.all else options.names
    if not chosen:
        parser.error("--all or the names of experiments are wanted")
    failed = []
    for name in chosen:
        output = Path(options.output) / name
        command = [sys.executable, "-m", "r1ranker.cli", "experiment", name, *source(parser, name, options.data)]
        command += [*options.override, "--jobs", options.jobs]
        if subprocess.run([*command, "--output", str(output)], check=False).returncode:
            failed.append(name)
        elif (output / SUMMARY).is_file():
            put(name, (output / TABLES).read_text(encoding="utf-8") + picture(name, output / SUMMARY))
    finished = [Path(options.output) / name for name in chosen if (Path(options.output) / name / SUMMARY).is_file()]
    # trained rankers and their runs; the points of curves are measured on fewer rows
    done = [str(path) for one in finished for path in (*one.glob("seed_*/eval/*/after"), *_runs(one))]
    if done:
        report = [sys.executable, "-m", "r1ranker.cli", "report", *done, "--output", f"{options.output}/report.html"]
        subprocess.run(report, check=True)
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


def picture(name: str, summary: Path) -> str:
    """Draw the curves of an experiment into docs/; the Markdown that shows them, empty where there are none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = json.loads(summary.read_text(encoding="utf-8"))["curves"]
    if not curves:
        return ""
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for label, seeds in curves.items():
        mean = mean_curve(seeds)
        for axis, key, unit in ((axes[0], "tokens", 1e6), (axes[1], "seconds", 1.0)):
            axis.plot(
                [point[key] / unit for point in mean], [100 * point["mrr"] for point in mean], marker="o", label=label
            )
    axes[0].set(xlabel="training tokens, million", ylabel="MRR x 100")
    axes[1].set(xlabel="training, s")
    axes[1].legend()
    file = RESULTS.with_name(f"{name}.svg")
    # without the date and the random ids, so that the same figures give the same file
    matplotlib.rcParams["svg.hashsalt"] = name
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
    return f"\n![MRR against training tokens and seconds]({file.name})\n"


def put(name: str, tables: str) -> None:
    """Replace what stands in docs/results.md between the marks of an experiment; at its end where there are none."""
    text = RESULTS.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n\n{tables.strip()}\n\n{end}"
    if begin in text:
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: section, text, flags=re.DOTALL)
    else:
        text = f"{text.rstrip()}\n\n## {name}\n\n{section}\n"
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
