#!/usr/bin/env bash
# Sets up .venv and runs the test suite. Arguments go to pytest: scripts/test.sh -k resume
# --all, as the first argument, runs those tests too that take long (marked `long`): what the suite does in a short form, at length.
# The report is tested in Chromium: as root on Debian it is installed where it is missing; elsewhere those tests are left out.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if ! command -v chromedriver >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium (once) ..."
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        chromium chromium-driver fonts-dejavu-core) >/dev/null 2>&1 ||
        echo "note: Chromium cannot be installed here; the report's browser tests are left out" >&2
fi
chosen=(-m "not long")
if [ "${1:-}" = --all ]; then
    chosen=()
    shift
fi
if [ $# -gt 0 ]; then
    exec python -m pytest "${chosen[@]}" "$@"
fi
# Two files of tests side by side; tests/conftest.py says which come first and what stays together. One thread each: two
# processes that both want all cores hold each other up.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest "${chosen[@]}" -n 2 --dist loadfile --no-loadscope-reorder --durations 25
