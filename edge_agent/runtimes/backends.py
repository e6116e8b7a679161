"""The table of backends, and the choice of one for a bundle on this machine."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from edge_agent.runtimes import numpy_reference, onnx_session, ort_training, portable
from edge_agent.runtimes.engine import Engine, Vector
from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.runtimes.parameters import initial_model
from edge_agent.runtimes.reference import Record, load_record, one_step
from protocol.bundle import PARAMETERS_FILE, Bundle
from protocol.errors import BundleError, ConfigurationError, DataError
from protocol.manifest import FULL, Manifest

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """How a backend is probed and opened. `why_not` gives the reason and remedy, or None if it runs here."""

    why_not: Callable[[], str | None]
    open: Callable[[Bundle, str, int], Engine]


@dataclass(frozen=True, slots=True)
class Selection:
    """A backend by name, and why it is that one, in words for a log line."""

    name: str
    reason: str


class UnusableError(ConfigurationError):
    """A backend that runs here does not load this bundle's graphs, or computes something else with them."""

    def __init__(self, backend: str, text: str, kind: type[ConfigurationError]) -> None:
        super().__init__(text)
        self.backend, self.kind = backend, kind


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine chosen, and why, in words for a log line."""

    engine: Engine
    reason: str


# In order of preference.
BACKENDS: Mapping[str, BackendEntry] = {
    portable.NAME: BackendEntry(portable.why_not, portable.PortableEngine),
    ort_training.NAME: BackendEntry(
        ort_training.why_not,
        ort_training.OrtTrainingEngine,
    ),
    numpy_reference.NAME: BackendEntry(
        numpy_reference.why_not, lambda bundle, variant, threads: NumpyEngine(bundle, variant)
    ),
}


def select(
    manifest: Manifest,
    wanted: str = AUTO,
    variant: str = FULL,
    failed: Mapping[str, str] = MappingProxyType({}),
    installed: Mapping[str, str] | None = None,
) -> Selection:
    """The wanted backend, or with "auto" the first that the bundle holds and this machine runs; nothing is opened.

    failed: what is known to be wrong with backends that were tried; they are passed over. installed: what `refusals`
    said where the backend is to run; None asks this process, which loads a runtime. Raises ConfigurationError naming
    every backend considered, why it is not usable and what to do.
    """
    if wanted != AUTO and wanted not in BACKENDS:
        raise ConfigurationError(f"backend: {wanted!r} is unknown; use {AUTO!r} or one of {', '.join(BACKENDS)}")
    graphs = manifest.variant(variant).backends
    refused: dict[str, str] = {}
    for name in BACKENDS if wanted == AUTO else (wanted,):
        reason = why_not(name, graphs, installed) or failed.get(name)
        if not reason:
            return Selection(name, _why(wanted, refused))
        refused[name] = reason
    told = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
    raise ConfigurationError(
        f"backend: none is usable for variant {variant!r} here. {told}. Known: {', '.join(BACKENDS)}"
    )


def open_selected(
    bundle: Bundle,
    selected: Selection,
    threads: int = 1,
    variant: str = FULL,
    *,
    model: Vector | None = None,
    verdicts: dict[str, str] | None = None,
) -> Choice:
    """Opens a backend and compares it with torch's recorded step. Raises UnusableError where either goes wrong.

    For the comparison the record must lie in the bundle's folder, and the exported model there or in `model`:
    float32[total]; where it does not, nothing is compared. verdicts: what came of it, by backend: what was wrong, or ""
    if it agreed; added to, and taken as it is for the same bundle and runtime, when nothing is compared.
    """
    verdicts = {} if verdicts is None else verdicts
    try:
        step = None if selected.name in verdicts else _recorded(bundle, model)
        engine = BACKENDS[selected.name].open(bundle, variant, threads)
        said = _probe(engine, bundle, step, variant, verdicts)
    except BundleError as error:
        raise UnusableError(selected.name, str(error), BundleError) from error
    if verdicts.get(selected.name):
        raise UnusableError(selected.name, verdicts[selected.name], ConfigurationError)
    return Choice(engine, selected.reason + said)


def choose(
    bundle: Bundle,
    wanted: str = AUTO,
    threads: int = 1,
    variant: str = FULL,
    *,
    model: Vector | None = None,
    verdicts: dict[str, str] | None = None,
) -> Choice:
    """Opens the wanted backend of a whole bundle, or with "auto" the first that it holds and this machine runs.

    Runs means: its graphs load, and it takes torch's recorded step as torch took it; see `open_selected`. Raises
    ConfigurationError naming every backend considered, why it is not usable and what to do; BundleError if graphs could
    not be loaded.
    """
    verdicts = {} if verdicts is None else verdicts
    failed, kind = {name: said for name, said in verdicts.items() if said}, ConfigurationError
    while True:
        try:
            selected = select(bundle.manifest, wanted, variant, failed)
        except ConfigurationError as none_left:
            raise kind(str(none_left)) from None
        try:
            return open_selected(bundle, selected, threads, variant, model=model, verdicts=verdicts)
        except UnusableError as error:
            failed[selected.name] = str(error)
            kind = BundleError if error.kind is BundleError else kind


def runtime_name() -> str:
    """What a verdict on a backend holds for: another release, or another processor, may compute something else."""
    try:
        version = onnx_session.import_onnxruntime().__version__
    except ConfigurationError:
        version = "none"
    return f"onnxruntime {version}, numpy {np.__version__}, {platform.machine()}"


def load_evaluator(bundle: Bundle, threads: int = 1, variant: str = FULL) -> Evaluator | NumpyEngine:
    """Evaluates flat models; stock onnxruntime is enough. Raises ConfigurationError."""
    for name, files in held(bundle, variant).items():
        if "eval" in files:
            return Evaluator(bundle, files["eval"], threads)
        if name == numpy_reference.NAME:
            return NumpyEngine(bundle, variant)
    raise ConfigurationError(f"bundle: variant {variant!r} holds no evaluation graph; export it again")


def held(bundle: Bundle, variant: str) -> dict[str, Mapping[str, str]]:
    """The backends of the variant, each with its files by role. Raises ConfigurationError if there is no such one."""
    return {name: backend.files for name, backend in bundle.manifest.variant(variant).backends.items()}


def why_not(name: str, graphs: Mapping[str, object], installed: Mapping[str, str] | None = None) -> str | None:
    """Why a bundle with these graphs is not run by this backend here, with the remedy, or None if it may be."""
    if name not in graphs:
        return f"the bundle holds no graphs for it, only for {', '.join(graphs)}; export it with this backend"
    return BACKENDS[name].why_not() if installed is None else installed.get(name)


def refusals() -> dict[str, str]:
    """The backends that do not run here, whatever the bundle: each with the reason and remedy."""
    return {name: reason for name, entry in BACKENDS.items() if (reason := entry.why_not()) is not None}


def _recorded(bundle: Bundle, model: Vector | None) -> tuple[Record, Vector] | None:
    """Torch's recorded steps and the model they start from, where both are at hand."""
    reference = bundle.manifest.reference
    if reference is None or not bundle.path(reference.path).is_file():
        return None
    if model is None and not (bundle.root / PARAMETERS_FILE).is_file():
        return None
    return load_record(bundle), initial_model(bundle) if model is None else model


def _probe(
    engine: Engine, bundle: Bundle, step: tuple[Record, Vector] | None, variant: str, verdicts: dict[str, str]
) -> str:
    """Compares the recorded step, adds the verdict, and says what came of it; without a record it says nothing."""
    if engine.name in verdicts:
        return "; it agreed with torch's recorded step before"
    if step is None:
        return (
            "" if bundle.manifest.reference is None else "; not compared with torch's recorded step, which is not here"
        )
    record, model = step
    try:
        rows = one_step(engine, bundle.manifest, model, record, variant)
    except DataError as error:
        verdicts[engine.name] = f"it does not take the batch of torch's recorded step: {error}"
        return ""
    worst = max(rows, key=lambda row: row.excess)
    verdicts[engine.name] = "" if worst.ok else f"it computes something else here: {worst}; install another onnxruntime"
    return f"; it agrees with torch's recorded step within {max(row.difference for row in rows):.0e}"


def _why(wanted: str, refused: Mapping[str, str]) -> str:
    if wanted != AUTO:
        return "named in the settings"
    passed_over = "; ".join(f"{name} is not usable ({reason})" for name, reason in refused.items())
    return f"the first usable one, {passed_over}" if passed_over else "the preferred one, and usable here"
