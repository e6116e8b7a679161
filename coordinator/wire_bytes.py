"""What one device sends and is sent in a round, message by message, as both senders count it (link.py).

A prediction of an undisturbed round: nothing is lost, asked for twice, or said before the device is known. Messages to
all are not a device's, and neither are the bytes of MQTT and TCP beneath.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from protocol.envelope import Envelope, encode
from protocol.messages import (
    CHUNK_BYTES,
    WINDOW,
    BlobRef,
    Body,
    Chunk,
    Need,
    Offer,
    Receipt,
    Task,
)
from protocol.messages import TaskReport as Report
from protocol.topics import Channel, Topics

# Counters are written in as many bytes as they need; these are of a run that has gone on for a while.
_BOOT, _SEQUENCE, _SENT = 1, 1 << 12, 1 << 24
# Names are repeated in every topic; of devices that are not known yet this is one of usual length.
SOMEONE = "a-usual-device-0"
_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True)
class RoundBytes:
    """Bytes of topics and messages: `up` by the device, `down` by the coordinator."""

    up: int
    down: int

    @property
    def both(self) -> int:
        return self.up + self.down


def round_bytes(
    topics: Topics, task: Task, fetched: Iterable[int], update: int, device: str = SOMEONE, variant: str = "full"
) -> RoundBytes:
    """The bytes of a task from its first message to the receipt.

    fetched: sizes of the blobs that the task has the device fetch: the model, and the mask where there is one.
    update: of the payload. variant: that the device works on.
    """
    offer = Offer(
        blob=BlobRef(_DIGEST, update),
        run=task.run,
        round=task.round,
        update_boot=_BOOT,
        update_sequence=_SEQUENCE,
        base=_DIGEST,
        examples=1 << 12,
        steps=1 << 8,
        loss=0.5,
        train_s=0.5,
        codec=task.codec,
        variant=variant,
        peak_mib=0.5,
    )
    up = _said(topics, device, "up", Report(task.name, "accepted", 1 << 12, "portable"), offer)
    down = _said(topics, device, "down", task, Receipt(_DIGEST, task.name, "accepted"))
    for size in fetched:
        up += _needs(topics, device, "up", size)
        down += _chunks(topics, device, "down/blob", size)
    return RoundBytes(
        up=up + _chunks(topics, device, "up/blob", update), down=down + _needs(topics, device, "down", update)
    )


def _said(topics: Topics, device: str, channel: Channel, *bodies: Body) -> int:
    topic = len(topics.device(device, channel))
    return sum(topic + len(encode(Envelope(_BOOT, _SEQUENCE, _SENT, body))) for body in bodies)


def _chunks(topics: Topics, device: str, channel: Channel, size: int) -> int:
    """The chunks of a blob; all but the last are alike, and none is as large as this is made to find out."""
    full, rest = divmod(size, CHUNK_BYTES)
    last = _said(topics, device, channel, Chunk(_DIGEST, full, bytes(rest))) if rest else 0
    return last + (full * _said(topics, device, channel, Chunk(_DIGEST, full, bytes(CHUNK_BYTES))) if full else 0)


def _needs(topics: Topics, device: str, channel: Channel, size: int) -> int:
    """A whole window is asked for at once, and then half windows as chunks come in (protocol/transfer.py)."""
    chunks = -(-size // CHUNK_BYTES)
    found, asked = 0, 0
    while asked < chunks:
        window = min(WINDOW if not asked else WINDOW // 2, chunks - asked)
        found += _said(topics, device, channel, Need(_DIGEST, tuple(range(asked, asked + window))))
        asked += window
    return found
