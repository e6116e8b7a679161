"""`edge-agent train`: the same training code on this machine, without a fleet."""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from edge_agent.data import DataSettings, load
from edge_agent.runtimes.backends import choose
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import initial_model
from edge_agent.training import LocalTraining, Recipe
from protocol.bundle import open_bundle
from protocol.errors import ConfigurationError
from protocol.layout import layout_of


def train(options: argparse.Namespace) -> int:
    """Trains and prints loss per step, milliseconds per step and peak memory."""
    started = time.monotonic()
    recipe = _recipe(options)
    bundle = open_bundle(options.bundle)
    dataset = load(_data(options), bundle.manifest)
    choice = choose(bundle, options.backend, options.threads, options.variant)
    model = initial_model(bundle)
    training = LocalTraining(choice.engine, bundle.manifest, dataset, recipe, model, options.variant)
    losses, milliseconds = [], []
    first_step_s = 0.0
    if not options.json:
        print(f"backend {choice.engine.name}: {choice.reason}; variant {options.variant}; {len(dataset)} examples")
    while not training.finished:
        step = training.step()
        first_step_s = first_step_s or time.monotonic() - started
        losses.append(step.loss)
        milliseconds.append(step.seconds * 1e3)
        if not options.json:
            print(f"step {step.number:4d}  loss {step.loss:.4f}  {milliseconds[-1]:.1f} ms", flush=True)
    facts = {
        "backend": choice.engine.name,
        "reason": choice.reason,
        "variant": options.variant,
        "trained": layout_of(bundle.manifest, options.variant).n_parameters,
        "examples": len(dataset),
        "steps": training.done,
        "loss": losses,
        "ms_per_step": round(float(np.median(milliseconds)), 3),
        "first_step_s": round(first_step_s, 3),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    if options.json:
        print(json.dumps(facts))
    else:
        print(f"{facts['ms_per_step']} ms per step (median), peak memory {facts['peak_mib']} MiB", file=sys.stdout)
    return 0


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
    return Recipe(options.steps, 0, options.batch_size, options.learning_rate, optimizer, options.seed)


def _data(options: argparse.Namespace) -> DataSettings:
    inputs = tuple(options.inputs.split(","))
    path = Path(options.data)
    # A colon can be part of a path; what exists on disk is one.
    if ":" in options.data and not path.exists():
        return DataSettings(source=options.data, inputs=inputs, target=options.target)
    return DataSettings(path=options.data, inputs=inputs, target=options.target)
