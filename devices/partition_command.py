"""fleet-emulate partition: deals a data set's examples to devices, draws who holds what, and writes the shards."""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from devices.datasets import DATASETS, Dataset, Ints, load_dataset
from devices.feature_shift import shifted
from devices.label_plot import counts_of, label_plot
from devices.partition import by_class_mix, by_group, by_label_skew, by_shards, write_shards
from protocol.errors import ConfigurationError

Kind = Literal["per-class", "per-client", "shards", "natural"]
KINDS: dict[Kind, str] = {
    "per-class": "each label dealt by its own Dirichlet draw (Yurochkin et al. 2019); amounts differ too",
    "per-client": "each device's mix drawn from a Dirichlet (Hsu et al. 2019); equal amounts",
    "shards": "sorted by label, cut, dealt (McMahan et al. 2017)",
    "natural": "whole people or speakers",
}
EPILOG = "example: fleet-emulate partition --data fashion --devices 16 --alpha 0.1 --out labels.svg --json\n\nkinds:\n"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to deal. alpha: of the Dirichlet kinds. shards: of each device. gain, rotation: as in feature_shift.py."""

    devices: int
    kind: Kind = "per-class"
    alpha: float = 0.5
    shards: int = 2
    gain: float = 1.0
    rotation: float = 0.0
    seed: int = 1


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command."""
    command = commands.add_parser(
        "partition",
        help="deal a data set to devices unevenly, and draw who holds which labels",
        epilog=EPILOG + "\n".join(f"  {name:<11} {what}" for name, what in KINDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--data", default="digits", metavar="NAME", help=f"{', '.join(DATASETS)} (default: digits)")
    command.add_argument("--devices", type=int, default=8, metavar="N", help="default: 8")
    command.add_argument("--kind", choices=get_args(Kind), default="per-class", help="default: per-class")
    command.add_argument("--alpha", type=float, default=0.5, metavar="A", help="of the Dirichlet kinds (default: 0.5)")
    command.add_argument("--shards", type=int, default=2, metavar="N", help="of a device, of kind shards (default: 2)")
    command.add_argument("--gain", type=float, default=1.0, metavar="G", help="sensors from 1/G to G (default: 1)")
    command.add_argument("--rotation", type=float, default=0.0, metavar="DEG", help="turned at the most (default: 0)")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--out", type=Path, metavar="FILE", help="draw who holds which labels, as SVG")
    command.add_argument("--write", type=Path, metavar="DIR", help="write agents/DEVICE/shard.npz and test.npz there")
    command.add_argument("--json", action="store_true", help="one JSON object")
    command.set_defaults(command=_partition)


def deal(dataset: Dataset, wanted: Wanted) -> dict[str, Ints]:
    """What each device holds of the training part, as places in the data set. Raises ConfigurationError."""
    train, rng = dataset.train_indices, np.random.default_rng(wanted.seed)
    y = dataset.y[train]
    match wanted.kind:
        case "per-class":
            shares = by_label_skew(y, wanted.devices, wanted.alpha, rng)
        case "per-client":
            shares = by_class_mix(y, wanted.devices, wanted.alpha, rng)
        case "shards":
            shares = by_shards(y, wanted.devices, wanted.shards, rng)
        case "natural":
            if dataset.group is None:
                raise ConfigurationError(f"partition: {dataset.name} has no natural clients; use per-class")
            shares = by_group(dataset.group[train], wanted.devices)
    return {f"device-{i:02d}": train[share] for i, share in enumerate(shares, 1)}


def unevenness(dataset: Dataset, shares: dict[str, Ints]) -> float:
    """The mean over devices of the total variation between a device's mix of labels and the whole's: 0 to 1."""
    everywhere = np.bincount(dataset.y[dataset.train_indices], minlength=dataset.classes)
    whole = everywhere / everywhere.sum()
    mixes = [np.bincount(dataset.y[share], minlength=dataset.classes) / len(share) for share in shares.values()]
    return float(np.mean([0.5 * np.abs(mix - whole).sum() for mix in mixes]))


def as_seen(dataset: Dataset, shares: dict[str, Ints], wanted: Wanted) -> Dataset:
    """The data set with every device's examples as its own sensor has them; what is held out stays as it is."""
    if wanted.gain == 1.0 and wanted.rotation == 0.0:
        return dataset
    x = dataset.x.copy()
    for place, share in enumerate(shares.values()):
        rng = np.random.default_rng([wanted.seed, place])
        x[share] = shifted(dataset.x[share], wanted.gain, wanted.rotation, rng)
    return replace(dataset, x=x)


def _partition(options: argparse.Namespace) -> int:
    kind, given = options.kind, {f: getattr(options, f) for f in ("alpha", "shards", "gain", "rotation", "seed")}
    wanted = Wanted(options.devices, kind, **given)
    dataset = load_dataset(options.data)
    shares = deal(dataset, wanted)
    seen = as_seen(dataset, shares, wanted)
    counts = {device: counts_of(dataset.y[share], dataset.classes) for device, share in shares.items()}
    facts = {
        "data": dataset.name,
        "kind": kind,
        "rule": KINDS[kind],
        **{name: given[name] for name in _parameters(kind)},
        "gain": wanted.gain,
        "rotation": wanted.rotation,
        "seed": wanted.seed,
        "unevenness": round(unevenness(dataset, shares), 4),
        "devices": [{"device": device, "examples": sum(own), "labels": own} for device, own in counts.items()],
    }
    said = ", ".join(f"{name} {given[name]:g}" for name in (*_parameters(kind), "seed"))
    try:
        if options.out is not None:
            options.out.write_text(label_plot(f"{dataset.name}, {kind}, {said}", counts))
        if options.write is not None:
            options.write.mkdir(parents=True, exist_ok=True)
            write_shards(seen, shares, options.write)
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: cannot be written ({error.strerror}); name another one") from None
    if options.json:
        print(json.dumps(facts))
        return 0
    print(f"{dataset.name}, {kind}: {KINDS[kind]}; unevenness {facts['unevenness']:.2f} of 1, seed {wanted.seed}")
    print(f"device     examples  {' '.join(f'{label:>6}' for label in range(dataset.classes))}  (labels)")
    for device, own in counts.items():
        sys.stdout.write(f"{device}  {sum(own):>8}  {' '.join(f'{count:>6}' for count in own)}\n")
    return 0


def _parameters(kind: Kind) -> tuple[str, ...]:
    return {"per-class": ("alpha",), "per-client": ("alpha",), "shards": ("shards",), "natural": ()}[kind]
