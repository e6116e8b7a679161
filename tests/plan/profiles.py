"""A device that nobody has: round prices, so that what a plan says of it can be worked out by hand."""

from edge_agent.runtimes.work import UNITS
from protocol.profile import FORMAT, Profile

PROFILE = Profile(
    format=FORMAT,
    name="kitchen",
    date="2026-11-23",
    machine="aarch64",
    cpu="a small board",
    cores=4,
    memory_mib=512,
    runtime="onnxruntime 1.19.2",
    threads=1,
    idle_mib=64.0,
    node_bytes=1024.0,
    seconds={**dict.fromkeys(UNITS, 1e-9), "node": 1e-6, "run": 1e-4},
    error=0.1,
)
