"""Settings of the coordinator, from coordinator.toml: every range is checked here, by the key's name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from coordinator.access_settings import BrokerSettings, TrustSettings
from coordinator.distillation_settings import DistillationSettings
from coordinator.gossip_settings import GossipSettings, check_gossip
from coordinator.local_steps import BudgetSettings, StepRule
from coordinator.trust_settings import FoldSettings, PrivacySettings
from coordinator.vote_settings import MaskingSettings, check_combined
from edge_agent.runtimes.optimizers import OptimizerSettings
from protocol.errors import ConfigurationError
from protocol.messages import MAX_DIFFERENCES, OptimizerSpec
from protocol.records import write_record
from protocol.settings import load_settings
from protocol.topics import check_name
from sparse.codecs import parse_codec
from sparse.codecs.spec import DENSE
from sparse.distributions import Distribution, check_distribution

Schedule = Literal["constant", "cosine", "step"]
Mode = Literal["sync", "buffered"]
TierChoice = Literal["off", "static", "rolling", "importance"]
StepName = Literal["add", "momentum", "adam"]

# A round of more devices than this is more than one broker and one fold in one process are made for.
MAX_DEVICES = 10_000
# Receipts are kept for a thousand rounds (store.py), and an update must not be later than its receipt lasts.
MAX_LATE_ROUNDS = 500
# Of [training] codec: each device's own, by its link and its bytes today.
AUTO = "auto"
_CODEC = "all/float32"


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """How many rounds, of how many devices, and how long to wait for them.

    A round closes at `devices` accepted updates, or at its deadline with at least `minimum` (default: all devices).
    Devices that are still at work then keep their task. Their updates are folded into the next version, if they come
    within `late_hours` of the coordinator's running time since their round was opened, and before they are more than
    `late_rounds` behind; 0 hours withdraws their tasks instead. One t versions behind counts as (1 + t)^-staleness.

    mode "buffered": `devices` work at once, and every `buffer` accepted updates make a version, whatever version they
    started from; `minimum` (default: buffer) is enough when nothing came for `deadline_s`.
    """

    count: int
    devices: int
    deadline_s: float
    minimum: int | None = None
    over_select: float = 1.0
    target_accuracy: float | None = None
    late_hours: float = 24.0
    late_rounds: int = 100
    staleness: float = 0.5
    mode: Mode = "sync"
    buffer: int | None = None

    def __post_init__(self) -> None:
        _at_least("count", self.count, 1)
        _at_least("devices", self.devices, 1)
        if self.devices > MAX_DEVICES:
            raise ValueError(f"devices: {self.devices} is over the limit of {MAX_DEVICES}; use fewer a round")
        _check_mode(self)
        if self.minimum is not None and not 1 <= self.minimum <= self.goal:
            most = "devices" if self.buffer is None else "buffer"
            raise ValueError(f"minimum: {self.minimum} must be from 1 to {most} ({self.goal})")
        if not 1.0 <= self.over_select <= 10.0:
            raise ValueError(f"over_select: {self.over_select} must be from 1.0 to 10.0; 1.3 invites 30 % more")
        _positive("deadline_s", self.deadline_s)
        if self.target_accuracy is not None and not 0.0 < self.target_accuracy <= 1.0:
            raise ValueError(f"target_accuracy: {self.target_accuracy} must be above 0 and at most 1; 0.95 means 95 %")

        if not (math.isfinite(self.late_hours) and self.late_hours >= 0):
            raise ValueError(f"late_hours: {self.late_hours} must be a finite number of at least 0; 0 takes none late")
        if not 1 <= self.late_rounds <= MAX_LATE_ROUNDS:
            raise ValueError(f"late_rounds: {self.late_rounds} must be from 1 to {MAX_LATE_ROUNDS}")
        if not (math.isfinite(self.staleness) and 0.0 <= self.staleness <= 10.0):
            raise ValueError(f"staleness: {self.staleness} must be from 0 to 10; 0.5 is usual, 0 is for no discount")

    @property
    def buffered(self) -> bool:
        return self.mode == "buffered"

    @property
    def goal(self) -> int:
        """How many updates close a round."""
        return self.devices if self.buffer is None else self.buffer

    @property
    def least(self) -> int:
        return self.goal if self.minimum is None else self.minimum

    @property
    def at_work(self) -> int:
        """How many devices are asked, all at once."""
        return math.ceil(self.devices * self.over_select - 1e-9)

    @property
    def asked_a_round(self) -> float:
        """How many devices are asked in a round, in the long run."""
        return self.devices * self.over_select if self.buffer is None else self.buffer


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What a device does in one round.

    codec: of every update, or "auto" for one of a built-in ladder. codecs: a ladder of one's own, the richest first,
    in place of `codec` (budget.py says who gets which). post_local: one local step in rounds before this one, then
    local_steps; 0 for none. budget: local_steps at the most, and as many as a budget of bytes asks (local_steps.py).
    """

    batch_size: int
    learning_rate: float
    local_steps: int = 0
    local_epochs: int = 0
    schedule: Schedule = "constant"
    decay_every: int = 10
    decay_factor: float = 0.5
    codec: str = _CODEC
    codecs: tuple[str, ...] = ()
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    post_local: int = 0
    budget: BudgetSettings = field(default_factory=BudgetSettings)

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        _positive("learning_rate", self.learning_rate)
        _at_least("local_steps", self.local_steps, 0)
        _at_least("local_epochs", self.local_epochs, 0)
        if (self.local_steps > 0) == (self.local_epochs > 0):
            raise ValueError("local_steps: set exactly one of local_steps and local_epochs to a number above 0")
        _at_least("post_local", self.post_local, 0)
        if self.local_epochs and (self.post_local or self.budget.steps):
            key = "post_local" if self.post_local else "budget.steps"
            raise ValueError(f"{key}: counts steps, and the rounds are of {self.local_epochs} epochs; set local_steps")
        if self.post_local and self.budget.steps:
            raise ValueError("post_local: a budget says how many steps a round has; leave one of the two out")
        _at_least("decay_every", self.decay_every, 1)
        if not 0.0 < self.decay_factor <= 1.0:
            raise ValueError(f"decay_factor: {self.decay_factor} must be above 0 and at most 1; 0.5 halves the rate")
        if self.codec != AUTO:
            parse_codec(self.codec)
        if self.codecs and self.codec not in (AUTO, _CODEC):
            raise ValueError(f"codecs: there is a codec, {self.codec}, beside them; leave one of the two out")
        for place, codec in enumerate(self.codecs):
            try:
                parse_codec(codec)
            except ValueError as error:
                raise ValueError(f"codecs[{place}]: {error}") from None
        try:
            OptimizerSettings(**write_record(self.optimizer))
        except ValueError as error:
            raise ValueError(f"optimizer.{error}") from None

    def step_rule(self, rounds: int) -> StepRule:
        """By which the rounds of a run of so many get their local steps."""
        return StepRule(self.local_steps, self.post_local, self.budget, rounds)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How the mean of the devices' deltas becomes the next model (server_step.py)."""

    step: StepName = "add"
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        _positive("learning_rate", self.learning_rate)
        for name in ("momentum", "beta1", "beta2"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name}: {value} must be at least 0 and below 1; 0.9 is usual")
        _positive("epsilon", self.epsilon)


