"""The error tree: what an operator may get wrong, each with its exit code, and what the world may send, as a value."""

from dataclasses import dataclass


class SparsefleetError(Exception):
    """Something failed; the text names the thing, the value and the remedy. Commands exit with `exit_code`."""

    exit_code = 1


class NothingToDoError(SparsefleetError):
    """The command was understood and there is nothing for it to do."""

    exit_code = 2


class ConfigurationError(SparsefleetError):
    """A setting, a bundle or data at hand is wrong; the operator can mend it. `reason` is its word on the wire."""

    exit_code = 3
    reason = "configuration"


class BundleError(ConfigurationError):
    """A bundle is incomplete, altered, of an unknown format, or cannot be made from the given model."""

    reason = "bundle"


class DamagedError(ConfigurationError):
    """What is kept on this disk is not what was written; it is left as it is, and an operator must choose."""

    reason = "damaged"


class DataError(ConfigurationError):
    """Local training data is missing, empty, of the wrong shape or type, or holds values a model cannot take."""

    reason = "data"


class UnreachableError(SparsefleetError):
    """A broker or coordinator does not answer."""

    exit_code = 4


class NotEnrolledError(SparsefleetError):
    """The device has no identity in this fleet."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an input from outside was refused. `reason` is a short stable word for counters, `detail` is for people."""

    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
