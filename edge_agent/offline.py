"""`edge-agent train`: the same training code on this machine, without a fleet."""

import argparse
import json
import resource
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import checkpoint
from edge_agent.checkpoint import run_of
from edge_agent.data import Dataset, DataSettings, load
from edge_agent.flat_tensors import flat_tensors
from edge_agent.runtimes.backends import choose
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import initial_model, seen_by
from edge_agent.static_mask import mask_of, rule_of
from edge_agent.training import LocalTraining, Recipe, TrainingState
from protocol.bundle import Bundle, open_bundle
from protocol.errors import ConfigurationError, NothingToDoError
from protocol.layout import layout_of
from protocol.manifest import Manifest
from sparse.dynamic import SparseRule
from sparse.masks import Mask, sparsity_of
from sparse.tensors import prunable_mask


def train(options: argparse.Namespace) -> int:
    """Trains and prints loss per step, milliseconds per step and peak memory."""
    started = time.monotonic()
    recipe = _recipe(options)
    whole = open_bundle(options.bundle)
    bundle, model = seen_by(whole, options.variant), initial_model(whole, options.variant)
    dataset = load(_data(options), bundle.manifest)
    choice = choose(bundle, options.backend, options.threads, options.variant)
    mask = mask_of(bundle, options.variant) if recipe.sparse is None else None
    if mask is not None:
        recipe = replace(recipe, sparse=rule_of(bundle, mask, options.variant))
    keeper = _Keeper(options, bundle, choice.engine.name, dataset, recipe)
    resume = keeper.found(layout_of(bundle.manifest, options.variant).n_parameters)
    training = LocalTraining(
        choice.engine,
        bundle.manifest,
        dataset,
        recipe,
        model,
        options.variant,
        mask=mask,
        resume=resume,
    )
    if not options.json:
        print(f"backend {choice.engine.name}: {choice.reason}; variant {options.variant}; {len(dataset)} examples")
        if dataset.left_out.count:
            print(f"left out: {dataset.left_out}")
        if resume is not None:
            print(f"going on from {options.checkpoint}, after step {resume.done}")
    timed = _run(training, keeper, started, quiet=options.json)
    facts = {
        "backend": choice.engine.name,
        "reason": choice.reason,
        "variant": options.variant,
        "trained": layout_of(bundle.manifest, options.variant).n_parameters,
        "examples": len(dataset),
        "left_out": dataset.left_out.count,
        "steps": training.done,
        "loss": timed.losses,
        "ms_per_step": round(float(np.median(timed.milliseconds)), 3),
        # Of the processor alone: what else runs on this machine is not in it.
        "cpu_ms_per_step": round(float(np.median(timed.busy_ms)), 3),
        "mean_ms_per_step": round(timed.mean_ms, 3),
        "first_step_s": round(timed.first_step_s, 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        **_sparsity(training.result().mask, bundle.manifest, options.variant),
    }
    if options.json:
        print(json.dumps(facts))
        return 0
    if recipe.sparse is not None:
        print(
            f"{recipe.sparse.method}: {facts['kept']:,} of {facts['prunable']:,} prunable values kept, "
            f"{facts['sparsity']:.2%} sparse; of all parameters {facts['sparsity_of_all']:.2%}"
        )
    print(f"{facts['ms_per_step']} ms per step (median), peak memory {facts['peak_mib']} MiB", file=sys.stdout)
    return 0


@dataclass
class _Timed:
    """What steps took, in milliseconds: each by the clock and of the processor's time, and in the mean."""

    losses: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    busy_ms: list[float] = field(default_factory=list)
    first_step_s: float = 0.0
    mean_ms: float = 0.0


def _run(training: LocalTraining, keeper: "_Keeper", started: float, *, quiet: bool) -> _Timed:
    """All steps that are left."""
    timed, since = _Timed(), started
    while not training.finished:
        busy_s = time.process_time()
        step = training.step()
        timed.busy_ms.append((time.process_time() - busy_s) * 1e3)
        if not timed.losses:
            since = time.monotonic()
            timed.first_step_s = since - started
        timed.losses.append(step.loss)
        timed.milliseconds.append(step.seconds * 1e3)
        if not quiet:
            print(f"step {step.number:4d}  loss {step.loss:.4f}  {timed.milliseconds[-1]:.1f} ms", flush=True)
        keeper.keep(training)
    after_first = len(timed.losses) - 1
    # Without the first, which warms up, and by the clock from its end on: a process that is held back by a quota of
    # processor time is so wherever it is, between steps too.
    timed.mean_ms = (time.monotonic() - since) * 1e3 / after_first if after_first > 0 else sum(timed.milliseconds)
    return timed


class _Keeper:
    """Reads the checkpoint before training and writes it every so many steps and at the end, where one is wanted."""

    def __init__(
        self, options: argparse.Namespace, bundle: Bundle, backend: str, dataset: Dataset, recipe: Recipe
    ) -> None:
        if options.checkpoint_every < 1:
            raise ConfigurationError(f"--checkpoint-every: {options.checkpoint_every} must be at least 1")
        self._path: Path | None = options.checkpoint
        self._every, self._total, self._steps = options.checkpoint_every, bundle.manifest.total, recipe.steps
        if self._path is not None:
            self._run = run_of(bundle, options.variant, backend, dataset, recipe)

    def found(self, parameters: int) -> TrainingState | None:
        """What the checkpoint holds, if it is there. Raises NothingToDoError if all steps are done."""
        if self._path is None or not self._path.exists():
            return None
        state = checkpoint.load(self._path, self._run, self._total, parameters)
        if state.done >= self._steps:
            raise NothingToDoError(f"{self._path}: is after step {state.done}; ask for more --steps than {self._steps}")
        return state

    def keep(self, training: LocalTraining) -> None:
        if self._path is not None and (training.finished or training.done % self._every == 0):
            checkpoint.save(self._path, self._run, training.state())


def _sparsity(mask: Mask | None, manifest: Manifest, variant: str) -> dict[str, Any]:
    """What a mask leaves, by both denominators: prunable parameters, and all that are trained."""
    if mask is None:
        return {}
    prunable = prunable_mask(flat_tensors(manifest, variant))
    return {
        "kept": int(np.count_nonzero(mask & prunable)),
        "prunable": int(np.count_nonzero(prunable)),
        "sparsity": sparsity_of(mask, prunable),
        "sparsity_of_all": sparsity_of(mask, np.ones_like(mask)),
    }


def _recipe(options: argparse.Namespace) -> Recipe:
    if not 1 <= options.steps <= 10_000_000:
        raise ConfigurationError(f"--steps: {options.steps} is outside 1..10000000")
    if options.seed < 0:
        raise ConfigurationError(f"--seed: {options.seed} must be at least 0")
    if not 1 <= options.batch_size <= 65536:
        raise ConfigurationError(f"--batch-size: {options.batch_size} is outside 1..65536")
    if not 0 < options.learning_rate < float("inf"):
        raise ConfigurationError(f"--learning-rate: {options.learning_rate} must be positive and finite")
    momentum = options.momentum if options.optimizer == "sgd" else 0.0
    try:
        optimizer = OptimizerSettings(name=options.optimizer, momentum=momentum, weight_decay=options.weight_decay)
    except ValueError as error:
        raise ConfigurationError(f"--{error}") from None
    return Recipe(
        steps=options.steps,
        epochs=0,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        optimizer=optimizer,
        seed=options.seed,
        decay_at=_decays(options),
        sparse=_rule(options),
    )


def _decays(options: argparse.Namespace) -> tuple[int, ...]:
    try:
        steps = tuple(int(part) for part in options.decay_at.split(",") if part)
    except ValueError:
        raise ConfigurationError(f"--decay-at: {options.decay_at!r} must be steps, as in 1000,1500") from None
    if any(step < 1 for step in steps):
        raise ConfigurationError(f"--decay-at: {options.decay_at} must be steps from 1 on")
    return steps


def _rule(options: argparse.Namespace) -> SparseRule | None:
    given = {
        "method": options.method,
        "distribution": options.distribution,
        "refresh_every": options.refresh_every,
        "until": options.sparsity_until,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if options.sparsity is None:
        for key in given:
            raise ConfigurationError(f"--{_option(key)}: says nothing without --sparsity; give that too, as 0.9")
        return None
    method = given.setdefault("method", "dpf")
    if method in ("rigl", "set"):
        given.setdefault("distribution", "erk")
    # The published recipe: the mask rests after the second of two decays of the learning rate, at 3/4 of the steps.
    until = given.setdefault("until", 0 if method == "static" else options.steps * 3 // 4)
    if until > options.steps:
        raise ConfigurationError(
            f"--sparsity-until: {until} is after the last of {options.steps} steps; {options.steps} at most"
        )
    try:
        return SparseRule(sparsity=options.sparsity, seed=options.seed, **given)
    except ValueError as error:
        key, _, said = str(error).partition(": ")
        raise ConfigurationError(f"--{_option(key)}: {said}") from None


def _option(key: str) -> str:
    """What the option of a rule's field is called."""
    return {"until": "sparsity-until"}.get(key, key.replace("_", "-"))


def _data(options: argparse.Namespace) -> DataSettings:
    inputs = tuple(options.inputs.split(","))
    path = Path(options.data)
    # A colon can be part of a path; what exists on disk is one.
    if ":" in options.data and not path.exists():
        return DataSettings(source=options.data, inputs=inputs, target=options.target)
    return DataSettings(path=options.data, inputs=inputs, target=options.target)
