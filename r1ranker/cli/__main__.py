"""`python -m r1ranker.cli` is `r1ranker`."""

from r1ranker.cli import start

if __name__ == "__main__":
    start()
