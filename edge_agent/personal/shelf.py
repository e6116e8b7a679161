"""The personal head on this disk: one file in the state folder, written at once, with a checksum. Nothing sends it.

A safetensors file, as the project's others: `weight`, `bias`, `fleet.weight`, `fleet.bias`, `mean.own` and
`mean.fleet`, all F32; its text `of` says what it was made from and how it does. A model that has this head, where one
is kept, lies beside it under a name that the file says, so that both change at once.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from edge_agent.personal.head import Head
from edge_agent.personal.mixture import Means
from edge_agent.runtimes import safetensors
from edge_agent.runtimes.engine import Array
from protocol.database import SEAL_BYTES, sealed, unsealed
from protocol.disk import LOCAL, Disk, exists, write_durably
from protocol.errors import BundleError
from protocol.records import RecordError, read_record, write_record

FOLDER, FILE = "personal", "head"


@dataclass(frozen=True, slots=True)
class Figures:
    """Accuracies on what this device holds out, of the fleet's head, of the personal one, and of both mixed. share: of
    the fleet's head in the mix, mean over the examples."""

    examples: int
    fleet: float
    personal: float
    mixed: float
    share: float


@dataclass(frozen=True, slots=True)
class Origin:
    """What a personal head was made from. bundle: in hexadecimal digits. trained_on: examples. figures: None where the
    device holds nothing out. model: the name of the file beside it that has this head, if there is one."""

    run: str
    round: int
    version: int
    bundle: str
    variant: str
    trained_on: int
    steps: int
    figures: Figures | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Personal:
    """All that the device needs of its own to answer, beside the model itself."""

    origin: Origin
    head: Head
    fleet: Head
    means: Means


def keep(state: Path, personal: Personal, model: bytes | None = None, disk: Disk = LOCAL) -> None:
    """Writes a head in place of the one before. model: with this head in it, under the name that its origin says."""
    folder, name = state / FOLDER, personal.origin.model
    disk.make_folder(folder)
    if name is not None and model is not None:
        write_durably(folder / name, model, disk)
    # From here on it is this head, and this model.
    write_durably(folder / FILE, pack(personal), disk)
    for other in disk.names(folder):
        if other not in (FILE, name):
            disk.remove(folder / other)


def kept(state: Path, disk: Disk = LOCAL) -> Personal | None:
    """The head on this disk; None where there is none, or it was altered."""
    path = state / FOLDER / FILE
    return unpack(disk.read(path)) if exists(disk, path) else None


def pack(personal: Personal) -> bytes:
    """The bytes of a head, the last four of them a CRC-32."""
    arrays: dict[str, Array] = {
        "weight": personal.head.weight,
        "bias": personal.head.bias,
        "fleet.weight": personal.fleet.weight,
        "fleet.bias": personal.fleet.bias,
        "mean.own": personal.means.own,
        "mean.fleet": personal.means.fleet,
    }
    arrays = {name: array.astype("<f4", copy=False) for name, array in arrays.items()}
    return sealed(safetensors.format_tensors(arrays, {"of": json.dumps(write_record(personal.origin))}))


def unpack(data: bytes) -> Personal | None:
    """The head in these bytes; None where they were altered."""
    said = unsealed(data) if len(data) > SEAL_BYTES else None
    if said is None:
        return None
    try:
        file = safetensors.parse(FILE, said)
        origin = read_record(Origin, json.loads(str(file.text.get("of", ""))))
        bias, mean = file.array("bias"), file.array("mean.own")
        shape = len(bias), len(mean)
        head, fleet = (Head(file.array(f"{of}weight").reshape(shape), file.array(f"{of}bias")) for of in ("", "fleet."))
        return Personal(origin, head, fleet, Means(mean, file.array("mean.fleet", shape=mean.shape)))
    except (BundleError, RecordError, ValueError):
        return None
