"""Learning a mask over frozen weights on a device: any engine and optimiser, on scores in place of weights."""

import numpy as np

from edge_agent.runtimes.engine import Batch, Engine, Evaluation, StepResult, Vector
from edge_agent.training import Trained
from protocol.layout import maskable_layout, put, take
from protocol.manifest import Manifest
from protocol.messages import Task
from sparse.codecs import encode_ballot
from sparse.masks import masked
from sparse.votes import chances_of, drawn, kept_of, scores_of, straight_through

# Beside the task's seed, which orders the examples.
_BALLOT = 1


class ScoreEngine:
    """An engine whose model is scores, float32[total], at the places of the weights that may be masked; 0 elsewhere.

    A step is taken by `engine` at the frozen weights under the likeliest mask of the scores (sparse/votes.py). weights:
    float32[total], which nothing here changes. The gradient is zero where there are no scores, and so are the buffers.
    """

    def __init__(self, engine: Engine, manifest: Manifest, weights: Vector) -> None:
        self._engine, self._parts = engine, maskable_layout(manifest).parameters
        self._frozen = take(weights, self._parts).copy()
        # One array for good, which the engine may stay bound to.
        self._seen = weights.copy()
        self._gradient = np.zeros(manifest.parameters, np.float32)
        self._buffers = np.zeros(manifest.buffers, np.float32)

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return self._engine.name

    def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
        """See `Engine.step`."""
        chances = self._show(model)
        found = self._engine.step(self._seen, batch, seed)
        put(self._gradient, self._parts, straight_through(take(found.gradient, self._parts), self._frozen, chances))
        return StepResult(found.loss, self._gradient, self._buffers, found.metrics)

    def evaluate(self, model: Vector, batch: Batch) -> Evaluation:
        """See `Engine.evaluate`, under the likeliest mask."""
        self._show(model)
        return self._engine.evaluate(self._seen, batch)

    def _show(self, model: Vector) -> Vector:
        """Brings what the engine sees up to the scores; returns their chances."""
        chances = chances_of(take(model, self._parts))
        put(self._seen, self._parts, masked(self._frozen, kept_of(chances)))
        return chances


def first_scores(manifest: Manifest, chances: Vector) -> Vector:
    """float32[total] to begin with, of the fleet's chances: float32[d]."""
    scores = np.zeros(manifest.total, np.float32)
    put(scores, maskable_layout(manifest).parameters, scores_of(chances))
    return scores


def under_likeliest(manifest: Manifest, weights: Vector, chances: Vector) -> Vector:
    """The model that the fleet's chances make of the weights, as the coordinator evaluates it: float32[total]."""
    parts, model = maskable_layout(manifest).parameters, weights.copy()
    put(model, parts, masked(take(weights, parts), kept_of(chances)))
    return model


def ballot_of(manifest: Manifest, task: Task, trained: Trained) -> bytes:
    """The update: a mask that is drawn from the scores that training left. The same task gives the same bits."""
    layout = maskable_layout(manifest)
    chances = chances_of(take(trained.model, layout.parameters))
    return encode_ballot(drawn(chances, np.random.default_rng([task.seed, _BALLOT])), layout.digest)
