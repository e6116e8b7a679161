"""A device's head anew with each task: of the task's model, before that is trained on, on the data that trains it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edge_agent.data import Dataset
from edge_agent.personal import shelf
from edge_agent.personal.settings import PersonalSettings
from edge_agent.personal.shelf import Origin, Personal
from edge_agent.personal.study import Study, studied, with_head
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.features import Extractor, open_extractor
from protocol.bundle import Bundle, deploy
from protocol.disk import Disk, is_disk_trouble
from protocol.errors import ConfigurationError
from protocol.messages import HeldOut, Task

log = logging.getLogger("edge-agent")


def personalise(
    settings: PersonalSettings,
    state: Path,
    task: Task,
    opened: tuple[Bundle, str],
    model: Vector,
    data: tuple[Dataset, Dataset | None],
    said: HeldOut | None,
    disk: Disk,
    open_: Callable[[Bundle, str], Extractor] = open_extractor,
) -> HeldOut | None:
    """Makes and keeps this device's head of the task's model, float32[total], and returns what the update says of what
    is held out: `said`, with accuracies where the settings allow it.

    opened: the bundle as the variant sees it, and the variant. data: trained on, and held out. Nothing that goes wrong
    here is worth a task: the head before stays, and the log says why.
    """
    bundle, variant = opened
    try:
        extractor = open_(bundle, variant)
        study = studied(extractor, model, *data, settings.recipe, settings.most_examples)
        graph = _deployed(bundle, variant, with_head(model, extractor.place, study.head)) if settings.deploy else None
        origin = Origin(
            *(task.run, task.round, task.version, bundle.digest.hex(), variant, study.trained_on, settings.steps),
            study.figures,
            None if graph is None else f"model-{task.model.digest.hex()[:12]}-{task.round}.onnx",
        )
        shelf.keep(state, Personal(origin, study.head, study.fleet, study.means), graph, disk)
    except (ConfigurationError, MemoryError) as error:
        log.warning("task=%s no personal head: %s", task.name, str(error) or "memory")
        return said
    except OSError as error:
        if not is_disk_trouble(error):
            raise
        log.warning("task=%s no personal head: the disk: %s", task.name, error)
        return said
    _tell(task, study)
    if said is None or study.figures is None or not settings.report:
        return said
    return replace(said, personal=study.figures.personal, mixed=study.figures.mixed)


def _deployed(bundle: Bundle, variant: str, model: Vector) -> bytes | None:
    """The deployable graph with this model in it; None for a tier, whose shapes it has not."""
    inference = bundle.manifest.inference.path
    if bundle.manifest.variant(variant).keep or not (bundle.root / inference).is_file():
        return None
    return deploy(bundle.read(inference), bundle.manifest, model)


def _tell(task: Task, study: Study) -> None:
    found = study.figures
    if found is None:
        log.info("task=%s personal head trained on=%d, tried on nothing held out", task.name, study.trained_on)
        return
    log.info(
        "task=%s personal head trained on=%d held out=%d fleet=%.4f personal=%.4f mixed=%.4f",
        *(task.name, study.trained_on, found.examples, found.fleet, found.personal, found.mixed),
    )
