"""Ensemble distillation as a coordinator does it: the bundles, data and peers of [distillation], opened and checked."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordinator.distil import Distilled, Logits, Rule, distil, dropped, mean_logits
from coordinator.distillation_settings import PeerSettings
from coordinator.evaluate import accuracy_of, evaluate, load_data, load_inputs
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
from protocol.errors import ConfigurationError, NothingToDoError
from protocol.manifest import FULL, Manifest

log = logging.getLogger("coordinator")

_THREADS = 1
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Taught:
    """A client as a teacher. accuracy: on the labelled examples, None where nobody asked."""

    name: str
    logits: Logits
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
    each other."""

    def __init__(self, settings: Settings, bundle: Bundle) -> None:
        own = settings.distillation
        assert own.bundle is not None
        assert own.data is not None
        assert own.validation is not None
        self._rule, self._seed = own, settings.seed
        manifest = bundle.manifest
        self._classes = _classes(manifest, settings.bundle)
        student = open_bundle(Path(own.bundle))
        _check_student(student.manifest, manifest, own.bundle)
        self._engine = PortableEngine(student, FULL, _THREADS)
        self._speaker, self._n = _Speaker(bundle), manifest.parameters
        self._inputs = load_inputs(Path(own.data), manifest, "distillation.data")
        self._validation = load_data(Path(own.validation), manifest, "distillation.validation")
        self._evaluator = load_evaluator(bundle, _THREADS)
        self._peers = tuple(_Peer(peer, manifest) for peer in own.peers)

    def due(self, version: int) -> bool:
        """Whether the fold that makes `version` is followed by a distillation."""
        return version % self._rule.every == 0

    def __call__(
        self, start: Vector, structure: Structure, clients: Iterable[ClientModel], version: int
    ) -> Distilled | None:
        """The model that the clients of this fleet and its peers teach, from `start`, float32[total]; None where there
        is no teacher."""
        taught = [*self._taught("", self._speaker, clients)]
        for peer in self._peers:
            taught += peer.taught(self._taught)
        taught = self._worth(taught)
        if not taught:
            return None
        teacher = mean_logits(one.logits for one in taught)
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
            self._accuracy,
            rule,
            trained,
        )
        log.info(
            "distilled version=%d teachers=%d steps=%d best_step=%d accuracy=%.4f before=%.4f divergence=%.3g",
            *(version, len(taught), found.steps, found.best_step, found.after, found.before, found.divergence),
        )
        return found

    def _accuracy(self, model: Vector) -> float:
        found = evaluate(lambda batch: self._evaluator.evaluate(model, batch), self._validation, _BATCH)
        accuracy = accuracy_of(found.metrics)
        return -found.loss if accuracy is None else accuracy

    def _taught(self, fleet: str, speaker: _Speaker, clients: Iterable[ClientModel]) -> Iterator[Taught]:
        for client in clients:
            # A model that is no longer one of numbers would make the whole ensemble none.
            if not np.isfinite(client.model).all():
                log.warning("device=%s does not teach: its model holds NaN or infinity", client.device)
                continue
            logits = speaker.logits(client.variant, client.model, self._inputs)
            accuracy = None
            if self._rule.drop_worst:
                said = speaker.logits(client.variant, client.model, self._validation.inputs)
                accuracy = float((said.argmax(axis=-1) == self._validation.targets[0]).mean())
            yield Taught(f"{fleet}{client.device}", logits, accuracy)

    def _worth(self, taught: list[Taught]) -> list[Taught]:
        if not self._rule.drop_worst or not taught:
            return taught
        accuracies = [one.accuracy for one in taught if one.accuracy is not None]
        out = dropped(accuracies, self._classes)
        for one, left in zip(taught, out, strict=True):
            if left:
                log.info("device=%s does not teach: accuracy=%.4f", one.name, one.accuracy)
        return [one for one, left in zip(taught, out, strict=True) if not left]


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

    def taught(self, teach: Callable[[str, _Speaker, Iterable[ClientModel]], Iterator[Taught]]) -> list[Taught]:
        """What its clients say; nothing before its first round."""
        try:
            history = open_history(self._state)
        except NothingToDoError:
            return []
        try:
            history.belongs_to(self._bundle.digest, str(self._bundle.root))
            return [*teach(f"{history.run}/", self._speaker, newest_clients(history, self._bundle.manifest))]
        finally:
            history.close()


def open_distiller(settings: Settings, bundle: Bundle) -> Distiller | None:
    """What [distillation] asks for, if it does."""
    return Distiller(settings, bundle) if settings.distillation.on else None


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
