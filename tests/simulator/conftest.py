"""What tests of fleets in one process begin with and leave behind."""

from collections.abc import Iterator

import pytest

from protocol import failpoints
from tests.simulator.gossip_hall import Hall


@pytest.fixture
def halls() -> Iterator[list[Hall]]:
    """Whatever a test puts in is ended, and no failpoint is left."""
    made: list[Hall] = []
    yield made
    failpoints.install(None)
    for hall in made:
        hall.end()
