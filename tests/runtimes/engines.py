"""Engines for tests, by backend: opened where the runtime at hand has them, else skipped with the reason."""

import pytest

from edge_agent.runtimes import ort_training, portable
from edge_agent.runtimes.backends import BACKENDS
from edge_agent.runtimes.engine import Engine
from protocol.bundle import Bundle

# Those that run exported graphs, and so any model.
GRAPH_BACKENDS = (portable.NAME, ort_training.NAME)


def need(backend: str) -> None:
    """Skips a test of a backend that cannot run here."""
    reason = BACKENDS[backend].why_not()
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def open_engine(backend: str, bundle: Bundle, threads: int = 1) -> Engine:
    """The engine of the bundle's variant for all."""
    need(backend)
    return BACKENDS[backend].open(bundle, "full", threads)
