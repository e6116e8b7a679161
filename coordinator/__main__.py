"""`python -m coordinator` is the fleet-coordinator command."""

import sys

from coordinator.cli import main

sys.exit(main())
