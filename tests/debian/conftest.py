"""Bundles of the zoo for tests of packages."""

from tests.bundles import zoo

__all__ = ["zoo"]
