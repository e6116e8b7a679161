"""Ensemble distillation as a coordinator does it: the bundles, data and peers of [distillation], opened and checked."""

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from coordinator.distil import Distilled, Logits, Rule, distil, dropped, mean_logits
from coordinator.distillation_settings import PeerSettings
from coordinator.evaluate import load_data, load_inputs
from coordinator.history import open_history
from coordinator.settings import Settings
from coordinator.structure import Structure
from coordinator.teachers import ClientModel, newest_clients
from edge_agent.runtimes.backends import load_evaluator
from edge_agent.runtimes.engine import Array, Batch, Vector
from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.parameters import seen_by
from edge_agent.runtimes.portable import PortableEngine
from protocol.bundle import Bundle, open_bundle
from protocol.errors import ConfigurationError, NothingToDoError, SparsefleetError
from protocol.manifest import FULL, Manifest
from sparse.codecs import PayloadError

log = logging.getLogger("coordinator")

_THREADS = 1
_BATCH = 256
# Of labelled examples: one of fewer is more than a percent of accuracy.
_FEW = 100


@dataclass(frozen=True, slots=True)
class Taught:
    """A client as a teacher. logits: float32[inputs, classes]. accuracy: on the labelled examples, None where nobody
    asked."""

    name: str
    logits: Vector
    accuracy: float | None


class _Speaker:
    """Says what models of a bundle's variants make of the same inputs."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._evaluators: dict[str, Evaluator] = {}

    def logits(self, variant: str, model: Vector, inputs: tuple[Array, ...]) -> Logits:
        """float64[inputs, classes]."""
        if variant not in self._evaluators:
            seen = seen_by(self._bundle, variant)
            evaluator = load_evaluator(seen, _THREADS, variant)
            assert isinstance(evaluator, Evaluator), "only tests' bundles have none"
            self._evaluators[variant] = evaluator
        port, found = self._bundle.manifest.targets[0], []
        for start in range(0, len(inputs[0]), _BATCH):
            part = tuple(a[start : start + _BATCH] for a in inputs)
            # The graph wants a target, and what it says of it is not looked at.
            target = np.zeros((len(part[0]), *port.shape), dtype=port.dtype)
            found.append(self._evaluators[variant].outputs(model, Batch(part, (target,)))[1])
        return np.concatenate(found).astype(np.float64)


class Distiller:
    """Opened once. Raises ConfigurationError, BundleError or DataError where the settings, a bundle or data do not fit
    each other. alive: called often while it works, for it may take longer than a watchdog waits."""

    def __init__(self, settings: Settings, bundle: Bundle, alive: Callable[[], None] = lambda: None) -> None:
        own = settings.distillation
        assert own.bundle is not None
        assert own.data is not None
        assert own.validation is not None
        self._rule, self._seed, self._alive = own, settings.seed, alive
        manifest = bundle.manifest
        self._classes = _classes(manifest, settings.bundle)
        student = open_bundle(Path(own.bundle))
        _check_student(student.manifest, manifest, own.bundle)
        self._engine = PortableEngine(student, FULL, _THREADS)
        self._speaker, self._n = _Speaker(bundle), manifest.parameters
        self._inputs = load_inputs(Path(own.data), manifest, "distillation.data")
        self._validation = load_data(Path(own.validation), manifest, "distillation.validation")
        if len(self._validation) < _FEW:
            log.warning(
                "distillation.validation: %d examples choose the best model almost by luck; give hundreds",
                len(self._validation),
            )
        self._peers = tuple(_Peer(peer, manifest) for peer in own.peers)

    def due(self, version: int) -> bool:
        """Whether the fold that makes `version` is followed by a distillation."""
        return version % self._rule.every == 0

    def __call__(
        self, start: Vector, structure: Structure, clients: Iterable[ClientModel], version: int
    ) -> tuple[Distilled, int] | None:
        """The model that the clients of this fleet and its peers teach, from `start`, float32[total], and how many they
        are; None where there is no teacher."""
        theirs = (one for peer in self._peers for one in peer.taught(self._taught))
        names: list[str] = []
        logits = self._noted(self._worth(chain(self._taught("", self._speaker, clients), theirs)), names)
        first = next(logits, None)
        if first is None:
            return None
        # One by one: of a thousand clients not all logits fit in memory.
        teacher = mean_logits(chain((first,), logits))
        n, own = self._n, self._rule
        trained = np.ones(n, dtype=np.bool_) if structure.mask is None else structure.mask
        rule = Rule(
            own.steps,
            own.batch_size,
            own.learning_rate,
            own.check_every,
            own.patience,
            int(np.random.SeedSequence((self._seed, version)).generate_state(1)[0]),
        )
        found = distil(
            self._engine,
            start,
            self._inputs,
            teacher,
            lambda model: self._speaker.logits(FULL, model, self._inputs),
            lambda model: self._accuracy(self._speaker, FULL, model),
            rule,
            trained,
            self._alive,
        )
        log.info(
            "distilled version=%d teachers=%d steps=%d best_step=%d accuracy=%.4f before=%.4f divergence=%.3g",
            *(version, len(names), found.steps, found.best_step, found.after, found.before, found.divergence),
        )
        return found, len(names)

    def _accuracy(self, speaker: _Speaker, variant: str, model: Vector) -> float:
        """On the labelled examples; 0 of a model that says no numbers of them."""
        said = speaker.logits(variant, model, self._validation.inputs)
        right = said.argmax(axis=-1) == self._validation.targets[0]
        return float(right.mean()) if np.isfinite(said).all() else 0.0

    def _taught(self, fleet: str, speaker: _Speaker, clients: Iterable[ClientModel]) -> Iterator[Taught]:
        for client in clients:
            self._alive()
            name = f"{fleet}{client.device}"
            logits = speaker.logits(client.variant, client.model, self._inputs).astype(np.float32)
            # What is not one of numbers would make the whole ensemble none.
            if not (np.isfinite(client.model).all() and np.isfinite(logits).all()):
                log.warning("device=%s does not teach: its model holds, or says, NaN or infinity", name)
                continue
            asked = self._rule.drop_worst
            yield Taught(name, logits, self._accuracy(speaker, client.variant, client.model) if asked else None)

    def _worth(self, taught: Iterable[Taught]) -> Iterable[Taught]:
        """Those who may teach; only to compare them all are held in memory."""
        if not self._rule.drop_worst:
            return taught
        everybody = list(taught)
        out = dropped([one.accuracy for one in everybody if one.accuracy is not None], self._classes)
        for one, left in zip(everybody, out, strict=True):
            if left:
                log.info("device=%s does not teach: accuracy=%.4f", one.name, one.accuracy)
        return [one for one, left in zip(everybody, out, strict=True) if not left]

    def _noted(self, taught: Iterable[Taught], names: list[str]) -> Iterator[Vector]:
        for one in taught:
            names.append(one.name)
            yield one.logits


class _Peer:
    """Another coordinator's store, opened anew each time, for it goes on."""

    def __init__(self, settings: PeerSettings, manifest: Manifest) -> None:
        self._state, self._bundle = Path(settings.state), open_bundle(Path(settings.bundle))
        theirs = self._bundle.manifest
        if [p.shape for p in theirs.inputs] != [p.shape for p in manifest.inputs]:
            raise ConfigurationError(
                f"distillation.peers: {settings.bundle} takes other inputs than this fleet's bundle; all architectures "
                "must take the same"
            )
        ours, other = _classes(manifest, "bundle"), _classes(theirs, settings.bundle)
        if other != ours:
            raise ConfigurationError(
                f"distillation.peers: {settings.bundle} has {other} classes where {ours} are needed"
            )
        self._speaker = _Speaker(self._bundle)
        self._why_not = ""

    def taught(self, teach: Callable[[str, _Speaker, Iterable[ClientModel]], Iterator[Taught]]) -> Iterator[Taught]:
        """What its clients say; nothing before its first round. A peer that cannot be asked hinders nobody's run: it is
        passed over, and why is said once."""
        try:
            yield from self._asked(teach)
        except NothingToDoError:
            return
        except (SparsefleetError, PayloadError, OSError, sqlite3.Error) as error:
            if str(error) != self._why_not:
                log.warning("peer=%s does not teach, or not all of it: %s", self._state, error)
            self._why_not = str(error)
        else:
            self._why_not = ""

    def _asked(self, teach: Callable[[str, _Speaker, Iterable[ClientModel]], Iterator[Taught]]) -> Iterator[Taught]:
        history = open_history(self._state)
        try:
            history.belongs_to(self._bundle.digest, str(self._bundle.root))
            if history.noise(history.newest):
                raise ConfigurationError("its [privacy] hides its single clients, and they are not looked at")
            yield from teach(f"{history.run}/", self._speaker, newest_clients(history, self._bundle.manifest))
        finally:
            history.close()