@dataclass(frozen=True, slots=True)
class TierSettings:
    """Which channels of the whole model the width tiers of a bundle work on (sparse/widths.py), and who works on which.

    target_s: how long a device may take for its steps and its bytes; 0: 1.2 times what the fleet's median device takes
    for the whole model. assign: devices by id whose tier is given, not measured.
    """

    select: TierChoice = "importance"
    refresh_every: int = 1
    target_s: float = 0.0
    assign: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.select not in get_args(TierChoice):
            raise ValueError(f"select: {self.select!r} is unknown; use {', '.join(get_args(TierChoice))}")
        _at_least("refresh_every", self.refresh_every, 1)
        if not (math.isfinite(self.target_s) and self.target_s >= 0):
            raise ValueError(f"target_s: {self.target_s} must be a finite number of at least 0; 0 goes by the fleet")


@dataclass(frozen=True, slots=True)
class SparsitySettings:
    """The mask that the whole fleet trains under (masking.py), of which `final` is the sparsity at the end: the share
    of prunable parameters left out. 0 is for no mask.

    From begin_round to end_round (default: three quarters of all rounds) the sparsity rises along a cubic, and every
    refresh_every rounds until last_refresh (default: end_round) the mask is chosen anew. Until then, every report_every
    rounds, 0 for never, devices tell the gradients of report_fraction of the parameters that are left out.
    """

    final: float = 0.0
    begin_round: int = 1
    end_round: int | None = None
    refresh_every: int = 1
    last_refresh: int | None = None
    report_every: int = 2
    report_fraction: float = 0.05
    distribution: Distribution = "global"

    def __post_init__(self) -> None:
        if not 0.0 <= self.final < 1.0:
            raise ValueError(f"final: {self.final} must be at least 0 and below 1; 0.9 is usual, 0 is for no mask")
        _at_least("begin_round", self.begin_round, 1)
        if self.end_round is not None and self.end_round < self.begin_round:
            raise ValueError(f"end_round: {self.end_round} must not come before begin_round ({self.begin_round})")
        _at_least("refresh_every", self.refresh_every, 1)
        if self.last_refresh is not None and self.last_refresh < (self.end_round or self.begin_round):
            raise ValueError(
                f"last_refresh: {self.last_refresh} must not come before end_round or begin_round "
                f"({self.end_round or self.begin_round}), so that the final sparsity is reached"
            )
        _at_least("report_every", self.report_every, 0)
        if not 0.0 < self.report_fraction <= 1.0:
            raise ValueError(
                f"report_fraction: {self.report_fraction} must be above 0 and at most 1; 0.05 is usual, and "
                "report_every = 0 is for no reports"
            )
        check_distribution(self.distribution)


