"""The fleet's mask: when it is chosen anew, and how much of what it leaves out is reported.

Dynamic model pruning with feedback (Lin, Stich, Barba, Dmitriev, Jaggi 2020, DPF, algorithm 1) with the coordinator as
the one who holds the dense weights: the mask keeps the largest of them, devices train and are evaluated on the masked
model, and the dense copy of what is left out moves on by the gradients that devices report (feedback.py). Departures: a
refresh every so many rounds instead of 16 steps, gradients of the largest entries only and not in every round, and a
global threshold leaves each tensor its largest weight.

A bundle that was pruned before its export brings a mask along; where the settings ask for none, the fleet keeps that
one as it is, and nothing is reported.
"""

from coordinator.settings import AUTO, Settings, SparsitySettings
from coordinator.structure import Structure
from edge_agent.runtimes.engine import Vector
from protocol.bundle import Bundle, read_mask
from protocol.errors import BundleError, ConfigurationError
from protocol.manifest import Manifest
from protocol.messages import MAX_REPORT
from sparse import scores
from sparse.codecs import parse_codec
from sparse.masks import Mask, masked
from sparse.pruning import check_sparsity, select
from sparse.schedules import Schedule, sparsity_at
from sparse.tensors import FlatTensor, mask_over

# Where the sparsity ends to rise, of all rounds: the paper prunes until its second decay of the learning rate, epoch
# 225 of 300.
_END = 0.75


def check_mask(settings: Settings, manifest: Manifest) -> None:
    """Raises ConfigurationError where a bundle cannot be trained under the mask that the settings ask for."""
    sparsity, training = settings.sparsity, settings.training
    if not sparsity.final:
        named = [codec for codec in training.codecs or (training.codec,) if codec != AUTO]
        masked = [codec for codec in named if parse_codec(codec).selection == "mask"]
        if manifest.mask is None and masked:
            raise ConfigurationError(
                f"training.codec: {masked[0]} needs a mask; set sparsity.final, for example to 0.9, or export the "
                "bundle with --sparsity"
            )
        return
    tiers = [v.name for v in manifest.variants if v.keep]
    if tiers and settings.tiers.select != "off":
        raise ConfigurationError(
            f"sparsity.final: {sparsity.final:g} is for a fleet of whole models, and this bundle has width tiers "
            f'({", ".join(tiers)}); set sparsity.final = 0, or tiers.select = "off"'
        )
    try:
        check_sparsity(parameters_of(manifest), sparsity.final, sparsity.distribution)
    except ValueError as error:
        raise ConfigurationError(f"sparsity.final: {error}") from None


def first_mask(settings: Settings, bundle: Bundle, dense: Vector) -> Mask | None:
    """The mask that version 0 is worked on under: bool[n_parameters]; None where neither settings nor bundle have one.

    Raises BundleError where the bundle's own cannot be read.
    """
    if settings.sparsity.final:
        return next_mask(settings, bundle.manifest, None, dense, 0)
    data = read_mask(bundle.root, bundle.manifest)
    if data is None:
        return None
    try:
        return mask_over(parameters_of(bundle.manifest), data)
    except ValueError as error:
        raise BundleError(f"{bundle.manifest.mask}: {error}; export the bundle again") from None


def next_mask(settings: Settings, manifest: Manifest, before: Mask | None, dense: Vector, version: int) -> Mask | None:
    """The mask for `version`, whose dense model is float32[total]; many versions keep the one before."""
    sparsity, number, n = settings.sparsity, version + 1, manifest.parameters
    if not sparsity.final:
        return before
    schedule = _schedule(sparsity, settings.rounds.count)
    turn = (number - schedule.begin) % sparsity.refresh_every == 0
    due = schedule.begin <= number <= _last_refresh(sparsity, schedule) and turn
    # No round trains the last version, so its model is the one that was trained under the mask before.
    last = version >= settings.rounds.count
    if before is not None and (last or not (due or number == schedule.end)):
        return before
    worth = scores.magnitude(dense[:n])
    return select(parameters_of(manifest), worth, sparsity_at(schedule, number), sparsity.distribution)


def report_size(settings: Settings, mask: Mask, number: int) -> int:
    """Of how many parameters off the mask each device tells the gradient in a round."""
    sparsity, off = settings.sparsity, len(mask) - int(mask.sum())
    if not (off and sparsity.final and sparsity.report_every):
        return 0
    # What is told in a round can change the mask of the next one, or of none.
    over = number >= _last_refresh(sparsity, _schedule(sparsity, settings.rounds.count))
    if over or (number - sparsity.begin_round) % sparsity.report_every:
        return 0
    return min(MAX_REPORT, max(1, round(sparsity.report_fraction * off)))


def deployed(dense: Vector, structure: Structure) -> Vector:
    """The model as it is evaluated and written out: float32[total], 0 where the mask leaves out."""
    if structure.mask is None:
        return dense
    n = len(structure.mask)
    model = dense.copy()
    model[:n] = masked(dense[:n], structure.mask)
    return model


def parameters_of(manifest: Manifest) -> tuple[FlatTensor, ...]:
    """The parameters as masks see them."""
    return tuple(FlatTensor(t.name, t.offset, t.shape, t.prunable) for t in manifest.tensors if t.kind == "parameter")


def _last_refresh(sparsity: SparsitySettings, schedule: Schedule) -> int:
    """The round whose mask stays to the end: the paper's masks rest when their sparsity is reached."""
    return schedule.end if sparsity.last_refresh is None else max(schedule.end, sparsity.last_refresh)


def _schedule(sparsity: SparsitySettings, count: int) -> Schedule:
    end = sparsity.end_round if sparsity.end_round is not None else max(sparsity.begin_round, round(_END * count))
    return Schedule(0.0, sparsity.final, sparsity.begin_round, end)