def open_distiller(settings: Settings, bundle: Bundle, alive: Callable[[], None] = lambda: None) -> Distiller | None:
    """What [distillation] asks for, if it does."""
    return Distiller(settings, bundle, alive) if settings.distillation.on else None


def _classes(manifest: Manifest, named: str) -> int:
    """How many classes the model tells apart by its first output. Raises ConfigurationError where it does not."""
    shape = manifest.outputs[0].shape
    target = manifest.targets[0]
    if len(manifest.targets) != 1 or target.classes is None or target.shape or shape != (target.classes,):
        raise ConfigurationError(
            f"distillation: the model of {named} is not one that tells classes apart by its first output; only such "
            "can be distilled. Leave [distillation] out"
        )
    return target.classes


def _check_student(student: Manifest, manifest: Manifest, named: str) -> None:
    def table(of: Manifest) -> list[tuple[str, tuple[int, ...], int, str]]:
        return [(t.name, t.shape, t.offset, t.kind) for t in of.tensors]

    if table(student) != table(manifest):
        raise ConfigurationError(
            f"distillation.bundle: {named} is of another model than the fleet's bundle; write both by one export: "
            "fleet-export ... --out BUNDLE --distillation FOLDER"
        )
    target = student.targets[0]
    if target.dtype != "float32" or target.shape != manifest.outputs[0].shape:
        raise ConfigurationError(
            f"distillation.bundle: {named} is no bundle for distillation; name what `fleet-export --distillation` wrote"
        )
