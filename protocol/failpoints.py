"""Failpoints: the durable steps by name, at each of which a test can have the process killed; off in daily work.

The environment variable SPARSEFLEET_FAILPOINT=NAME[:NTH] makes a daemon kill itself by SIGKILL when it reaches the step
for the NTH time (docs/guarantees.md says what is proven with it); a simulator installs a function of its own.
"""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from protocol.errors import ConfigurationError

VARIABLE = "SPARSEFLEET_FAILPOINT"

# In the order of a round. A name in -ing lies inside the transaction, before its commit; one in -ed or -en after it.
Failpoint = Literal[
    "agent.task-remembered",
    "agent.chunk-written",
    "agent.transfer-checkpointed",
    "agent.blob-finished",
    "agent.trial-begun",
    "agent.trial-committing",
    "agent.trial-committed",
    "agent.trial-failed",
    "agent.checkpoint-written",
    "agent.gossip-keeping",
    "agent.gossip-kept",
    "agent.gossip-said",
    "agent.payload-put",
    "agent.update-keeping",
    "agent.update-kept",
    "agent.offer-sent",
    "agent.chunk-sent",
    "agent.residual-settling",
    "agent.receipt-settling",
    "agent.receipt-settled",
    "agent.task-forgotten",
    "coordinator.council-keeping",
    "coordinator.council-kept",
    "coordinator.round-opening",
    "coordinator.round-opened",
    "coordinator.task-sent",
    "coordinator.chunk-written",
    "coordinator.transfer-checkpointed",
    "coordinator.blob-finished",
    "coordinator.update-accepting",
    "coordinator.update-accepted",
    "coordinator.receipt-sent",
    "coordinator.round-folded",
    "coordinator.model-put",
    "coordinator.round-committing",
    "coordinator.round-committed",
    "coordinator.swept",
]
FAILPOINTS: tuple[Failpoint, ...] = get_args(Failpoint)

_action: Callable[[Failpoint], None] | None = None


def reached(name: Failpoint) -> None:
    """Marks a durable step. Nothing happens unless something was installed."""
    if _action is not None:
        _action(name)


def install(action: Callable[[Failpoint], None] | None) -> None:
    """Has `action` called at every step from now on, in place of what was there; None turns failpoints off."""
    global _action
    _action = action


def install_from(environment: Mapping[str, str]) -> None:
    """What a daemon does at its start. Raises ConfigurationError for a step that is not known."""
    wanted = environment.get(VARIABLE)
    install(_killer(wanted) if wanted else None)


def _killer(wanted: str) -> Callable[[Failpoint], None]:
    name, counted, number = wanted.partition(":")
    if name not in FAILPOINTS:
        raise ConfigurationError(f"{VARIABLE}: {name!r} is no failpoint; known: {', '.join(FAILPOINTS)}")
    left = 1 if not counted else int(number) if number.isdecimal() else 0
    if left < 1:
        raise ConfigurationError(f"{VARIABLE}: {number!r} is no count; NAME:NTH has NTH from 1 on")

    def kill(at: Failpoint) -> None:
        nonlocal left
        if at == name:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return kill
