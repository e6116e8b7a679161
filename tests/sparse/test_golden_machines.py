"""The same bits whatever the processor can: golden payloads, written and read with NumPy's vector instructions off."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).parents[2]
# NumPy has no public name for these.
_CORE = np._core._multiarray_umath  # type: ignore[attr-defined]

PROGRAM = """
import hashlib, json
import numpy as np
from sparse.codecs import decode, encode, parse_codec
from tests.sparse.test_golden_formats import D, GOLDEN, LAYOUT, MASK, SHAPES, VECTOR

rng = np.random.PCG64(3)
LONG = (rng.random_raw(20_000) >> np.uint64(32)).astype(np.int64).astype(np.float32) - np.float32(2**31)
LONG = LONG * LONG * LONG  # a power has other last bits on other machines
told = {"features": sorted(np._core._multiarray_umath.__cpu_features__.items())}
for name in GOLDEN:
    mask = MASK if name.startswith("mask") else None
    arrived = decode(bytes.fromhex(GOLDEN[name]["payload"]), D, LAYOUT, parse_codec(name), mask, SHAPES)
    told[name] = hashlib.sha256(arrived.tobytes()).hexdigest()
    if mask is None and not name.startswith("powersgd"):
        told["long " + name] = hashlib.sha256(encode(LONG, parse_codec(name), LAYOUT, seed=4)).hexdigest()
print(json.dumps(told))
"""


def told(**environment: str) -> dict[str, object]:
    done = subprocess.run(
        (sys.executable, "-c", PROGRAM), capture_output=True, text=True, cwd=PROJECT, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, object] = json.loads(done.stdout)
    return said


def test_payloads_are_read_and_written_alike_without_vector_instructions() -> None:
    enabled = [name for name in _CORE.__cpu_dispatch__ if _CORE.__cpu_features__.get(name)]
    plain, reduced = told(), told(NPY_DISABLE_CPU_FEATURES=" ".join(enabled))
    # A processor without any has nothing to switch off, and two processes that must agree all the same.
    assert (plain.pop("features") != reduced.pop("features")) == bool(enabled)
    assert plain == reduced
