"""docs/results.md from the full tables in docs/results/: a small table and a picture a question, and the index."""
