"""Rounds of a fleet without a hub: all members are asked, and a version is made of all their models.

Who has left is not waited for, and a newcomer that has not begun yet has nothing to send; so what a round waits for is
worked out anew whenever its table is asked.
"""

from collections.abc import Set
from dataclasses import replace

from coordinator.round import Round


def waiting_for(state: Round, members: Set[str], collected: Set[str], minimum: int) -> Round:
    """The round, as these members are to close it. collected: those of them that have a model to send. minimum: that is
    enough at the deadline."""
    done = frozenset(state.devices("done"))
    out = frozenset(state.devices("out"))
    goal = max(1, len((collected - out) | done))
    return replace(state, goal=goal, minimum=min(minimum, goal), wanted=max(goal, len(members | done)))
