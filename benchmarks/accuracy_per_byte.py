"""What a codec's bytes are worth: accuracy of the last model by bytes up, beside dense float32 averaging.

    python -m benchmarks.accuracy_per_byte --json --seeds 3

HAPT: 21 people, a device each, nine others held out. Fashion-MNIST: 20 devices by label skew, Dirichlet 0.3, each label
dealt over the devices (devices/partition.py). All codecs share network, examples, their order, rounds and rates; a seed
varies the beginning, the order, and the split of Fashion-MNIST. Settings were chosen with --validate, which holds out a
part of the training people or examples. `A down B` has B on the way down, as differences of versions.
What is finished is kept in --cache, and a run that was broken off goes on.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from time import monotonic

import numpy as np
import torch
from torch import nn

from benchmarks.byte_plot import save_plot
from benchmarks.codec_fleet import Outcome, Schedule, run
from benchmarks.harness import Row, options, progress_console, publish
from devices.datasets import Dataset as Labelled
from devices.datasets import Ints, load_dataset
from devices.partition import by_label_skew
from edge_agent.data import Dataset
from export import TrainingSpec
from export.bundle import write_bundle
from export.layout import flat_model
from protocol.bundle import Bundle, open_bundle

DENSE = "all/float32"
# Places by Rice, which costs some tenths of a percent more bytes than rans and a tenth of its time here.
CODECS = (
    DENSE,
    "all/float16",
    "all/int4",
    "all/qsgd:4@256",
    "all/sign",
    "all/drive",
    "powersgd:2/float16",
    "randk:0.05/float16",
    "topk:0.1/float16/rice",
    "topk:0.06/int4/rice",
    "topk:0.03/int4/rice",
    "topk:0.03/ternary/rice",
    "topk:0.01/float16/rice",
    "topk:0.06/int4/rice down topk:0.1/int8/rice",
    "topk:0.03/int4/rice down topk:0.1/int8/rice",
)
SEEDS = 3
_DEVICES, _ALPHA = 20, 0.3


@dataclass(frozen=True, slots=True)
class Task:
    """A data set, a network for it, and how its fleet trains."""

    data: str
    network: Callable[[], nn.Module]
    schedule: Schedule


def hapt_network() -> nn.Module:
    """Three strided convolutions and a hidden layer, without norms, so that all there is to send is parameters."""
    layers: list[nn.Module] = []
    for into, out, size in ((6, 24, 9), (24, 32, 5), (32, 48, 5)):
        layers += [nn.Conv1d(into, out, size, stride=2, padding=size // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 16, 128), nn.ReLU(), nn.Linear(128, 6))


def fashion_network() -> nn.Module:
    """The same in two dimensions."""
    layers: list[nn.Module] = []
    for into, out, size in ((1, 8, 5), (8, 16, 3)):
        layers += [nn.Conv2d(into, out, size, stride=2, padding=size // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10))


TASKS: Mapping[str, Task] = {
    "hapt": Task("hapt", hapt_network, Schedule(rounds=100, steps=5, batch_size=16, learning_rate=0.05)),
    "fashion": Task("fashion", fashion_network, Schedule(rounds=100, steps=5, batch_size=32, learning_rate=0.2)),
}


@dataclass(frozen=True, slots=True)
class Split:
    """Who holds what, as places in the data set, and what is measured on."""

    clients: Mapping[str, Ints]
    measured: Ints


def main() -> None:
    chosen = _options().parse_args()
    seeds = range(chosen.seed, chosen.seed + (1 if chosen.quick else chosen.seeds))
    console, started = progress_console(), monotonic()
    rows: list[Row] = []
    notes = [
        "bytes: of topics and messages of one device in a round, mean of all; task, model, update in chunks, receipt",
        f"seeds {', '.join(map(str, seeds))}; accuracy on "
        + ("a part of the training people or examples" if chosen.validate else "what is held out"),
    ]
    cache = Cache(chosen.cache)
    for name in chosen.data or TASKS:
        task = _changed(TASKS[name], chosen)
        data, codecs = load_dataset(task.data), tuple(dict.fromkeys((DENSE, *(chosen.codec or CODECS))))
        notes.append(f"{name}: {asdict(task.schedule)}")
        found: dict[str, list[Outcome]] = {codec: [] for codec in codecs}
        with tempfile.TemporaryDirectory(prefix="bytes-") as folder:
            bundle = bundle_of(task, data, Path(folder) / "bundle")
            # Seed by seed, so that what is broken off still compares all codecs.
            for seed in seeds:
                for codec in codecs:
                    key = f"{name} {codec} {seed} {chosen.validate} {task.schedule}"
                    begun, known = monotonic(), cache.get(key)
                    outcome = known or _run(task, bundle, data, codec, seed, validate=chosen.validate)
                    cache.put(key, outcome)
                    found[codec].append(outcome)
                    console.print(
                        f"{monotonic() - started:6.0f} s  {name} {codec} seed {seed}: {outcome.accuracy:.4f}, "
                        f"{outcome.uplink_bytes:,.0f} bytes up"
                        + (" (kept)" if known else f", took {monotonic() - begun:.1f} s"),
                        markup=False,
                    )
        rows += [row_of(name, codec, found[codec], found[DENSE]) for codec in codecs]
    if chosen.plot is not None:
        save_plot(rows, chosen.plot)
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="Accuracy by bytes", notes=notes)


class Cache:
    """Finished runs in a file of JSON lines, by all that their outcome depends on; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._known = path, dict[str, Outcome]()
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                said = json.loads(line)
                key = said.pop("run")
                self._known[key] = Outcome(**said)

    def get(self, key: str) -> Outcome | None:
        return self._known.get(key)

    def put(self, key: str, outcome: Outcome) -> None:
        if self._path is None or key in self._known:
            return
        self._known[key] = outcome
        with self._path.open("a") as file:
            file.write(json.dumps({"run": key, **asdict(outcome)}) + "\n")


