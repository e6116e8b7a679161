"""Which backend a variant of a bundle is trained with: by what is installed, and what is known to go wrong."""

from collections.abc import Callable
from pathlib import Path

from edge_agent.probes import compared_by, recall
from edge_agent.runtimes.backends import Selection, select
from edge_agent.trainer import Facts, Unusable
from protocol.disk import LOCAL, Disk
from protocol.errors import BundleError, ConfigurationError
from protocol.manifest import Manifest


class Selector:
    """Chooses, and remembers what did not do. wanted: as in the settings. facts: what is installed where training
    happens. state: the folder that holds what came of comparing backends with torch."""

    def __init__(self, wanted: str, facts: Callable[[], Facts], state: Path, disk: Disk = LOCAL) -> None:
        self._wanted, self._facts, self._state, self._disk = wanted, facts, state, disk
        self._failed: dict[tuple[bytes, str], dict[str, str]] = {}

    def selected(self, manifest: Manifest, bundle: bytes, variant: str) -> Selection:
        """The backend for a variant of a bundle, by manifest and digest. Raises ConfigurationError when none serves."""
        facts = self._facts()
        failed = dict(self._failed.get((bundle, variant), {}))
        if manifest.reference is not None:
            known = recall(self._state, bundle, compared_by(facts.runtime, variant), self._disk)
            failed |= {name: said for name, said in known.items() if said}
        return select(manifest, self._wanted, variant, failed, facts.refused)

    def fail(self, manifest: Manifest, bundle: bytes, variant: str, said: Unusable) -> ConfigurationError | None:
        """Passes a backend over from now on. Where no other is left: why, to be told to the coordinator."""
        self._failed.setdefault((bundle, variant), {})[said.backend] = said.detail
        try:
            self.selected(manifest, bundle, variant)
        except ConfigurationError as none_left:
            # The next task tries again: what was missing may have been installed.
            del self._failed[bundle, variant]
            return (BundleError if said.reason == BundleError.reason else ConfigurationError)(str(none_left))
        return None
