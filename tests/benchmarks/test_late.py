"""The benchmark of late updates: one device that is ten times slower costs the others no time."""

import json

import pytest

from benchmarks import late


def test_the_modes_wait_for_the_slow_device_or_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert late.main(["--quick", "--json"]) == 0
    rows = {row["mode"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    waits = rows["wait for all"]["seconds_a_version"]
    assert waits >= late.SLOW_S
    for mode in ("over-select", "late", "buffered"):
        assert rows[mode]["seconds_a_version"] < waits / 4
    assert rows["wait for all"]["late"] == 0
    assert rows["buffered"]["late"] > 0
