"""What devices hold of the model: a public copy that follows the dense one by compressed differences.

Devices train from the public model h and send their deltas to it; the fold adds the mean delta to the dense model x.
Every version then moves h by what a difference under the downlink's codec says:

    h[n+1] = h[n] + decode(encode(x[n+1] - h[n])),    h[0] = x[0]

What the codec leaves out, x - h, is in the next difference again. That is error feedback on the server's side, its
residual not kept but found again as the distance of two models that are. The dense model never sees a compressed
difference: Philippenko and Dieuleveut 2021, Preserved central model for faster bidirectional compression in distributed
settings (MCM, with a memory that takes all of each difference). Departures: devices send deltas of local steps instead
of gradients, the codec may be biased, buffers travel exactly, and a version whose difference would not bring h closer,
would not be smaller than the model or is not finite is published whole, with h = x.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coordinator.planner import task_seed
from coordinator.settings import Settings
from edge_agent.runtimes.engine import Vector
from protocol.errors import ConfigurationError
from protocol.layout import Layout
from protocol.messages import BlobRef, Difference
from sparse.codecs import apply_difference, encode_difference, parse_codec

log = logging.getLogger("coordinator")

# No device is called so, and what is drawn for a version is nobody's.
_NOBODY = "all"


@dataclass(frozen=True, slots=True)
class Published:
    """What devices hold of a version. model: float32[total]. blob, difference: None where the model is the dense one,
    and whole."""

    model: Vector
    blob: BlobRef | None = None
    difference: BlobRef | None = None


def check_downlink(settings: Settings, *, masked: bool) -> None:
    """Raises ConfigurationError where a codec of the downlink would save nothing. masked: by whatever mask."""
    if masked and settings.downlink.compressed:
        raise ConfigurationError(
            f"downlink.codec: {settings.downlink.codec} is for whole models, and the model of this run is under a "
            "mask: it travels as the values that the mask keeps; set all/float32"
        )


def publish(
    settings: Settings, layout: Layout, held: Vector, dense: Vector, version: int, put: Callable[[bytes], BlobRef]
) -> Published:
    """What devices are to hold of a version, whose dense model is float32[total], after `held` of the one before.

    A function of its arguments, so that a round that is committed once more after a kill publishes the same bytes.
    layout: of whole models. put: stores bytes and names them.
    """
    if not settings.downlink.compressed:
        return Published(dense)
    try:
        payload = _encoded(settings, layout, held, dense, version)
    except ValueError as error:
        log.warning("version=%d is published whole: %s", version, error)
        return Published(dense)
    public = apply_difference(held, payload, *_shape(layout))
    n = layout.n_parameters
    if len(payload) >= 4 * len(dense) or _distance(dense[:n], public[:n]) > _distance(dense[:n], held[:n]):
        log.info(
            "version=%d is published whole: its difference would not bring devices closer, or be as large", version
        )
        return Published(dense)
    return Published(public, put(public.astype("<f4").tobytes()), put(payload))


def steps_for(differences: tuple[Difference, ...], model: BlobRef, version: int, held: int) -> tuple[Difference, ...]:
    """Those of the differences to a version that a task names: from `held` on, of which the device had the model when
    it last delivered, and as long as all of them together are smaller than the model."""
    steps: list[Difference] = []
    size = 0
    for step in reversed(differences[-(version - held) :]):
        size += step.blob.size
        if size >= model.size:
            break
        steps.append(step)
    return tuple(reversed(steps))


def _encoded(settings: Settings, layout: Layout, held: Vector, dense: Vector, version: int) -> bytes:
    spec, seed = parse_codec(settings.downlink.codec), task_seed(settings.seed, version, _NOBODY) % (1 << 32)
    n_parameters, n_buffers, digest, shapes = _shape(layout)
    return encode_difference(held, dense, n_parameters, n_buffers, spec, digest, shapes, seed)


def _shape(layout: Layout) -> tuple[int, int, bytes, tuple[tuple[int, ...], ...]]:
    return layout.n_parameters, layout.n_buffers, layout.digest, layout.shapes


def _distance(x: Vector, y: Vector) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.square(x.astype(np.float64) - y).sum())
