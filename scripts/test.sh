#!/usr/bin/env bash
# Sets up .venv and runs the whole test suite. Arguments go to pytest, which without any runs everything.
# The report is tested in Chromium: as root on Debian it is installed where it is missing; elsewhere those tests are left out.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if ! command -v chromedriver >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium (once) ..."
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        chromium chromium-driver fonts-dejavu-core) >/dev/null 2>&1 ||
        echo "note: Chromium cannot be installed here; the report's browser tests are left out" >&2
fi
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi
# Two files of tests side by side, the end-to-end ones first: they mostly wait for processes to start. One thread each:
# two processes that both want all cores hold each other up.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 25
