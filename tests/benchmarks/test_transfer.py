"""The transfer benchmark counts real bytes, and they are few beyond the payload."""

import pytest

from benchmarks.transfer import Run, measure, row_of
from tests.conftest import require_broker


def test_a_row_is_what_the_rounds_between_two_runs_took() -> None:
    row = row_of(Run(up=500, down=700, update=100, model=100), Run(up=750, down=960, update=100, model=100), 2)
    assert row == {"update_bytes": 100, "model_bytes": 100, "tcp_up": 125, "tcp_down": 130, "overhead": 0.275}


@pytest.mark.real
def test_rounds_of_100_kb_each_way_cost_at_most_3_percent_more_on_the_line() -> None:
    require_broker("mosquitto")
    row = row_of(measure(100_000, 1), measure(100_000, 3), 2)
    assert row["update_bytes"] >= row["model_bytes"] == 100_000
    assert 0 < row["overhead"] < 0.03
