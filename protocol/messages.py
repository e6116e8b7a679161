"""Everything that is said on the wire, a frozen dataclass for each thing; protocol/envelope.py writes and reads them.

Bodies are maps by field name. A reader ignores names it does not know and gives absent ones their default, so that
peers one minor version apart understand each other.
"""

from dataclasses import dataclass
from typing import Literal

from protocol.gossip import Effort, Membership, Part, Standing, Want
from protocol.keyring import Keyring

CHUNK_BYTES = 64 * 1024
# A chunk and its envelope; every broker in use takes messages of this size (AWS: 128 KB).
MAX_MESSAGE_BYTES = CHUNK_BYTES + 1024
# How many chunks a receiver may ask for at once: half a megabyte in the broker per transfer.
WINDOW = 8
MAX_BLOB_BYTES = 1 << 32
MAX_CHUNKS = MAX_BLOB_BYTES // CHUNK_BYTES
MAX_TEXT = 2000
# Of gradients off a mask: a fortieth of the largest model that this is for.
MAX_REPORT = 1 << 20
# The steps from one version of the model to the next that a task may name.
MAX_DIFFERENCES = 64
# Of names: they are repeated in answers, logs and tables, so they end sooner.
MAX_NAME = 100
# What one side may ask the other to wait.
MAX_WAIT_S = 3600.0
# A welcome's warning, and the reason it is counted under: two agents speak in the name of one device.
TWO_AGENTS = "two-agents"
# Skills of agents: quasi-global momentum, velocity that goes on from round to round,
# training with neighbours, whose models the coordinator collects now and then, and masks over frozen weights.
QUASI_GLOBAL, KEPT_MOMENTUM, GOSSIP, MASKING = "quasi-global", "kept-momentum", "gossip", "masking"
MAX_SKILLS = 64
# A report's reason: the device may not train now. One that accepts a task nevertheless waits with it.
INELIGIBLE = "ineligible"


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A blob by its SHA-256 (32 bytes) and size in bytes."""

    digest: bytes
    size: int

    def __post_init__(self) -> None:
        if len(self.digest) != 32:
            raise ValueError(f"digest: {len(self.digest)} bytes where SHA-256 has 32")
        if not 0 <= self.size <= MAX_BLOB_BYTES:
            raise ValueError(f"size: {self.size} is outside 0..{MAX_BLOB_BYTES}")

    @property
    def chunks(self) -> int:
        return -(-self.size // CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class Hello:
    """Device to coordinator: here I am, and this is what I have. Sent on every connection and when asked.

    memory_mib: what training may use on this device, None where it does not say. instance: drawn anew by every start of
    the agent, so that one that speaks again after another did shows two that live; None from older agents. ring: the
    version of the fleet's keys that it goes by, None where it has none. skills: what a task may ask of it that older
    agents would refuse, or worse, do otherwise.
    """

    agent: str
    backend: str
    task: str | None = None
    outbox: int = 0
    memory_mib: int | None = None
    instance: int | None = None
    ring: int | None = None
    skills: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.skills) > MAX_SKILLS:
            raise ValueError(f"skills: {len(self.skills)} are over the limit of {MAX_SKILLS}")
        if any(len(skill) > MAX_NAME for skill in self.skills):
            raise ValueError(f"skills: one is longer than the limit of {MAX_NAME} characters")


@dataclass(frozen=True, slots=True)
class Welcome:
    """Coordinator to device: the answer to Hello. `run` names the coordinator's store; `time_s` is its clock.

    warning: a short word for what is wrong with the device in the coordinator's eyes, as TWO_AGENTS; None if nothing.
    instance, hello: of the hello that this answers, what it said and the number of its message, so that an answer of
    another day is none; None from older coordinators.
    """

    run: str
    time_s: float
    warning: str | None = None
    instance: int | None = None
    hello: int | None = None


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """How a device updates its flat vector. Names and ranges are checked where the optimiser is made, so that a device
    refuses by name what it does not know. mu, keep_momentum: None where the optimiser has none, as before there were
    any."""

    name: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    proximal: float = 0.0
    mu: float | None = None
    keep_momentum: bool | None = None


@dataclass(frozen=True, slots=True)
class SharedMask:
    """The mask that a task is trained under and its update is sent on, the same for the whole round.

    digest: of the mask itself (sparse.masks). blob: how to come by it: whole, or with `base` as the difference to the
    mask of that digest. report: of so many parameters that the mask leaves out, those where the loss falls fastest, the
    update also tells the gradient, so that they can return; 0 in most rounds.
    """

    digest: bytes
    blob: BlobRef
    base: bytes | None = None
    report: int = 0

    def __post_init__(self) -> None:
        if len(self.digest) != 32 or (self.base is not None and len(self.base) != 32):
            raise ValueError("digest: a mask is named by 32 bytes")
        if not 0 <= self.report <= MAX_REPORT:
            raise ValueError(f"report: {self.report} gradients are outside 0 to {MAX_REPORT}")


@dataclass(frozen=True, slots=True)
class Difference:
    """One step of a model from version to version: whoever holds the model `base` gets to the next one by `blob`.

    base: the model's SHA-256 (32 bytes). blob: the payload, which says its codec itself.
    """

    base: bytes
    blob: BlobRef

    def __post_init__(self) -> None:
        if len(self.base) != 32:
            raise ValueError(f"base: {len(self.base)} bytes where SHA-256 has 32")


@dataclass(frozen=True, slots=True)
class Task:
    """Coordinator to device: train this model so long and send the update. Sent again until answered.

    Exactly one of `local_steps` and `local_epochs` is positive. `time_left_s` is a duration, because device clocks
    may start in 1970. variant: of the bundle, which the model is of; None where the device may choose. channels: names
    the choice of channels that a width tier's model was cut from, so that what is left of an update of one choice is
    not added to one of another; None for whole models. differences: steps to the model from older ones, newest last.
    Whether it has one of these is for the device to see, and the model's digest proves what they add up to. release: of
    the manifest (protocol/release.py), None where nothing is signed. until: of a fleet without a hub
    (protocol/gossip.py), exchanges of the run after which the device's own model is sent, as its difference to this
    one; local_steps are then those between two exchanges. Before it trains on, it waits for the next task. None where
    devices train alone. chances: where masks over frozen weights are learnt, which are the model, the fleet's chance of
    each weight that may be masked, a byte each (sparse/votes.py); the update is then a mask (sparse/codecs/ballot.py).
    None where weights are trained.
    """

    run: str
    round: int
    manifest: BlobRef
    model: BlobRef
    version: int
    local_steps: int
    local_epochs: int
    batch_size: int
    learning_rate: float
    optimizer: OptimizerSpec
    codec: str
    seed: int
    time_left_s: float
    variant: str | None = None
    channels: bytes | None = None
    mask: SharedMask | None = None
    differences: tuple[Difference, ...] = ()
    release: bytes | None = None
    until: int | None = None
    chances: BlobRef | None = None

    def __post_init__(self) -> None:
        if self.until is not None and not 0 < self.until < 1 << 32:
            raise ValueError(f"until: {self.until} is outside 1..{(1 << 32) - 1}")
        if len(self.differences) > MAX_DIFFERENCES:
            raise ValueError(f"differences: {len(self.differences)} are over the limit of {MAX_DIFFERENCES}")
        if (self.local_steps > 0) == (self.local_epochs > 0):
            raise ValueError("local_steps: exactly one of local_steps and local_epochs must be positive")
        if self.round < 1:
            raise ValueError(f"round: {self.round} must be at least 1")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: {self.batch_size} must be at least 1")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate: {self.learning_rate} must be positive and finite")

    @property
    def beside(self) -> tuple[BlobRef, ...]:
        """What may have to be fetched for it beside the bundle and the model."""
        mask = () if self.mask is None else (self.mask.blob,)
        chances = () if self.chances is None else (self.chances,)
        return (*(step.blob for step in self.differences), *mask, *chances)

    @property
    def name(self) -> str:
        """What both sides call this task; one per run, round and device."""
        return f"{self.run}/{self.round}"


@dataclass(frozen=True, slots=True)
class TaskReport:
    """Device to coordinator: what became of a task. `reason` is a short word, `detail` for people. left_out: examples,
    and files, that are not trained on because they cannot be used; None where there are none, and from older agents."""

    task: str
    state: Literal["accepted", "refused", "failed"]
    examples: int = 0
    backend: str = ""
    reason: str = ""
    detail: str = ""
    left_out: int | None = None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How a model did on what the device holds out of its own data: a task's before it was trained, or the device's own
    without a hub. accuracy: None of a model that has no such metric. personal, mixed: accuracies with the head that the
    device keeps to itself in place of the model's, and with both; None where it has none, or does not tell."""

    examples: int
    loss: float
    accuracy: float | None = None
    personal: float | None = None
    mixed: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.examples < 1 << 63:
            raise ValueError(f"examples: {self.examples} must be at least 1, and fit 64 bits")
        for name in ("accuracy", "personal", "mixed"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}: {value} is outside 0..1")


