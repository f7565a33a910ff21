#!/usr/bin/env bash
# Sets up .venv and runs the whole test suite. Arguments go to pytest.
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
exec python scripts/run_tests.py