def split_of(data: Labelled, seed: int, *, validate: bool) -> Split:
    """The people as devices, or label skew; for validation every fourth person, or every sixth example, is measured."""
    train, measured = data.train_indices, data.test_indices
    if data.group is not None:
        people = np.unique(data.group[train])
        held = people[::4] if validate else people[:0]
        measured = train[np.isin(data.group[train], held)] if validate else measured
        return Split({f"person-{p:02d}": train[data.group[train] == p] for p in people if p not in held}, measured)
    if validate:
        held_out = np.arange(len(train)) % 6 == 5
        train, measured = train[~held_out], train[held_out]
    shares = by_label_skew(data.y[train], _DEVICES, _ALPHA, np.random.default_rng(seed))
    return Split({f"device-{i:02d}": train[share] for i, share in enumerate(shares)}, measured)


def bundle_of(task: Task, data: Labelled, folder: Path) -> Bundle:
    """The network exported, with parity; every seed begins from its own parameters in the same bundle."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(8, *data.shape), torch.randint(0, data.classes, (8,))
    spec = TrainingSpec(task.network(), inputs, targets, "cross_entropy", ("accuracy",))
    write_bundle(spec, folder, line=f"bytes-{task.data}", backends=("portable",))
    return open_bundle(folder)


def row_of(dataset: str, codec: str, runs: Sequence[Outcome], dense: Sequence[Outcome]) -> Row:
    """The means over seeds, and the spread of a single run (the sample's standard deviation, 0 of one)."""
    up, down = mean(r.uplink_bytes for r in runs), mean(r.downlink_bytes for r in runs)
    accuracies = [r.accuracy for r in runs]
    return {
        "dataset": dataset,
        "codec": codec,
        "uplink_bytes": round(up),
        "downlink_bytes": round(down),
        "uplink_ratio_to_dense": round(up / mean(r.uplink_bytes for r in dense), 5),
        "downlink_ratio_to_dense": round(down / mean(r.downlink_bytes for r in dense), 5),
        "accuracy_mean": round(mean(accuracies), 4),
        "accuracy_sd": round(stdev(accuracies), 4) if len(accuracies) > 1 else 0.0,
        "seeds": len(runs),
    }


def _run(task: Task, bundle: Bundle, data: Labelled, codec: str, seed: int, *, validate: bool) -> Outcome:
    torch.manual_seed(seed)
    initial = flat_model(task.network(), bundle.manifest.tensors)
    split = split_of(data, seed, validate=validate)
    fleet = {name: _examples(data, places) for name, places in split.clients.items()}
    return run(bundle, initial, fleet, codec, task.schedule, _examples(data, split.measured), seed)


def _changed(task: Task, chosen: argparse.Namespace) -> Task:
    """With what was asked for on the command line, to choose settings by."""
    schedule = replace(task.schedule, rounds=2) if chosen.quick else task.schedule
    for name in ("rounds", "steps", "learning_rate"):
        if getattr(chosen, name) is not None:
            schedule = replace(schedule, **{name: getattr(chosen, name)})
    return replace(task, schedule=schedule)


def _examples(data: Labelled, places: Ints) -> Dataset:
    return Dataset((data.x[places],), (data.y[places],))


def _options() -> argparse.ArgumentParser:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many, from --seed on (default: {SEEDS})")
    parser.add_argument("--data", choices=sorted(TASKS), action="append", help="again for more (default: all)")
    parser.add_argument("--codec", action="append", help="again for more; dense float32 always runs (default: all)")
    parser.add_argument("--validate", action="store_true", help="measure on a part of what is trained on")
    parser.add_argument("--rounds", type=int, help="instead of the data set's own")
    parser.add_argument("--steps", type=int, help="of a device in a round, instead of the data set's own")
    parser.add_argument("--learning-rate", type=float, help="instead of the data set's own")
    parser.add_argument("--cache", type=Path, help="keep finished runs in this file, and do not repeat them")
    parser.add_argument("--plot", type=Path, help="draw accuracy by bytes, as SVG")
    return parser


if __name__ == "__main__":
    main()
