#!/usr/bin/env bash
# Sets up .venv and runs the whole test suite. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec python -m pytest "$@"