@dataclass(frozen=True, slots=True)
class Offer:
    """Device to coordinator: an update is ready. Sent again until a Need or a Receipt answers it.

    `update_boot` and `update_sequence` name the update; two different payloads never share a name. `variant` says what
    it is made of: the tensors that this variant of the bundle trains. peak_mib: the most memory that the agent's
    process had resident since it began, None where nobody can tell. held_out: of the task's model, None where the
    device holds nothing out. own: the same of the device's own model, in a fleet without a hub.
    """

    blob: BlobRef
    run: str
    round: int
    update_boot: int
    update_sequence: int
    base: bytes
    examples: int
    steps: int
    loss: float
    train_s: float
    codec: str
    variant: str = "full"
    peak_mib: float | None = None
    held_out: HeldOut | None = None
    own: HeldOut | None = None

    @property
    def task(self) -> str:
        return f"{self.run}/{self.round}"


@dataclass(frozen=True, slots=True)
class Need:
    """Receiver to sender: send these chunks of this blob. The only thing that makes chunks flow."""

    digest: bytes
    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.indices) <= WINDOW or min(self.indices) < 0 or max(self.indices) >= MAX_CHUNKS:
            raise ValueError(f"indices: 1 to {WINDOW} chunk numbers from 0 to {MAX_CHUNKS - 1} are needed")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Sender to receiver: one chunk; the same index always carries the same bytes."""

    digest: bytes
    index: int
    data: bytes

    def __post_init__(self) -> None:
        if not 0 < len(self.data) <= CHUNK_BYTES:
            raise ValueError(f"data: {len(self.data)} bytes where a chunk has 1 to {CHUNK_BYTES}")


@dataclass(frozen=True, slots=True)
class Receipt:
    """Receiver to sender, after the receiver's fsync: the update is the receiver's now, or never will be.

    Sent again, word for word, when the same update is offered again.
    """

    digest: bytes
    task: str
    verdict: Literal["accepted", "rejected"]
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Coordinator to device: this task is over; stop working on it."""

    task: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Either side: the blob asked for is not here (any more)."""

    digest: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Later:
    """Receiver to sender: the offer of this blob was heard and waits its turn, in which a Need comes. Only if none came
    in `after_s` seconds, the sender offers it again."""

    digest: bytes
    after_s: float

    def __post_init__(self) -> None:
        _check_seconds("after_s", self.after_s)


@dataclass(frozen=True, slots=True)
class CoordinatorState:
    """Coordinator to all, retained, and its own last will: whether it is there. Each start of `run` is an `epoch`.

    spread_s: over how many seconds a fleet of this size is to spread its greetings when it comes back all at once.
    instance: drawn anew by every start, for two that were started from copies of one state folder have the same run and
    may have the same epoch. serving_s: since this start's first connection, so that of two the one that came second can
    know that it did. Both None from older coordinators.
    """

    epoch: int
    accepting: bool
    run: str = ""
    instance: int | None = None
    spread_s: float | None = None
    serving_s: float | None = None

    def __post_init__(self) -> None:
        if self.spread_s is not None:
            _check_seconds("spread_s", self.spread_s)


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Device to coordinator, retained, and its own last will: whether it is there."""

    state: Literal["ready", "gone", "lost"]


@dataclass(frozen=True, slots=True)
class Announcement:
    """Coordinator to all: a new model version exists."""

    version: int
    model: BlobRef


Body = (
    Hello
    | Welcome
    | Task
    | TaskReport
    | Offer
    | Need
    | Chunk
    | Receipt
    | Withdraw
    | Unavailable
    | CoordinatorState
    | DeviceState
    | Announcement
    | Later
    | Keyring
    | Membership
    | Effort
    | Part
    | Want
    | Standing
)


def _check_seconds(name: str, value: float) -> None:
    if not 0.0 <= value <= MAX_WAIT_S:
        raise ValueError(f"{name}: {value} is outside 0..{MAX_WAIT_S:.0f} seconds")
