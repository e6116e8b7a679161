#!/bin/sh
# Tests the Debian packages in containers, from installation to purge; --help has the options. As root, minutes.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x $python ] || python=python3
exec $python -m tests.debian "$@"
