"""The fleet-emulate command with the fake parts: `python -m tests.devices.fake_demo demo ...`."""

import sys
from unittest.mock import patch

from devices import cli
from tests.devices.fake_parts import FAKE

with patch("devices.demo.Parts", lambda: FAKE):
    sys.exit(cli.main())
