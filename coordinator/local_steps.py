"""How many local steps a round has: the same in all, one until a switch round, or as many as a budget of bytes asks.

Local SGD communicates every H steps; post-local SGD (Lin, Stich, Patel, Jaggi, "Don't Use Large Mini-Batches, Use Local
SGD", ICLR 2020, section 3) has H = 1 until a switch, which the paper puts at the first decay of the learning rate, and
H from then on.

With a budget H is what the bytes that are left allow, so that all steps are done when they are used up:

    H = ceil(steps left / rounds that can be paid for),   from 1 to local_steps

A round is paid for at the mean price of those before. Lost messages and devices that come and go raise the price, and
so H. The first round, whose price nobody knows, has one step. It is the inverse of adaptive schemes by loss (Wang and
Joshi 2019, AdaComm): those ask how often is needed, this how often can be paid for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """steps: local steps of a device in the whole run. mib: that the whole fleet may send and receive for them; 0 is
    for no budget, and then local_steps says how many a round has."""

    steps: int = 0
    mib: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps: {self.steps} must be at least 0")
        if not (math.isfinite(self.mib) and self.mib >= 0.0):
            raise ValueError(f"mib: {self.mib} must be a finite number of at least 0; 0 is for no budget")
        if (self.steps > 0) != (self.mib > 0.0):
            raise ValueError("steps: give both steps and mib, or neither: so many steps for so many MiB")

    @property
    def bytes(self) -> int:
        return int(self.mib * (1 << 20))


@dataclass(frozen=True, slots=True)
class StepRule:
    """local_steps: H; with a budget the most that a round may have. post_local: the round from which H holds, one step
    before it; 0 is for none. rounds: of the run."""

    local_steps: int
    post_local: int
    budget: BudgetSettings
    rounds: int


def steps_of(rule: StepRule, number: int, spent: Sequence[int]) -> int:
    """The local steps of a round, 1 to `rounds`. spent: the bytes of each round before it, of which `steps_of` said as
    many steps; only a budget looks at them."""
    if not rule.budget.steps:
        return rule.local_steps if number >= rule.post_local else 1
    return _plan(rule, spent[: number - 1])[0]


def steps_left(rule: StepRule, spent: Sequence[int]) -> int:
    """How many steps of a budget are not done after the rounds that `spent` has the bytes of."""
    return _plan(rule, spent)[1]


def _plan(rule: StepRule, spent: Sequence[int]) -> tuple[int, int]:
    """The next round's steps, and those that are left, by going through all rounds so far."""
    left, used, steps = rule.budget.steps, 0, 1
    for done, cost in enumerate(spent, 1):
        left, used = left - steps, used + cost
        price = max(1.0, used / done)
        rounds = max(1, min(rule.rounds - done, int((rule.budget.bytes - used) / price)))
        steps = max(1, min(rule.local_steps, math.ceil(max(0, left) / rounds)))
    return steps, max(0, left)
