"""`fleet-coordinator discard`: gives up one accepted update whose payload is lost, so that its run can go on.

Nothing else does so: an accepted update that cannot be read stops the run, because the device no longer has it.
"""

import argparse
import json
from contextlib import closing
from pathlib import Path

from coordinator import settings as coordinator_settings
from coordinator.store import Store
from protocol.errors import ConfigurationError, NothingToDoError
from protocol.ownership import as_owner


def run(options: argparse.Namespace) -> int:
    """States the discard, which is counted from then on. Raises NothingToDoError where a fold took the update, and
    ConfigurationError where there is none, or a coordinator runs."""
    settings = coordinator_settings.load(options.config)
    if not options.reason.strip():
        raise ConfigurationError("--reason: say why, for whoever asks later")
    state = Path(settings.state)
    if not state.exists():
        raise NothingToDoError(f"{state}: no coordinator has run here yet; start one with fleet-coordinator run")
    with as_owner(state), closing(Store(state, settings.limits)) as store:
        give_up(store, options.round, options.device, options.reason)
    said = {"round": options.round, "device": options.device, "discarded": options.reason}
    print(json.dumps(said) if options.json else f"discarded the update of {options.device} for round {options.round}")
    return 0


def give_up(store: Store, number: int, device: str, reason: str) -> None:
    """One update, in one transaction; in a round that is open its device is out, and another may be asked."""
    fate = store.fate(number, device)
    if fate is None:
        raise ConfigurationError(f"--round, --device: no update of {device!r} was accepted for round {number}")
    fold, discarded = fate
    if fold is not None:
        raise NothingToDoError(f"the update of {device} for round {number} is in version {fold} already")
    if discarded is not None:
        raise NothingToDoError(f"the update of {device} for round {number} is discarded already: {discarded}")
    with store.together():
        store.discard(number, device, reason)
        store.set_phase(number, device, "out", "discarded", reason)
