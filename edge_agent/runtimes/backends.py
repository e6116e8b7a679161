"""The table of backends, and the choice of one for a bundle on this machine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_agent.runtimes import numpy_reference, ort_training
from edge_agent.runtimes.engine import Engine
from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.numpy_reference import NumpyEngine
from protocol.bundle import Bundle
from protocol.errors import ConfigurationError

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """How a backend is probed and opened. `why_not` gives the reason and remedy, or None if it runs here."""

    why_not: Callable[[], str | None]
    open: Callable[[Bundle, str, int], Engine]


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine chosen, and why, in words for a log line."""

    engine: Engine
    reason: str


# In order of preference.
BACKENDS: Mapping[str, BackendEntry] = {
    ort_training.NAME: BackendEntry(
        ort_training.why_not,
        ort_training.OrtTrainingEngine,
    ),
    numpy_reference.NAME: BackendEntry(numpy_reference.why_not, lambda bundle, variant, threads: NumpyEngine(bundle)),
}


def choose(bundle: Bundle, wanted: str = AUTO, threads: int = 1, variant: str = "full") -> Choice:
    """Opens the wanted backend, or with "auto" the first that the bundle holds and this machine runs.

    Raises ConfigurationError naming every backend considered, why it is not usable and what to do.
    """
    if wanted != AUTO and wanted not in BACKENDS:
        raise ConfigurationError(f"backend: {wanted!r} is unknown; use {AUTO!r} or one of {', '.join(BACKENDS)}")
    held = _held(bundle, variant)
    refused: dict[str, str] = {}
    for name in BACKENDS if wanted == AUTO else (wanted,):
        reason = _why_not(name, held)
        if reason is not None:
            refused[name] = reason
            continue
        return Choice(BACKENDS[name].open(bundle, variant, threads), _why(wanted, refused))
    said = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    raise ConfigurationError(
        f"backend: none is usable for variant {variant!r} here. {said}. Known: {', '.join(BACKENDS)}"
    )


def load_evaluator(bundle: Bundle, threads: int = 1, variant: str = "full") -> Evaluator | NumpyEngine:
    """Evaluates flat models; stock onnxruntime is enough. Raises ConfigurationError."""
    for name, files in _held(bundle, variant).items():
        if "eval" in files:
            return Evaluator(bundle, files["eval"], threads)
        if name == numpy_reference.NAME:
            return NumpyEngine(bundle)
    raise ConfigurationError(f"bundle: variant {variant!r} holds no evaluation graph; export it again")


def _held(bundle: Bundle, variant: str) -> dict[str, Mapping[str, str]]:
    """The backends of the variant, each with its files by role."""
    for known in bundle.manifest.variants:
        if known.name == variant:
            return {name: backend.files for name, backend in known.backends.items()}
    names = ", ".join(v.name for v in bundle.manifest.variants)
    raise ConfigurationError(f"variant: {variant!r} is not in this bundle; it holds {names}")


def _why_not(name: str, held: Mapping[str, object]) -> str | None:
    if name not in held:
        return f"the bundle holds no graphs for it, only for {', '.join(held)}; export it with this backend"
    return BACKENDS[name].why_not()


def _why(wanted: str, refused: Mapping[str, str]) -> str:
    if wanted != AUTO:
        return "named in the settings"
    passed_over = "; ".join(f"{name} is not usable ({reason})" for name, reason in refused.items())
    return f"the first usable one, {passed_over}" if passed_over else "the preferred one, and usable here"
