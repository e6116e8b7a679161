"""The zoo of exported models, for the engines to run."""

from tests.bundles import zoo

__all__ = ["zoo"]
