"""How sparse a model is to be at a step: rising along a cubic, or constant.

The cubic is Zhu & Gupta, "To prune, or not to prune" (ICLR workshop 2018), equation 1: fast while there is much that
nobody misses, slow towards the end. DPF takes the same one (Lin et al. 2020, section 4).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """Sparsity `initial` up to step `begin`, `final` from step `end` on, along a cubic between them."""

    initial: float
    final: float
    begin: int
    end: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.initial <= self.final < 1.0:
            raise ValueError(
                f"sparsity: from {self.initial} to {self.final} must rise within 0 and 1, 1 excluded; 0 to 0.9 is usual"
            )
        if not 0 <= self.begin <= self.end:
            raise ValueError(f"schedule: steps {self.begin} to {self.end} must not go back and start at 0 or later")


def constant(sparsity: float) -> Schedule:
    """The same sparsity at every step."""
    return Schedule(sparsity, sparsity, 0, 0)


def sparsity_at(schedule: Schedule, step: int) -> float:
    """The sparsity due at a step; never less than at the step before, and exactly `final` from `end` on."""
    if step >= schedule.end:
        return schedule.final
    if step <= schedule.begin:
        return schedule.initial
    left = 1.0 - (step - schedule.begin) / (schedule.end - schedule.begin)
    # Products, not a power: each rounds to nearest and so keeps the order of its operands.
    return schedule.final - (schedule.final - schedule.initial) * (left * left * left)
