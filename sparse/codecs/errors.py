"""The one error of decoding: a payload that cannot be what it claims, with a short stable reason for counters."""

from typing import Literal

Reason = Literal[
    "truncated",  # fewer bytes than the header, or than the header declares
    "length",  # bytes left over, or a declared length that the codec cannot have
    "magic",  # not a payload of ours
    "version",  # a payload of another version of the format
    "codec",  # an unknown codec, or another one than was asked for
    "size",  # for a vector of another length, or an impossible number of kept values
    "layout",  # for a model with other tensors
    "mask",  # packed on another mask than the one that is shared, or on one where none is
    "checksum",  # altered on the way
    "values",  # value bytes that no encoder writes
    "indices",  # index bytes that do not code k indices below d
    "nonfinite",  # NaN or infinity among the values
]


class PayloadError(ValueError):
    """A received payload was refused. `reason` is for counters, `detail` for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail
