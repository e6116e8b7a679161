"""Training in a child process of lower priority, which may be killed at any time and costs steps since a checkpoint.

The agent's own process never loads a runtime or data. A child that dies, or hangs, is followed by another, which goes
on from the last checkpoint; after MOST_DEATHS in one task that is given back. The update is packed here, once, so that
whatever happens to the child there are no two of one name.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge_agent import child_wire as wire
from edge_agent.assets import Assets
from edge_agent.child_process import ChildProcess, Ended, Launch
from edge_agent.progress import Because, clear
from edge_agent.runtimes.backends import Selection
from edge_agent.trainer import Broken, Died, Facts, Finished, Leg, News, Proven, Ready, Refused, Unusable
from edge_agent.training import Trained
from protocol.errors import ConfigurationError
from protocol.failpoints import reached
from protocol.layout import layout_of
from protocol.messages import Task

log = logging.getLogger("edge-agent")

# Of one task. A device that is short of memory for a moment gets over it; one that always is must not try for ever.
MOST_DEATHS = 3
# Importing a runtime takes seconds on the slowest boards.
START_S = 120.0
# Reading data, opening graphs and the first step say nothing until they are done.
PREPARE_S = 1800.0
# From then on the child speaks every ten seconds, or after each step. One that takes this long, and so many times as
# long as a step so far, hangs.
SILENCE_S, SILENCE_STEPS = 120.0, 20.0
# A step that takes longer than this must not hold up the task after a withdrawal.
DROP_S = 2.0
# For a last checkpoint, when the agent ends; a service manager waits longer.
CLOSE_S = 3.0
# The same, when the device may not train for a while: a slow step is waited for rather than thrown away.
PAUSE_S = 30.0


@dataclass(slots=True)
class _InHand:
    """The task that the child trains, for the child after it. trial_steps: until they are done. sizes: how many values
    its model has, and how many of them are trained, once they are asked for."""

    task: Task
    selected: Selection
    trial_steps: int = 0
    deaths: int = 0
    done: int = 0
    finished: bool = False
    sizes: tuple[int, int] | None = None
    on_leg: bool = False


class ChildTrainer:
    """A `Trainer` whose steps are taken by a child process, started when there is something to do.

    launch: starts one. clock: in seconds, for how long it is silent.
    """

    def __init__(self, assets: Assets, launch: Launch, clock: Callable[[], float] = time.monotonic) -> None:
        self._assets, self._launch, self._clock = assets, launch, clock
        self._child: ChildProcess | None = None
        self._leaving: list[ChildProcess] = []
        # What one that leaves writes last is of a task that is over.
        self._sweep = False
        self._facts: Facts | None = None
        self._hand: _InHand | None = None
        # How many tasks it has yet to say of that it let go of them. What it says until then is of those.
        self._dropping = 0
        self._deadline = float("inf")

    @property
    def done(self) -> int:
        """See `Trainer.done`."""
        return 0 if self._hand is None else self._hand.done

    def facts(self) -> Facts:
        """See `Trainer.facts`. Waits for the first child's first word; what it said holds until another says more."""
        if self._facts is None:
            child = self._started()
            end = self._clock() + START_S
            while self._facts is None:
                heard = child.next(max(0.0, end - self._clock()))
                if isinstance(heard, wire.Awake):
                    self._take_facts(heard)
                    continue
                why = heard.cause if isinstance(heard, Ended) else f"it says nothing for {START_S:.0f} s"
                child.kill(why)
                child.close()
                self._child = None
                raise ConfigurationError(
                    f'training.process: the training process cannot be started: {why}; see its log above, or set "same"'
                )
        return self._facts

    def begin(self, task: Task, selected: Selection, trial_steps: int = 0) -> None:
        """See `Trainer.begin`. A death in a trial is the agent's to count, on disk, before there is another."""
        self._hand = _InHand(task, selected, trial_steps)
        self._send_begin()

    def again(self, leg: Leg) -> None:
        """See `Trainer.again`."""
        assert self._hand is not None, "a leg of no task"
        self._hand.finished, self._hand.done, self._hand.on_leg = False, 0, True
        if self._child is None:
            # It ended while there was nothing to do. The next one says when it is ready.
            self._send_begin()
            return
        none = np.zeros(0, np.float32)
        momentum = none if leg.momentum is None else leg.momentum
        self._child.give(leg.model, momentum)
        self._child.send(wire.Leg(leg.steps, leg.seed, len(leg.model), len(momentum)))
        self._deadline = self._clock() + PREPARE_S

    def work(self, budget_s: float) -> tuple[News, ...]:
        """See `Trainer.work`. Never waits."""
        self._leaving = [child for child in self._leaving if not child.gone(self._clock())]
        if self._sweep and not self._leaving:
            self._sweep = False
            clear(self._assets.blobs)
        found: list[News] = []
        while self._child is not None and (heard := self._child.next(0.0)) is not None:
            news = self._mourn(heard) if isinstance(heard, Ended) else self._take(heard)
            if news is not None:
                found.append(news)
        if self._child is not None and self._clock() >= self._deadline:
            self._child.kill("it hung" if not self._dropping else "a step took too long to wait for")
            self._deadline = float("inf")
        return tuple(found)

    def wait_s(self) -> float:
        """See `Trainer.wait_s`. What the child says wakes the agent by itself."""
        due = [self._deadline, *(child.leave_by for child in self._leaving)]
        return max(0.0, min(due) - self._clock())

    def keep(self, because: Because) -> None:
        """See `Trainer.keep`."""
        if self._child is not None:
            self._child.send(wire.Keep(because))

    def drop(self) -> None:
        """See `Trainer.drop`."""
        self._hand = None
        if self._child is None:
            self._sweep = True
            return
        self._dropping += 1
        self._deadline = self._clock() + DROP_S
        self._child.send(wire.Drop())

    def pause(self) -> None:
        """See `Trainer.pause`."""
        self.keep("pausing")
        self._hand = None
        self._leave(PAUSE_S)

    def unload(self) -> None:
        """See `Trainer.unload`: the child ends, and its memory is the system's again."""
        self._leave(CLOSE_S)

    def _leave(self, within_s: float) -> None:
        if self._child is not None:
            self._child.leave(self._clock() + within_s)
            self._leaving.append(self._child)
        self._child, self._dropping, self._deadline = None, 0, float("inf")

    def close(self) -> None:
        """See `Trainer.close`."""
        self.unload()
        for child in self._leaving:
            child.join(CLOSE_S)
        self._leaving.clear()

    def _started(self) -> ChildProcess:
        if self._child is None:
            # Its last checkpoint is what the next one goes on from.
            for leaving in self._leaving:
                leaving.join(CLOSE_S)
            self._leaving.clear()
            if self._sweep:
                self._sweep = False
                clear(self._assets.blobs)
            self._child = self._launch()
            self._dropping = 0
        return self._child

    def _send_begin(self) -> None:
        assert self._hand is not None
        hand = self._hand
        hand.on_leg = False
        self._started().send(wire.Begin(hand.task, hand.selected.name, hand.selected.reason, hand.trial_steps))
        self._deadline = self._clock() + (DROP_S if self._dropping else PREPARE_S)

    def _take_facts(self, said: wire.Awake) -> None:
        self._facts = Facts(said.runtime, said.refused)

    def _take(self, said: wire.Order | wire.Answer) -> News | None:
        """What a word of the child's is to the agent."""
        if isinstance(said, wire.Awake):
            self._take_facts(said)
        elif isinstance(said, wire.Dropped):
            self._dropping = max(0, self._dropping - 1)
            if self._dropping:
                self._deadline = self._clock() + DROP_S
            else:
                self._deadline = float("inf") if self._hand is None else self._clock() + PREPARE_S
        elif self._hand is None or self._hand.finished or self._dropping:
            pass
        elif isinstance(said, Ready):
            self._hand.done = said.done
            self._rest(self._hand)
            return said
        elif isinstance(said, Proven):
            self._hand.trial_steps = 0
            self._rest(self._hand)
            return said
        elif isinstance(said, wire.Stepped):
            self._hand.done = said.done
            each_s = said.seconds / max(1, said.done)
            self._deadline = self._clock() + max(SILENCE_S, SILENCE_STEPS * each_s)
            if said.kept:
                reached("agent.checkpoint-written")
        elif isinstance(said, wire.Trained):
            return self._take_result(said, self._hand)
        elif isinstance(said, Unusable | Refused | Broken):
            self._deadline = float("inf")
            return said
        return None

    def _rest(self, hand: _InHand) -> None:
        """Of a task with `until`, once it is tried: nothing is to be heard until there is a leg."""
        if hand.task.until is not None and not hand.trial_steps and not hand.on_leg:
            self._deadline = float("inf")

    def _take_result(self, said: wire.Trained, hand: _InHand) -> News | None:
        assert self._child is not None
        if hand.sizes is None:
            manifest = self._assets.manifest(hand.task)
            hand.sizes = manifest.total, layout_of(manifest, self._assets.variant_of(hand.task)).n_parameters
        total, trained = hand.sizes
        if said.values != total or not {said.gradient, said.momentum} <= {0, trained}:
            self._child.kill(f"its result has {said.values} values where the model has {total}")
            return None
        values = self._child.result(said.values + said.gradient + said.momentum)
        if values is None:
            self._child.kill("its result is not there")
            return None
        hand.finished, hand.on_leg, self._deadline = True, False, float("inf")
        if hand.task.until is not None:
            # Of one leg.
            hand.deaths = 0
        model, gradient, momentum = np.split(values, np.cumsum([said.values, said.gradient]))
        result = Trained(
            *(model, said.loss, said.steps, said.seconds),
            gradient=gradient if said.gradient else None,
            momentum=momentum if said.momentum else None,
        )
        return Finished(result, said.peak_mib, said.held_out, said.own)

    def _mourn(self, ended: Ended) -> News | None:
        """A child that ended without being asked to: the task goes on with another, so many times."""
        assert self._child is not None
        self._child.close()
        self._child, hand = None, self._hand
        if self._dropping:
            self._dropping, self._deadline = 0, float("inf")
            # Whatever it was about to write for the task before.
            clear(self._assets.blobs)
            if hand is not None:
                self._send_begin()
            return None
        self._deadline = float("inf")
        if hand is None or hand.finished:
            log.warning("the training process ended: %s", ended.cause)
            return None
        if hand.trial_steps:
            log.warning("task=%s the training process ended in its bundle's trial: %s", hand.task.name, ended.cause)
            self._hand = None
            return Died(ended.cause)
        hand.deaths += 1
        if hand.deaths < MOST_DEATHS:
            log.warning(
                "task=%s the training process ended: %s; another goes on from the last checkpoint deaths=%d of=%d",
                *(hand.task.name, ended.cause, hand.deaths, MOST_DEATHS),
            )
            self._send_begin()
            return None
        self._hand = None
        return Broken(ended.reason, f"the training process ended {hand.deaths} times, at last: {ended.cause}")
