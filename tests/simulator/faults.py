"""What goes wrong in a simulated run and when, and the run's own settings: all of it drawn from one seed."""

from dataclasses import dataclass, field
from random import Random

from tests.simulator.disk import Trouble
from tests.simulator.network import Weather

# Faults of the clock come before this many simulated seconds; then disks and links are whole and nobody is killed.
HEAL_S = 60.0
COORDINATOR = "coordinator"
# Machines take so many steps in a run of three rounds, about: half of them or twice as many, as its settings are.
COORDINATOR_STEPS, DEVICE_STEPS = 700, 400
CODECS = ("all/float32", "topk:0.2/float32/rice", "topk:0.1/ternary/rice", "all/sign", "all/qsgd:4", "randk:0.3/int8")


@dataclass(frozen=True, slots=True)
class Kill:
    """The process ends at its machine's step of this number, of all its lives; or the machine loses its power."""

    machine: str
    step: int
    power: bool
    down_s: float


@dataclass(frozen=True, slots=True)
class Cut:
    """A connection breaks, which its ends notice so much later."""

    client: str
    at_s: float
    broker_notices_s: float = 0.0
    client_notices_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Partition:
    """Nothing passes between a client and the broker."""

    client: str
    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class BrokerDeath:
    """The broker is away for a while. forgets: it comes back without retained messages."""

    at_s: float
    for_s: float
    forgets: bool


@dataclass(frozen=True, slots=True)
class Storm:
    """A network that loses, repeats, delays and reorders messages."""

    at_s: float
    for_s: float
    weather: Weather


@dataclass(frozen=True, slots=True)
class DiskTrouble:
    """A disk that is full, cannot be written, or fails now and then."""

    machine: str
    at_s: float
    for_s: float
    trouble: Trouble


@dataclass(frozen=True, slots=True)
class BitFlip:
    """A bit of one file of a folder of the state, chosen by `which` of 0 to 1, is another one."""

    machine: str
    at_s: float
    folder: str
    which: float


@dataclass(frozen=True, slots=True)
class ClockJump:
    """The time of day of a machine is another; its monotonic clock is not."""

    machine: str
    at_s: float
    by_s: float


@dataclass(frozen=True, slots=True)
class Heat:
    """A device is too hot to train for a while."""

    machine: str
    at_s: float
    for_s: float


Fault = Kill | Cut | Partition | BrokerDeath | Storm | DiskTrouble | BitFlip | ClockJump | Heat


@dataclass(frozen=True, slots=True)
class Schedule:
    """A run to simulate. momentum: of the server's step. buffer: of updates to a
    version, in buffered mode. large: a model of several chunks. checkpoint_pages: of the
    databases' logs."""

    seed: int
    devices: int = 3
    rounds: int = 3
    wanted: int = 3
    minimum: int = 2
    deadline_s: float = 20.0
    codec: str = "topk:0.2/float32"
    downlink: str = "all/float32"
    momentum: bool = False
    over_select: float = 1.0
    buffer: int | None = None
    late_hours: float = 24.0
    staleness: float = 0.5
    large: bool = False
    checkpoint_pages: int = 1000
    faults: tuple[Fault, ...] = field(default_factory=tuple)

    @property
    def machines(self) -> tuple[str, ...]:
        return (COORDINATOR, *device_names(self.devices))


def device_names(devices: int) -> tuple[str, ...]:
    return tuple(f"device-{number}" for number in range(devices))


def draw_schedule(seed: int) -> Schedule:
    """The schedule of a seed: a kill and up to five faults of mixed kinds in a run of random settings."""
    rng = Random(seed)
    devices = rng.choice((2, 3, 3, 4))
    wanted = rng.randint(1, devices)
    buffer = rng.randint(1, wanted) if rng.random() < 0.3 else None
    settled = Schedule(
        seed=seed,
        devices=devices,
        rounds=rng.choice((3, 3, 5)),
        wanted=wanted,
        minimum=rng.randint(1, buffer or wanted),
        buffer=buffer,
        late_hours=24.0 if buffer is not None else rng.choice((24.0, 0.0, 0.003)),
        staleness=rng.choice((0.5, 0.5, 1.0, 0.0)),
        deadline_s=rng.choice((8.0, 20.0, 60.0)),
        codec=rng.choice(CODECS),
        downlink=rng.choice(("all/float32", "all/float32", "topk:0.2/int8")),
        momentum=rng.random() < 0.3,
        over_select=1.0 if buffer is not None else rng.choice((1.0, 1.0, 1.5)),
        large=rng.random() < 0.1,
        checkpoint_pages=rng.choice((1000, 1000, 20, 4)),
    )
    faults = (_draw_kill(rng, settled.machines), *(draw_fault(rng, settled.machines) for _ in range(rng.randint(0, 5))))
    return Schedule(**{name: getattr(settled, name) for name in settled.__slots__} | {"faults": faults})


def _draw_kill(rng: Random, machines: tuple[str, ...]) -> Kill:
    machine = rng.choice((COORDINATOR, *machines))
    step = rng.randint(1, COORDINATOR_STEPS if machine == COORDINATOR else DEVICE_STEPS)
    return Kill(machine, step, rng.random() < 0.5, rng.choice((0.1, 2.0, 15.0)))


def draw_fault(rng: Random, machines: tuple[str, ...]) -> Fault:
    machine = rng.choice((COORDINATOR, *machines))
    # Without faults three rounds take two seconds; most of a run happens early, whatever goes wrong.
    at_s, for_s = rng.random() ** 4 * HEAL_S / 2, rng.random() ** 3 * HEAL_S / 2
    match rng.choice(("kill",) * 6 + ("cut", "partition", "broker", "storm", "trouble", "flip", "jump")):
        case "kill":
            return _draw_kill(rng, machines)
        case "cut":
            return Cut(machine, at_s, rng.choice((0.0, 60.0)), rng.choice((0.0, 0.0, 60.0)))
        case "partition":
            return Partition(machine, at_s, for_s)
        case "broker":
            return BrokerDeath(at_s, min(for_s, 20.0), rng.random() < 0.5)
        case "storm":
            loss, repeat, reorder = (rng.choice((0.0, 0.1, 0.3)) for _ in range(3))
            return Storm(at_s, for_s, Weather(rng.choice((0.05, 1.0)), loss, repeat, reorder))
        case "trouble":
            return DiskTrouble(machine, at_s, for_s, rng.choice(("full", "read-only", "failing")))
        case "flip":
            folder = "updates" if machine == COORDINATOR else "blobs"
            return BitFlip(machine, at_s, folder, rng.random())
        case _:
            return ClockJump(machine, at_s, rng.choice((-1.0, 1.0)) * rng.choice((3600.0, 1e5, 1e9)))
