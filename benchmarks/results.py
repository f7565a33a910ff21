"""python benchmarks/results.py --data DIR [--all | NAME ...]: run experiments on real data and put their tables into docs/results.md.

Resumable: what an earlier call has finished is not done again. `DIR` is searched for the raw sources.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from r1ranker.experiments.summary import SUMMARY, TABLES

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = {"rec_movie": "*/ml-100k.inter", "routing": "*/router_data.csv.gz"}
"""experiment -> the file whose directory it reads"""
RESULTS = ROOT / "docs" / "results.md"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[[], *EXPERIMENTS], help="experiments")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--data", required=True, help="a directory that holds the raw sources")
    parser.add_argument("--output", default="checkpoints/results")
    parser.add_argument("--override", action="append", default=[], help="key=value of all of them, such as seeds=[1]")
    options = parser.parse_args()
    chosen = list(EXPERIMENTS) if options.all else options.names
    if not chosen:
        parser.error("--all or the names of experiments are wanted")
    failed = []
    for name in chosen:
        found = sorted(Path(options.data).glob(EXPERIMENTS[name])) or sorted(
            Path(options.data).glob(EXPERIMENTS[name][2:])
        )
        if not found:
            parser.error(f"--data: no {EXPERIMENTS[name]} in {options.data}; it is wanted for {name}")
        output = Path(options.output) / name
        command = [
            sys.executable,
            "-m",
            "r1ranker.cli",
            "experiment",
            name,
            f"data.source={found[0].parent}",
            *options.override,
        ]
        if subprocess.run([*command, "--output", str(output)], check=False).returncode:
            failed.append(name)
        elif (output / SUMMARY).is_file():
            put(name, (output / TABLES).read_text(encoding="utf-8"))
    done = [str(Path(options.output) / name) for name in chosen if (Path(options.output) / name / SUMMARY).is_file()]
    if done:
        report = [sys.executable, "-m", "r1ranker.cli", "report", *done, "--output", f"{options.output}/report.html"]
        subprocess.run(report, check=True)
    if failed:
        print(f"not finished: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


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
