"""A device's update: the frame of its parameter deltas, then the frame of its buffers, always dense float32.

    frame (frame.py)  parameters, under the task's codec, with error feedback
    frame (frame.py)  buffers (running statistics), all/float32, with d = 0 where the model has none

Buffers are few and their errors do not average out over steps, so compressing them saves nothing worth the harm.
"""

from sparse.codecs.errors import PayloadError
from sparse.codecs.feedback import encode_with_feedback
from sparse.codecs.frame import decode, encode, frame_length, max_payload_bytes
from sparse.codecs.selection import Vector
from sparse.codecs.spec import DENSE, CodecSpec


def encode_update(
    parameters: Vector, buffers: Vector, residual: Vector, spec: CodecSpec, layout: bytes
) -> tuple[bytes, Vector]:
    """The payload of an update and the new residual.

    parameters, residual: float32[n_parameters], the delta of this round and what earlier ones left out.
    buffers: float32[n_buffers]. Raises ValueError as `encode` does.
    """
    frame, left = encode_with_feedback(parameters, residual, spec, layout)
    return frame + encode(buffers, DENSE, layout), left


def decode_update(
    payload: bytes | memoryview, n_parameters: int, n_buffers: int, layout: bytes, spec: CodecSpec | None = None
) -> tuple[Vector, Vector]:
    """Parameters float32[n_parameters] and buffers float32[n_buffers] of an update.

    With `spec`, parameters under any other codec than the task's are refused. Raises PayloadError.
    """
    view = memoryview(payload).cast("B")
    split = frame_length(view)
    if len(view) < split:
        raise PayloadError("truncated", f"{len(view)} bytes where the parameters alone declare {split}")
    parameters = decode(view[:split], n_parameters, layout, spec)
    return parameters, decode(view[split:], n_buffers, layout, DENSE)


def max_update_bytes(n_parameters: int, n_buffers: int, spec: CodecSpec) -> int:
    """No update under `spec` has more bytes than this; a larger offer can be refused unseen."""
    return max_payload_bytes(n_parameters, spec) + max_payload_bytes(n_buffers, DENSE)
