"""What each codec will cost a device, before it is used: bytes of a round and a day, seconds on a link, and whether the
daily budget holds. Needs a bundle, and no run."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coordinator.budget import DAY_S, LADDER, MASKED_LADDER
from coordinator.codecs import cost_of, ladder_of
from coordinator.masking import check_mask, parameters_of
from coordinator.refresh import first_structure
from coordinator.settings import Settings
from coordinator.views import View, Views
from coordinator.vote import check_masking
from edge_agent.runtimes.parameters import initial_model
from protocol.bundle import Bundle
from protocol.errors import ConfigurationError
from protocol.layout import layout_of
from protocol.manifest import FULL
from protocol.messages import BlobRef
from sparse import scores
from sparse.codecs import BALLOT, parse_codec
from sparse.pruning import select

_DENSE = "all/float32"


@dataclass(frozen=True, slots=True)
class Forecast:
    """One codec for one variant of the bundle. Bytes are those of messages and topics, receipts included.

    ratio_to_dense: bytes up by those of dense float32. rounds_a_day: in which one device takes part. link_s: both
    ways over the link that was asked for. fits: whether a day's bytes are within the budget, None without one.
    """

    variant: str
    codec: str
    bytes_up: int
    ratio_to_dense: float
    bytes_down: int
    rounds_a_day: float
    bytes_a_day: int
    link_s: float
    fits: bool | None


def forecast(
    settings: Settings, bundle: Bundle, codecs: Sequence[str], devices: int, round_s: float, link_bytes_s: float
) -> tuple[Forecast, ...]:
    """A row for each variant and codec; one of the ballot, where a mask is learnt. devices: in the fleet; round_s: that
    a round lasts.

    Raises ConfigurationError for a mask or a codec that the bundle or the settings do not go with.
    """
    check_mask(settings, bundle.manifest)
    check_masking(settings, bundle.manifest)
    per_round = min(1.0, settings.rounds.asked_a_round / devices)
    rounds_a_day, budget = per_round * DAY_S / round_s, settings.limits.device_bytes_per_day
    rows = []
    views = _views(settings, bundle)
    whole = next(view.layout for view in views if view.variant == FULL)
    for view in views:
        votes = view.told is not None
        weights = replace(view, layout=layout_of(bundle.manifest, FULL), told=None) if votes else view
        dense = cost_of(settings, weights, _DENSE).up
        for codec in (BALLOT,) if votes else codecs:
            if not votes and view.mask is None and parse_codec(codec).selection == "mask":
                raise ConfigurationError(f"codec: {codec} needs a mask; set sparsity.final, for example to 0.9")
            found = cost_of(settings, view, codec, whole)
            a_day = round(found.both * rounds_a_day)
            rows.append(
                Forecast(
                    variant=view.variant,
                    codec=codec,
                    bytes_up=found.up,
                    ratio_to_dense=found.up / dense,
                    bytes_down=found.down,
                    rounds_a_day=rounds_a_day,
                    bytes_a_day=a_day,
                    link_s=found.both / link_bytes_s,
                    fits=a_day <= budget if budget else None,
                )
            )
    return tuple(rows)


def codecs_to_compare(settings: Settings, bundle: Bundle) -> tuple[str, ...]:
    """What the settings say, and beside it the ladder of "auto"."""
    masked = bool(settings.sparsity.final) or bundle.manifest.mask is not None
    return tuple(dict.fromkeys((*ladder_of(settings, masked=masked), *(MASKED_LADDER if masked else LADDER))))


def _views(settings: Settings, bundle: Bundle) -> list[View]:
    """What devices see of the first version, by variant; of a fleet's mask, at the sparsity of the end."""
    manifest, sparsity, dense = bundle.manifest, settings.sparsity, initial_model(bundle)
    structure = first_structure(settings, bundle, dense)
    if sparsity.final:
        worth = scores.magnitude(dense[: manifest.parameters])
        mask = select(parameters_of(manifest), worth, sparsity.final, sparsity.distribution)
        structure = replace(structure, mask=mask)
    views = Views(manifest, dense, _blob(dense.astype("<f4").tobytes()), structure, _blob)
    if structure.chances is not None:
        return [views.of(FULL)]
    return [views.of(v.name) for v in manifest.variants if not v.keep or v.name in structure.channels]


def _blob(data: bytes) -> BlobRef:
    """Its name and size, and nothing kept."""
    return BlobRef(hashlib.sha256(data).digest(), len(data))
