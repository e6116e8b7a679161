"""The `[data]` settings: where a device's examples are, of what kind, and how they become what the model takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["auto", "arrays", "csv", "wav", "images", "sqlite"]


@dataclass(frozen=True, slots=True)
class WavSettings:
    """How sounds become examples. rate_hz: at which the model was trained; files of another are refused. hop: samples
    from the beginning of one window to that of the next; 0 takes the first window of each file. mean, std: of samples
    between -1 and 1."""

    rate_hz: int = 0
    hop: int = 0
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate_hz <= 1_000_000:
            raise ValueError(f"rate_hz: {self.rate_hz} is outside 0..1000000")
        if not 0 <= self.hop <= 1 << 30:
            raise ValueError(f"hop: {self.hop} is outside 0..{1 << 30} samples; 0 takes one window of each file")
        if not self.std > 0:
            raise ValueError(f"std: {self.std} must be above 0")


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """How pictures become examples: (value * scale - mean) / std, with one mean and std, or one for each channel.

    fit: what becomes of another shape than the model's: "crop" keeps the middle, "stretch" distorts.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    fit: Literal["crop", "stretch"] = "crop"

    def __post_init__(self) -> None:
        if not all(value > 0 for value in self.std) or not self.std:
            raise ValueError(f"std: {self.std} must be above 0")
        if not self.mean:
            raise ValueError("mean: give one number, or one for each channel")
        if not self.scale > 0:
            raise ValueError(f"scale: {self.scale} must be above 0")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the data is, by exactly one of `path` and `source`, and what its arrays are called (docs/data.md).

    path: a file, a folder or a glob; kind: what is there, "auto" to go by the names of the files. source:
    "module:function" that returns a mapping of names to arrays, or (inputs, targets), each an array or a tuple of
    arrays. inputs, target: array names in the order of the bundle's inputs and targets; in tables, of their columns,
    where `columns` does not list them.

    labels: of sounds and pictures, a table of files and labels in their folder, or the name of the folder each is in;
    "auto" takes the table where it is. classes: the labels' names, in the order of the model's classes; without them
    labels are numbers. query: of an SQLite file.

    most_left_out: the share of examples, and of files, that may be left out because they cannot be used. settle_s:
    files of a folder that changed in the last so many seconds wait for the next task. memory_mib: what the examples may
    take; larger .npy files stay on the disk.

    hold_out: the share of the examples that is not trained on, drawn by hold_out_seed, and on which every round's model
    is tried before it is trained; 0 for none. hold_out_path: other files to try it on, in place of a share.
    """

    path: str | None = None
    source: str | None = None
    inputs: tuple[str, ...] = ("x",)
    target: str | tuple[str, ...] = "y"
    kind: Kind = "auto"
    labels: str = "auto"
    classes: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    query: str = ""
    most_left_out: float = 0.1
    settle_s: float = 3.0
    memory_mib: int = 256
    wav: WavSettings = field(default_factory=WavSettings)
    images: ImageSettings = field(default_factory=ImageSettings)
    hold_out: float = 0.0
    hold_out_seed: int = 0
    hold_out_path: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.source is None):
            raise ValueError("path: give either path (files) or source (module:function), and not both")
        if self.source is not None and not all(self.source.partition(":")):
            raise ValueError(f"source: {self.source!r} must be module:function, for example mydata:load")
        names = self.inputs + self.targets
        if len(set(names)) < len(names) or not all(names):
            raise ValueError(f"inputs: the names of inputs and targets must differ and not be empty, found {names}")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: a name is there twice in {self.classes}")
        stray = sorted(set(self.columns) - set(names))
        if stray:
            raise ValueError(f"columns: {stray[0]!r} is none of the inputs and targets {names}")
        if self.query and self.kind not in ("auto", "sqlite"):
            raise ValueError(f'query: is for kind = "sqlite", and kind is {self.kind!r}')
        if not 0 <= self.most_left_out < 1:
            raise ValueError(f"most_left_out: {self.most_left_out} is outside 0..1, 1 excluded")
        if not 0 <= self.hold_out <= 0.9:
            raise ValueError(f"hold_out: {self.hold_out} must be from 0 to 0.9; 0.1 is usual, 0 is for none")
        if not 0 <= self.hold_out_seed < 1 << 32:
            raise ValueError(f"hold_out_seed: {self.hold_out_seed} is outside 0..{(1 << 32) - 1}")
        if self.hold_out_path is not None and (self.hold_out or self.source is not None):
            raise ValueError("hold_out_path: is in place of hold_out, and for data that `path` names; leave one out")
        if not 0 <= self.settle_s <= 3600:
            raise ValueError(f"settle_s: {self.settle_s} is outside 0..3600 seconds")
        if not 1 <= self.memory_mib <= 1 << 20:
            raise ValueError(f"memory_mib: {self.memory_mib} is outside 1..1048576")

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib << 20
