"""What came of comparing backends with torch's recorded step, kept in the state folder: the model that the step starts
from is at hand in a fleet's first round alone, and a backend that was passed over then must not come back later."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol.disk import LOCAL, Disk, write_durably

FILE = "probes.json"
# A few backends, each with a sentence.
MAX_BYTES = 1 << 16


def compared_by(runtime: str, variant: str) -> str:
    """What a verdict is of, besides the bundle: each variant has graphs of its own."""
    return f"{runtime}, variant {variant}"


def recall(state: Path, bundle: bytes, runtime: str, disk: Disk = LOCAL) -> dict[str, str]:
    """The verdicts on this bundle's backends with this runtime; none where the file says nothing of them."""
    path = state / FILE
    try:
        said: Any = json.loads(disk.read(path)) if disk.size(path) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(said, dict) or (said.get("bundle"), said.get("runtime")) != (bundle.hex(), runtime):
        return {}
    found = said.get("verdicts")
    if not isinstance(found, dict):
        return {}
    return {name: verdict for name, verdict in found.items() if isinstance(verdict, str)}


def remember(state: Path, bundle: bytes, runtime: str, verdicts: Mapping[str, str], disk: Disk = LOCAL) -> None:
    """Keeps the verdicts, in place of any on another bundle or runtime."""
    said = {"bundle": bundle.hex(), "runtime": runtime, "verdicts": dict(verdicts)}
    write_durably(state / FILE, (json.dumps(said, indent=1) + "\n").encode(), disk)