@dataclass(frozen=True, slots=True)
class DownlinkSettings:
    """How the model travels to devices (downlink.py): under `codec` as the difference to a version before, for a device
    that is at most `keep_versions` behind; all/float32 sends every version whole."""

    codec: str = "all/float32"
    keep_versions: int = 8

    def __post_init__(self) -> None:
        if parse_codec(self.codec).selection == "mask":
            raise ValueError(f"codec: {self.codec} needs a mask, and whole models have none; use topk:0.1/int8")
        if not 1 <= self.keep_versions <= MAX_DIFFERENCES:
            raise ValueError(f"keep_versions: {self.keep_versions} must be from 1 to {MAX_DIFFERENCES}")

    @property
    def compressed(self) -> bool:
        """Whether devices hold another model than the coordinator."""
        return parse_codec(self.codec) != DENSE


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Held-out data (.npz, one array for each input and target) and how often models are tried on it."""

    data: str | None = None
    every: int = 1
    batch_size: int = 256

    def __post_init__(self) -> None:
        _at_least("every", self.every, 1)
        _at_least("batch_size", self.batch_size, 1)


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What the coordinator will hold: disk for blobs, updates of folded rounds, uploads at once (others wait for their
    turn); what it will believe: the examples of one device, its weight and its update's norm as multiples of the
    median; what it will listen to, of each device; and what a device may send and receive from midnight to midnight
    UTC. 0 is for no limit of the last five."""

    disk_mib: int = 4096
    keep_rounds: int = 10
    uploads: int = 256
    examples: int = 1_000_000
    weight: float = 2.0
    norm: float = 50.0
    device_messages_per_minute: int = 12_000
    device_mib_per_minute: int = 1024
    device_bytes_per_day: int = 0

    def __post_init__(self) -> None:
        _at_least("disk_mib", self.disk_mib, 16)
        _at_least("keep_rounds", self.keep_rounds, 0)
        _at_least("uploads", self.uploads, 1)
        _at_least("examples", self.examples, 1)
        for name in ("weight", "norm"):
            value = getattr(self, name)
            if not (value == 0.0 or (math.isfinite(value) and value >= 1.0)):
                raise ValueError(f"{name}: {value} times the median must be at least 1; 0 is for no limit")
        for name in ("device_messages_per_minute", "device_mib_per_minute", "device_bytes_per_day"):
            _at_least(name, getattr(self, name), 0)


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file. Paths are relative to its folder."""

    fleet: str
    bundle: str
    rounds: RoundSettings
    training: TrainingSettings
    state: str = "coordinator-state"
    seed: int = 0
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    fold: FoldSettings = field(default_factory=FoldSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    trust: TrustSettings = field(default_factory=TrustSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    tiers: TierSettings = field(default_factory=TierSettings)
    sparsity: SparsitySettings = field(default_factory=SparsitySettings)
    downlink: DownlinkSettings = field(default_factory=DownlinkSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    gossip: GossipSettings = field(default_factory=GossipSettings)
    masking: MaskingSettings = field(default_factory=MaskingSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)

    def __post_init__(self) -> None:
        check_name("fleet", self.fleet)
        _at_least("seed", self.seed, 0)
        if self.rounds.target_accuracy is not None and self.evaluation.data is None:
            raise ValueError("rounds.target_accuracy: needs held-out data; set evaluation.data, or leave it out")
        _check_sparsity(self)
        _check_fold(self)
        self.distillation.check(
            noise=self.privacy.on,
            quasi_global=self.training.optimizer.name == "qg",
            state=self.state,
            evaluation=self.evaluation.data,
            rounds=self.rounds.count,
        )
        check_gossip(self)
        check_combined(self)


def _check_mode(rounds: RoundSettings) -> None:
    if rounds.mode not in get_args(Mode):
        raise ValueError(f"mode: {rounds.mode!r} is unknown; use {', '.join(get_args(Mode))}")
    if not rounds.buffered:
        if rounds.buffer is not None:
            raise ValueError(f'buffer: {rounds.buffer} is for mode = "buffered"; leave it out, or set mode')
        return
    if rounds.buffer is None:
        raise ValueError('buffer: mode = "buffered" needs it: how many updates make a version, as half of devices')
    if not 1 <= rounds.buffer <= rounds.devices:
        raise ValueError(
            f"buffer: {rounds.buffer} must be from 1 to devices ({rounds.devices}), which is how many work at once"
        )
    if rounds.over_select != 1.0:
        raise ValueError(
            f'over_select: {rounds.over_select} has no meaning with mode = "buffered"; set it to 1.0, and devices to '
            "how many are to work at once"
        )
    if rounds.late_hours == 0:
        raise ValueError('late_hours: 0 with mode = "buffered", which lives on late updates; set it to 24, or above 0')


def load(path: Path) -> Settings:
    """Reads coordinator.toml, its paths made absolute. Raises ConfigurationError naming the file and the key."""
    settings = load_settings(Settings, path)
    folder = path.resolve().parent
    evaluation = settings.evaluation
    if evaluation.data is not None:
        evaluation = replace(evaluation, data=str(folder / evaluation.data))
    if not settings.trust.folder:
        raise ConfigurationError(f"{path}: trust.folder: is empty; name a folder")
    trust = replace(settings.trust, folder=str(folder / settings.trust.folder))
    for key in ("bundle", "state"):
        if not getattr(settings, key):
            raise ConfigurationError(f"{path}: {key}: is empty; name a folder")
    return replace(
        settings,
        bundle=str(folder / settings.bundle),
        state=str(folder / settings.state),
        trust=trust,
        evaluation=evaluation,
        distillation=settings.distillation.within(folder),
        gossip=settings.gossip.within(folder),
    )


def _check_sparsity(settings: Settings) -> None:
    sparsity, training, count = settings.sparsity, settings.training, settings.rounds.count
    if not sparsity.final:
        return
    if settings.downlink.compressed:
        raise ValueError(
            f"downlink.codec: under a mask the model travels whole, as the values that it keeps; set all/float32, or "
            f"sparsity.final = 0 (it is {sparsity.final:g})"
        )
    if sparsity.end_round is not None and sparsity.end_round > count:
        raise ValueError(
            f"sparsity.end_round: the last round is {count} (rounds.count), so that {sparsity.final:g} would never be "
            f"reached by round {sparsity.end_round}; the nearest that works is {count}"
        )
    if sparsity.begin_round > count:
        raise ValueError(
            f"sparsity.begin_round: {sparsity.begin_round} is after the last round; the nearest that works is {count}"
        )
    if training.optimizer.name == "adamw" and sparsity.report_every:
        raise ValueError(
            "sparsity.report_every: how far adamw would move a parameter does not follow from its mean gradient; set "
            "it to 0, or training.optimizer.name to sgd"
        )


def _check_fold(settings: Settings) -> None:
    training = settings.training
    sparsity = settings.sparsity
    if training.codec == AUTO and not training.codecs:
        # Its ladder ends in top-k, but for models under a mask.
        sparse = [] if sparsity.final else [AUTO]
    else:
        codecs = training.codecs or (training.codec,)
        sparse = [codec for codec in codecs if parse_codec(codec).selection in ("topk", "randk")]
    if training.optimizer.name == "qg" and settings.server.step != "add":
        raise ValueError(
            f"server.step: {settings.server.step} moves the model by more than the devices did, and quasi-global "
            'momentum takes that for their movement; set "add", or training.optimizer.name = "sgd"'
        )
    settings.fold.check(settings.rounds.least, sparse)
    settings.privacy.check(settings.fold, reports=bool(sparsity.final and sparsity.report_every))


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}: {value} must be at least {least}")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"{name}: {value} must be a finite number above 0")
