"""The zoo of exported models, for plans of them."""

from tests.export.conftest import zoo

__all__ = ["zoo"]
