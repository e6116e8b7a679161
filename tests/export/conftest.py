"""Bundles of the zoo, and an exporter that is quick."""

import tests.export.quick  # noqa: F401 - for what its import does
from tests.bundles import zoo

__all__ = ["zoo"]
