"""From a PyTorch model to a bundle that devices train without torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.spec import TrainingSpec

__all__ = ["TrainingSpec"]


def __getattr__(name: str) -> object:
    # Not before it is asked for: it brings torch, and `fleet-export verify` runs where there is none.
    if name == "TrainingSpec":
        from export.spec import TrainingSpec

        return TrainingSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
