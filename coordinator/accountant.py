"""What the folds gave away of a device so far, as epsilon at a delta: by dp-accounting, which is loaded when asked for.

It counts by Renyi differential privacy (Mironov 2017), an upper bound that is some 5 to 10 % above the exact epsilon
here; privacy loss distributions would be exact, and take seconds to half a minute after every round.
"""

import math
from collections.abc import Iterable, Mapping

from protocol.errors import ConfigurationError

_INSTALL = "privacy.noise_multiplier: needs dp-accounting to say what it protects; pip install 'sparsefleet[privacy]'"


def check_installed() -> None:
    """Raises ConfigurationError where no accountant is installed."""
    try:
        import dp_accounting.rdp  # noqa: F401
    except ImportError:
        raise ConfigurationError(_INSTALL) from None


def epsilon_of(participations: Iterable[Mapping[float, int]], delta: float) -> float | None:
    """The most that any device gave away; None where something of one reached the model without noise.

    participations: of each device, how often an update of it was folded under which noise multiplier, where two in one
    fold count as one of half the multiplier (their sum may change by twice the clipping norm). Multiplier 0 is for no
    noise.
    """
    worst: Mapping[float, int] = {}
    for found in participations:
        if _spent(found) > _spent(worst):
            worst = found
    if not worst:
        return 0.0
    if _spent(worst) == math.inf:
        return None
    return _epsilon(worst, delta)


def _spent(participations: Mapping[float, int]) -> float:
    """Orders compositions of Gaussian mechanisms: they come to one of multiplier 1 / sqrt(this)."""
    return sum(count / multiplier**2 if multiplier > 0.0 else math.inf for multiplier, count in participations.items())


def _epsilon(participations: Mapping[float, int], delta: float) -> float:
    check_installed()
    from dp_accounting import GaussianDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    for multiplier, count in sorted(participations.items()):
        accountant.compose(GaussianDpEvent(multiplier), count)
    return float(accountant.get_epsilon(delta))
