"""`python -m export` is `fleet-export`."""

import sys

from export.cli import main

sys.exit(main())
