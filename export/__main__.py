"""`python -m export` is `fleet-export`."""

import sys

from export.watch import main

sys.exit(main())
