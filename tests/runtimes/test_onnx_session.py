"""An onnxruntime that is missing or too old is refused before any work, with what to install."""

import sys
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest

from edge_agent.runtimes import ort_training
from edge_agent.runtimes.onnx_session import import_onnxruntime
from protocol.errors import ConfigurationError


def stands_in(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """An onnxruntime that has a version and nothing else."""
    module = ModuleType("onnxruntime")
    module.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, "onnxruntime", module)


@pytest.mark.parametrize("version", ["1.16.3", "1.9.0", "0.17.9", "1.16.0.dev20230901"])
def test_a_runtime_that_is_too_old_is_refused_with_both_versions_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    stands_in(monkeypatch, version)
    with pytest.raises(ConfigurationError) as refusal:
        import_onnxruntime()
    for words in (version, "1.17 or later is needed", "pip install 'sparsefleet[agent]'"):
        assert words in str(refusal.value)
    assert "1.17 or later" in str(ort_training.why_not())


@pytest.mark.parametrize("version", ["1.17.0", "1.17.3+cpu", "1.32.0", "1.100.0", "2.0.0rc1"])
def test_a_runtime_that_is_new_enough_is_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    stands_in(monkeypatch, version)
    assert import_onnxruntime().__version__ == version


def test_where_there_is_no_runtime_the_portable_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # None in sys.modules makes an import of that name fail.
    monkeypatch.setitem(sys.modules, "onnxruntime", cast(ModuleType, None))
    with pytest.raises(ConfigurationError, match=r"cannot be imported .*; pip install 'sparsefleet\[agent\]'"):
        import_onnxruntime()


def test_a_runtime_that_fails_without_a_word_beside_numpy_2_is_told_with_the_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    with pytest.raises(ConfigurationError, match=r"fails beside NumPy \d.*; before 1\.19 it needs 'numpy<2'"):
        import_onnxruntime()
