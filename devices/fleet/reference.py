"""The reference training step: what it is, the command that times it inside a device, and how a board's is derived."""

import json
from collections.abc import Mapping
from pathlib import Path

from protocol.errors import ConfigurationError
from protocol.profile import Profile

# The step: forward, backward and SGD with momentum of this network on so many examples, by the agent's own engine of
# standard operators, in one thread. It is small enough for every board, and mostly convolution, as most training is.
MODEL = "examples/digits_cnn.py:digits"
BACKEND = "portable"
BATCH = 16
# Of timing the step within a quota: enough that the kernel's periods of 100 ms are a few per cent of it. More would be
# better, and a fleet of five kinds of board is to be up in minutes.
LEAST_STEPS = 20
LEAST_S = 6.0

# No vendor publishes such a step. What is published of many cores, with the arithmetic that matters here, is the time
# of SqueezeNet 1.1 in ncnn on one thread (ncnn, benchmark/README.md). So both were measured on one x86-64 CPU (Zen 4,
# onnxruntime 1.19.2, ncnn 1.0.20261020, the quietest of several runs), and a board's step follows in proportion. That
# gives the order of boards; a board's own step may well be half as long again, or two thirds.
REFERENCE_STEP_MS = 1.42
REFERENCE_BENCHMARK_MS = 6.87
# How many times as long the step takes here under QEMU as in this machine's own instructions, for a forecast only.
EMULATED_TIMES = 55.0
_FORMULA = "step_ms = {step:g} ms x benchmark_ms / {benchmark:g} ms (devices/fleet/reference.py)"

# What a step of MODEL at BATCH is, in the units of edge_agent.runtimes.work, as fleet-export plan counts it; a test
# counts again. devices may import neither.
STEP_WORK: Mapping[str, float] = {
    "arithmetic": 407_734,
    "comparison": 74_290,
    "copy": 337_259,
    "far_byte": 13_955_792,
    "function": 612,
    "multiply_add": 15_269_888,
    "node": 231,
    "normalisation": 98_304,
    "operand": 1_305_056,
    "product": 611,
    "reduction": 398_672,
    "row": 47_298,
    "run": 1,
    "scatter": 33,
    "setup": 76,
    "sgd": 21_482,
    "transposition": 124_416,
    "turned": 380_576,
    "unfolded": 156_672,
}


def step_from_benchmark(benchmark_ms: float) -> tuple[float, str]:
    """The step in milliseconds that follows from SqueezeNet's published time on one core, and how."""
    step_ms = round(REFERENCE_STEP_MS * benchmark_ms / REFERENCE_BENCHMARK_MS, 2)
    return step_ms, "derived: " + _FORMULA.format(step=REFERENCE_STEP_MS, benchmark=REFERENCE_BENCHMARK_MS)


def step_from_profile(profile: Profile) -> tuple[float, str]:
    """The step in milliseconds that a calibration of the board itself predicts, and how. Raises ConfigurationError."""
    missing = sorted(STEP_WORK.keys() - profile.seconds.keys())
    if missing:
        raise ConfigurationError(
            f"calibration: {profile.name}: no price of {', '.join(missing)}; calibrate again with this version's "
            "edge-agent calibrate --out FILE"
        )
    seconds = sum(units * profile.seconds[unit] for unit, units in STEP_WORK.items())
    return round(seconds * 1e3, 2), f"predicted from edge-agent calibrate on {profile.name}, {profile.date}"


def timing_command(bundle: Path, data: Path, steps: int) -> tuple[str, ...]:
    """The words after `edge-agent` that time the step; both paths as the device sees them."""
    return (
        *("train", "--bundle", str(bundle), "--data", str(data), "--steps", str(steps)),
        *("--batch-size", str(BATCH), "--backend", BACKEND, "--threads", "1", "--json"),
    )


def read_timing(printed: bytes, *, full_speed: bool = False) -> float:
    """Real milliseconds a step, from what the command printed. Raises ConfigurationError where it is something else.

    Within a quota it is the mean of all steps but the first, for the kernel's periods are in it; at full speed the
    median of the processor's own time, for what else runs on this machine is in everything else.
    """
    try:
        return float(json.loads(printed)["cpu_ms_per_step" if full_speed else "mean_ms_per_step"])
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"reference step: {printed[:200]!r} is not what edge-agent train --json prints; look at the device's log"
        ) from None
