"""What came of comparing backends with torch's recorded step, kept in the state folder: the model that the step starts
from is at hand in a trial or a fleet's first round alone, and a backend that was passed over then must not come back
later. The last few bundles are kept, because a device may go back to the one before."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.greeting import agent_version
from protocol.disk import LOCAL, Disk, write_durably

FILE = "probes.json"
# The committed one, the one before, one on trial; each by a runtime and a variant or two.
MOST = 6
# A few backends each, with a sentence.
MAX_BYTES = 1 << 16


def compared_by(runtime: str, variant: str) -> str:
    """What a verdict is of, besides the bundle: each variant has graphs of its own, and another agent may read them
    otherwise."""
    return f"agent {agent_version()}, {runtime}, variant {variant}"


def recall(state: Path, bundle: bytes, runtime: str, disk: Disk = LOCAL) -> dict[str, str]:
    """The verdicts on this bundle's backends with this runtime; none where the file says nothing of them."""
    for said in reversed(_read(state, disk)):
        found = said.get("verdicts")
        if (said.get("bundle"), said.get("runtime")) == (bundle.hex(), runtime) and isinstance(found, dict):
            return {name: verdict for name, verdict in found.items() if isinstance(verdict, str)}
    return {}


def remember(state: Path, bundle: bytes, runtime: str, verdicts: Mapping[str, str], disk: Disk = LOCAL) -> None:
    """Keeps the verdicts, in place of earlier ones on the same bundle and runtime, and those on a few others."""
    of = {"bundle": bundle.hex(), "runtime": runtime}
    others = [said for said in _read(state, disk) if {key: said.get(key) for key in of} != of]
    kept = [*others, {**of, "verdicts": dict(verdicts)}][-MOST:]
    write_durably(state / FILE, (json.dumps(kept, indent=1) + "\n").encode(), disk)


def forget(state: Path, bundle: bytes, disk: Disk = LOCAL) -> None:
    """Lets go of the verdicts on a bundle, by whatever they were come to, for it to be compared anew."""
    known = _read(state, disk)
    kept = [said for said in known if said.get("bundle") != bundle.hex()]
    if len(kept) < len(known):
        write_durably(state / FILE, (json.dumps(kept, indent=1) + "\n").encode(), disk)


def _read(state: Path, disk: Disk) -> list[dict[str, Any]]:
    path = state / FILE
    try:
        said: Any = json.loads(disk.read(path)) if disk.size(path) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return []
    # By an older agent it is one alone.
    listed = said if isinstance(said, list) else [said]
    return [entry for entry in listed if isinstance(entry, dict)]
