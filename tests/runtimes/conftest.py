"""The zoo of exported models, for the engines to run."""

from tests.export.conftest import zoo

__all__ = ["zoo"]
