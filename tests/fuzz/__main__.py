"""python -m tests.fuzz --cases 100000 [--seed 1] [--only KIND]: how many cases of each kind ran, and what failed."""

from __future__ import annotations

import argparse
import sys
import traceback

from .kinds import KINDS, SHARES, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--cases", type=int, default=100_000, help="at least so many in all, shared out over the kinds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=sorted(KINDS), help="one kind")
    options = parser.parse_args()
    chosen = [options.only] if options.only else list(KINDS)
    total, failed = 0, []
    for name in chosen:
        share = SHARES.get(name, 1.0) / sum(SHARES.get(one, 1.0) for one in chosen)
        error = None
        try:
            ran = run(name, round(options.cases * share) + 1, options.seed)
        except Exception as found:
            error, ran = found, getattr(found, "cases", 0)
            failed.append(name)
        total += ran
        print(f"{name}: {ran} cases{', FAILED' if error else ''}", flush=True)
        if error is not None:
            traceback.print_exception(error)
    print(f"{total} cases in all, seed {options.seed}; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
