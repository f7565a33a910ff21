#!/usr/bin/env bash
# From nothing to two trained rankers, on one CPU: sets up .venv, then runs r1ranker/quickstart.py. Arguments go to it.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m r1ranker.quickstart "$@"
