"""A device's update: the frame of its parameter deltas, then the frame of its buffers, always dense float32, and, where
a task under a mask asks for it, a frame of the gradients that the mask leaves out.

    frame (frame.py)  parameters, under the task's codec, with error feedback
    frame (frame.py)  buffers (running statistics), all/float32, with d = 0 where the model has none
    frame (frame.py)  report: of the parameters off the mask, numbered by themselves, the largest gradients,
                      top-k/float16/rice

Buffers are few and their errors do not average out over steps, so compressing them saves nothing worth the harm.
"""

from dataclasses import dataclass

import numpy as np

from sparse.codecs.errors import PayloadError
from sparse.codecs.feedback import encode_with_feedback
from sparse.codecs.frame import decode, encode, frame_length, max_payload_bytes
from sparse.codecs.selection import Vector
from sparse.codecs.spec import DENSE, CodecSpec
from sparse.codecs.tensors import Shapes
from sparse.masks import Mask


@dataclass(frozen=True, slots=True)
class Shared:
    """What both sides of a task under a mask know beforehand.

    mask: bool[n_parameters]. report: of so many parameters off the mask, all if there are fewer, the gradient is told;
    at 0 there is no third frame.
    """

    mask: Mask
    report: int = 0

    @property
    def off(self) -> int:
        """How many parameters the mask leaves out."""
        return len(self.mask) - int(np.count_nonzero(self.mask))


def encode_update(
    parameters: Vector,
    buffers: Vector,
    residual: Vector,
    spec: CodecSpec,
    layout: bytes,
    shared: Shared | None = None,
    gradient: Vector | None = None,
    shapes: Shapes | None = None,
    seed: int = 0,
) -> tuple[bytes, Vector]:
    """The payload of an update and the new residual.

    parameters, residual: float32[n_parameters], the delta of this round and what earlier ones left out.
    buffers: float32[n_buffers]. gradient: float32[n_parameters], dense, needed where a report is asked for.
    shapes: of the parameters' tensors. seed: of what the codec draws, another for each device and round.
    Raises ValueError as `encode` does.
    """
    mask = shared.mask if shared is not None else None
    frame, left = encode_with_feedback(parameters, residual, spec, layout, mask, shapes, seed)
    payload = frame + encode(buffers, DENSE, layout)
    if shared is not None and shared.report:
        assert gradient is not None, "a report is of gradients"
        payload += encode(gradient[~shared.mask], _report_spec(shared), layout)
    return payload, left


def decode_update(
    payload: bytes | memoryview,
    n_parameters: int,
    n_buffers: int,
    layout: bytes,
    spec: CodecSpec | None = None,
    shared: Shared | None = None,
    shapes: Shapes | None = None,
) -> tuple[Vector, Vector]:
    """Parameters float32[n_parameters] and buffers float32[n_buffers] of an update.

    With `spec`, parameters under any other codec than the task's are refused. A report that is due must be there, and
    right; `decode_report` reads it. Raises PayloadError.
    """
    view, mask = memoryview(payload).cast("B"), shared.mask if shared is not None else None
    frames = _frames(view, 3 if shared is not None and shared.report else 2)
    parameters = decode(frames[0], n_parameters, layout, spec, mask, shapes)
    buffers = decode(frames[1], n_buffers, layout, DENSE)
    if shared is not None and shared.report:
        decode(frames[2], shared.off, layout, _report_spec(shared))
    return parameters, buffers


def decode_report(payload: bytes | memoryview, layout: bytes, shared: Shared) -> Vector:
    """The gradients that an update reports: float32[n_parameters], zero where it tells none. Raises PayloadError."""
    gradient = np.zeros(len(shared.mask), dtype=np.float32)
    if shared.report:
        last = _frames(memoryview(payload).cast("B"), 3)[2]
        gradient[~shared.mask] = decode(last, shared.off, layout, _report_spec(shared))
    return gradient


def max_update_bytes(
    n_parameters: int, n_buffers: int, spec: CodecSpec, shared: Shared | None = None, shapes: Shapes | None = None
) -> int:
    """No update under `spec` has more bytes than this; a larger offer can be refused unseen."""
    mask = shared.mask if shared is not None else None
    most = max_payload_bytes(n_parameters, spec, mask, shapes) + max_payload_bytes(n_buffers, DENSE)
    if shared is not None and shared.report:
        most += max_payload_bytes(shared.off, _report_spec(shared))
    return most


def _frames(view: memoryview, count: int) -> list[memoryview]:
    """The payload cut where each frame but the last says it ends."""
    frames = []
    for name in ("parameters", "buffers")[: count - 1]:
        split = frame_length(view)
        if len(view) < split:
            raise PayloadError("truncated", f"{len(view)} bytes where the {name} alone declare {split}")
        frames.append(view[:split])
        view = view[split:]
    return [*frames, view]


def _report_spec(shared: Shared) -> CodecSpec:
    """Exactly `report` of those off the mask, all if there are fewer."""
    share = min(1.0, shared.report / shared.off) if shared.off else 1.0
    return CodecSpec("topk", share, "float16", "rice")
