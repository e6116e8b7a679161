"""Prices from probes: what each unit of work costs, so that the probes' times come out as measured."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edge_agent.runtimes.work import Work

Matrix = npt.NDArray[np.float64]
# Prices settle to a thousandth well before.
SWEEPS = 500
# Fits of which each weighs with the last one's predictions; these settle sooner still.
FITS = 5
# A probe predicted at less than this share of its time would outweigh all others.
LEAST_SHARE = 0.1


def fit(works: Sequence[Work], seconds: Sequence[float]) -> tuple[Mapping[str, float], float]:
    """Seconds a unit, none below 0, of which the sum over each probe's work is nearest to its time; and how near.

    Least squares of relative errors, so that a probe of a microsecond counts as much as one of a millisecond: relative
    to the geometric mean of predicted and measured, by fits that each weigh with the predictions of the one before.
    Relative to the measured alone, half of it would be a smaller error than twice. The second value is the median
    relative error. A unit in no probe has no price.
    """
    units = sorted({unit for one in works for unit in one})
    shares = np.array([[one.get(unit, 0.0) for unit in units] for one in works]) / np.array(seconds)[:, None]
    prices = _nonnegative(shares, np.ones(len(shares)))
    for _ in range(FITS):
        prices = _nonnegative(shares, 1 / np.sqrt(np.maximum(shares @ prices, LEAST_SHARE)))
    error = float(np.median(np.abs(shares @ prices - 1)))
    return dict(zip(units, prices.tolist(), strict=True)), error


def _nonnegative(shares: Matrix, weights: Matrix) -> Matrix:
    """The x >= 0 of least |weights * (shares @ x - 1)|, by coordinate descent."""
    weighted = shares * weights[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    columns = weighted / scale
    x = np.zeros(columns.shape[1])
    rest = weights.copy()
    for _ in range(SWEEPS):
        for i, column in enumerate(columns.T):
            moved = max(-x[i], float(column @ rest))
            x[i] += moved
            rest -= moved * column
    solution: Matrix = x / scale
    return solution
