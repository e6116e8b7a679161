"""From a PyTorch model to a bundle that devices train without torch."""

from export.spec import TrainingSpec

__all__ = ["TrainingSpec"]
