"""The benchmark of a fleet under a mask: what its rows hold, and what its figure picks out."""

import numpy as np

from benchmarks.federation import Measured
from benchmarks.fleet_mask import fleets, row_of
from benchmarks.mask_figure import History
from devices.facts import RoundCommitted
from sparse.codecs import parse_codec


def measured(accuracy: float) -> Measured:
    rounds = tuple(RoundCommitted(i, 2, float(i), 200 * i, 400, i, accuracy, 1.0, 0.1) for i in (1, 2, 3))
    return Measured(rounds, (), 50.0, 90.0, 80.0, "mosquitto")


def test_a_row_has_the_mean_and_the_spread_of_its_seeds() -> None:
    fleet = fleets(0.9)[1]
    row = row_of(fleet, 2, [measured(0.9), measured(0.8)])
    told = (row["fleet"], row["sparsity"], row["codec"], row["seeds"], row["rounds"])
    assert told == ("mask", 0.9, "mask/float16", 2, 3)
    assert abs(row["accuracy_mean"] - 0.85) < 1e-9
    assert abs(row["accuracy_sd"] - 0.005**0.5) < 1e-9
    assert (row["bytes_up_per_device_round"], row["bytes_up_last_round"]) == (200, 300)
    assert row_of(fleet, 2, [measured(0.9)])["accuracy_sd"] == 0.0


def test_the_fleets_differ_by_mask_and_reports_alone() -> None:
    dense, mask, silent = fleets(0.9)
    assert dense.section == ""
    assert "final = 0.9" in mask.section
    assert (mask.report_every, silent.report_every) == (2, 0)
    assert {parse_codec(fleet.codec).values for fleet in (dense, mask, silent)} == {"float16"}


def test_the_figure_shows_the_weight_that_came_back_after_moving_most() -> None:
    masks = np.ones((5, 4), np.bool_)
    masks[2, 0] = False  # out for a round
    masks[1:3, 1] = False  # out for two
    masks[3:, 2] = False  # never back
    dense = np.zeros((5, 4), np.float32)
    dense[:, 0] = [1, 1, 1, 1.5, 2]
    dense[:, 1] = [1, 1, 2, 3, 3]
    dense[:, 2] = [1, 1, 1, 9, 9]
    assert History(dense, masks).returned() == 1
    assert History(dense, masks).changed.tolist() == [0.0, 0.0, 2 / 3, 0.0]
    assert History(dense[:, 2:], masks[:, 2:]).returned() is None
