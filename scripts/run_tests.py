"""python scripts/run_tests.py [END_TO_END UNIT]: both halves of the suite side by side; end-to-end tests mostly wait for processes to start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

HALVES = ("tests/e2e", "tests/unit")


def main() -> int:
    # one thread each: two processes that both want all cores hold each other up
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    halves = sys.argv[1:] or HALVES
    with tempfile.TemporaryDirectory() as directory:
        logs = [os.path.join(directory, str(place)) for place in range(len(halves))]
        running = []
        for half, log in zip(halves, logs, strict=True):
            with open(log, "wb") as written:
                command = [sys.executable, "-m", "pytest", *half.split()]
                running.append(subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, env=environment))
        codes = [process.wait() for process in running]
        last = []
        for half, log in zip(halves, logs, strict=True):
            with open(log, encoding="utf-8", errors="replace") as written:
                text = written.read().rstrip()
            print(f"== {half}\n{text}\n", flush=True)
            last.append(f"{half}: {text.splitlines()[-1] if text else 'nothing was printed'}")
    print("\n".join(last))
    return max(abs(code) for code in codes)


if __name__ == "__main__":
    sys.exit(main())
