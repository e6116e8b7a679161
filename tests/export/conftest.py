"""Bundles of the zoo, each written once for all tests that read it."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

from export.bundle import write_bundle
from protocol.bundle import Bundle, open_bundle
from tests.export.zoo import spec_of

# torch reads the sources of its whole operator library anew for every graph it exports: half of the time of these
# tests. Nothing of ours changes what it finds.
ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]

Zoo = Callable[[str], Bundle]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """The opened bundle of a zoo model by name; read only."""
    # One folder for every conftest that has this fixture.
    root: Path = tmp_path_factory.getbasetemp() / "zoo"

    def bundle(name: str) -> Bundle:
        if not (root / name).exists():
            write_bundle(spec_of(name), root / name, line=name.replace("_", "-"))
        return open_bundle(root / name)

    return bundle
