"""What sparsity costs in accuracy: DPF against pruning once, gradually and without feedback, RigL, SET, and dense.

    python -m benchmarks.sparse_accuracy --json --seeds 3

Every run is the agent's own training on the portable engine. All methods share network, examples, their order, steps
and rates; a seed varies the beginning and the order. Settings were chosen with --validation, which measures on a part
of the training examples alone.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic

import numpy as np

from benchmarks.harness import Row, options, progress_console, publish
from benchmarks.sparse_plot import save_plot
from benchmarks.sparse_training import TASKS, Task, bundle_of, engine_of, split_of, trained_accuracy
from protocol.bundle import Bundle
from sparse.dynamic import Method, SparseRule

DENSE = "dense"
DEFAULT = "fashion"
SPARSITIES = (0.9, 0.95)
# Steps of a run that only shows that it runs.
QUICK_STEPS = 40
# Steps between two masks: DPF's from its paper, RigL's and SET's from RigL's, gradual pruning's the least of its paper.
METHODS: Mapping[str, tuple[Method, int]] = {
    "one-shot": ("one-shot", 1),
    "gradual": ("gradual", 100),
    "dpf": ("dpf", 16),
    "dpf-without-feedback": ("dpf-without-feedback", 16),
    "rigl": ("rigl", 100),
    "set": ("set", 100),
}


def main() -> None:
    parser = options("What sparsity costs in accuracy, by method.")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --seed on (default: 3)")
    parser.add_argument("--data", choices=tuple(TASKS), action="append", help="again for more (default: fashion)")
    parser.add_argument("--method", choices=(DENSE, *METHODS), action="append", help="again for more (default: all)")
    parser.add_argument("--sparsity", type=float, action="append", help="again for more (default: 0.9 and 0.95)")
    parser.add_argument("--validation", action="store_true", help="measure on a part of the training examples")
    parser.add_argument("--plot", type=Path, default=Path("sparse_accuracy.svg"), help="default: sparse_accuracy.svg")
    chosen = parser.parse_args()
    seeds = range(chosen.seed, chosen.seed + (1 if chosen.quick else chosen.seeds))
    rows: list[Row] = []
    notes: list[str] = []
    started = monotonic()
    for name in chosen.data or (DEFAULT,):
        task = replace(TASKS[name], steps=QUICK_STEPS) if chosen.quick else TASKS[name]
        with tempfile.TemporaryDirectory() as folder:
            bundle = bundle_of(task, Path(folder) / "bundle")
            split = split_of(task, validation=chosen.validation)
            notes += [split.said, _said(task, bundle)]
            engine = engine_of(bundle)
            for method, sparsity in _cells(chosen.method or (DENSE, *METHODS), chosen.sparsity or SPARSITIES):
                rule = rule_of(task, method, sparsity)
                found = []
                for seed in seeds:
                    own = None if rule is None else replace(rule, seed=seed)
                    found.append(trained_accuracy(task, bundle, engine, split, own, seed))
                rows.append(row_of(name, method, sparsity, found))
                progress_console().print(f"{monotonic() - started:6.0f} s  {rows[-1]}")
    notes += [f"seeds {', '.join(map(str, seeds))}", f"{monotonic() - started:.0f} s in all"]
    save_plot(rows, chosen.plot)
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="Accuracy of sparse models", notes=notes)


def rule_of(task: Task, method: str, sparsity: float) -> SparseRule | None:
    """The rule of a row; its masks rest from the second decay on, as in Lin et al. 2020."""
    if method == DENSE:
        return None
    name, every = METHODS[method]
    moving = name in ("rigl", "set")
    return SparseRule(name, sparsity, task.decay_at[1], "erk" if moving else "global", every)


def row_of(dataset: str, method: str, sparsity: float, found: Sequence[float]) -> Row:
    """One row: the mean over seeds, and the spread of a single run (the sample's standard deviation)."""
    return {
        "dataset": dataset,
        "method": method,
        "sparsity": sparsity,
        "accuracy_mean": round(float(np.mean(found)), 4),
        "accuracy_sd": round(float(np.std(found, ddof=1)), 4) if len(found) > 1 else 0.0,
        "seeds": len(found),
    }


def _cells(methods: Sequence[str], sparsities: Sequence[float] = SPARSITIES) -> list[tuple[str, float]]:
    """Rows in the table's order: dense, then by sparsity."""
    dense = [(DENSE, 0.0)] if DENSE in methods else []
    return [*dense, *((m, s) for s in sparsities for m in methods if m != DENSE)]


def _said(task: Task, bundle: Bundle) -> str:
    parameters = bundle.manifest.parameters
    prunable = sum(t.size for t in bundle.manifest.tensors if t.prunable)
    of_all = ", ".join(f"{s:g} of these is {s * prunable / parameters:.3f} of all" for s in SPARSITIES)
    return (
        f"{task.dataset}: {parameters:,} parameters, {prunable:,} of them prunable ({of_all}); {task.steps} steps of "
        f"{task.batch_size} examples, rate {task.learning_rate:g}, a tenth after steps {task.decay_at[0]} and "
        f"{task.decay_at[1]}, Nesterov momentum 0.9, weight decay {task.weight_decay:g}"
    )


if __name__ == "__main__":
    main()
