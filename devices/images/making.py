"""Images of devices: made where they are not there yet or what goes into them has changed, listed, removed."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from devices.fleet.board import Architecture
from devices.images import agent_package, needs, roots
from devices.images.cache import alone, cache_folder
from devices.images.commands import EngineName, ImageError, do, engine_words, succeeds
from devices.images.recipe import NAME, REGISTRY, Recipe, build_command, fill
from protocol.errors import ConfigurationError

KINDS = {"device": NAME, "root": roots.NAME}
# Says what is being done, for as long as the block lasts.
Progress = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Image:
    """One of ours that an engine has. kind: of a device, or a root that those are made on."""

    name: str
    kind: str
    architecture: str
    version: str
    size_bytes: int
    created: str


def quiet(what: str) -> AbstractContextManager[object]:
    return contextlib.nullcontext(what)


def recipe(architecture: Architecture, base: str | None = None, package: Path | None = None) -> Recipe:
    """On the base that is named; otherwise on a Debian root where one can be made here, and a registry's where not."""
    if base is None and needs.may_make_roots():
        base = REGISTRY
    return Recipe(architecture, base, package)


def ensure(architecture: Architecture, engine: EngineName, progress: Progress = quiet) -> str:
    """The name of the image of this code for an architecture, which the engine has afterwards.

    Raises ConfigurationError or ImageError, before anything is made where it can be known before. Without a source
    tree it is the newest that `images build --deb` has made.
    """
    if not agent_package.has_source():
        needs.choose_engine(engine)
        for image in found(engine):
            if (image.kind, image.architecture) == ("device", architecture):
                return image.name
    return make(recipe(architecture), engine, progress)


def check_possible(architecture: Architecture, engine: EngineName) -> None:
    """Raises what `ensure` would raise before it makes anything."""
    needs.choose_engine(engine)
    if agent_package.has_source():
        wanted = recipe(architecture)
        agent_package.check(architecture, None)
        if not has(wanted.name(), engine):
            check(wanted, engine, cache_folder())


def has(name: str, engine: EngineName) -> bool:
    return succeeds(*engine_words(engine), "image", "inspect", name)


def make(recipe: Recipe, engine: EngineName, progress: Progress = quiet) -> str:
    """The same for one that is described; see `ensure`."""
    agent_package.check(recipe.architecture, recipe.package)
    needs.choose_engine(engine)
    name = recipe.name()
    if has(name, engine):
        return name
    cache = cache_folder()
    check(recipe, engine, cache)
    with alone(cache, f"image-{recipe.architecture}"):
        if not has(name, engine):
            _make(recipe, name, engine, cache, progress)
    return name


def check(recipe: Recipe, engine: EngineName, cache: Path) -> None:
    """Raises ConfigurationError for what is missing on this machine to make an image, all of it at once."""
    lacking = [needs.may_make_roots()] if recipe.base is None else []
    if recipe.architecture != needs.here():
        lacking.append(needs.emulate())
    places = [(cache, needs.CACHE_MIB), (Path(tempfile.gettempdir()), needs.TEMPORARY_MIB)]
    lacking.append(needs.room([*places, (needs.store(engine), needs.STORE_MIB)]))
    found = [one for one in lacking if one]
    if found:
        raise ConfigurationError(f"an image for {recipe.architecture} cannot be made here: {'; '.join(found)}")


def found(engine: EngineName) -> tuple[Image, ...]:
    """Ours, that the engine has; the newest first."""
    words = engine_words(engine)
    listed = do(*words, "images", "--filter", "label=sparsefleet.kind", "--format", "{{.ID}}").split()
    if not listed:
        return ()
    facts = json.loads(do(*words, "image", "inspect", *dict.fromkeys(listed)))
    return tuple(sorted(_images(facts), key=lambda image: image.created, reverse=True))


def current() -> frozenset[str]:
    """The names that images of this code have here, or would have."""
    return (
        frozenset(recipe(one).name() for one in needs.MACHINES.values()) if agent_package.has_source() else frozenset()
    )


def remove(names: Sequence[str], engine: EngineName) -> None:
    """Removes images by their names. Raises ImageError, with the engine's words, where a container is of one."""
    do(*engine_words(engine), "rmi", *names)


def _make(recipe: Recipe, name: str, engine: EngineName, cache: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix="image-") as folder:
        package = recipe.package
        if package is None:
            with progress(f"the agent's package for {recipe.architecture}, from {agent_package.SOURCE}"):
                package = agent_package.built(recipe.architecture, _made(Path(folder) / "package"), cache)
        base = recipe.base
        if base is None:
            with progress(f"a Debian root for {recipe.architecture}, by mmdebstrap (once)"):
                base = roots.imported(recipe.root, cache, engine)
        context = _made(Path(folder) / "context")
        fill(context, package)
        with progress(f"the image for {recipe.architecture}, on {base}"):
            _build(build_command(recipe, name, base, context, engine), recipe)


def _build(command: Sequence[str], recipe: Recipe) -> None:
    try:
        do(*command, environment={"DOCKER_BUILDKIT": "1"})
    except ImageError as error:
        if recipe.base is None:
            raise
        raise ImageError(
            f"no image on {recipe.base}; if there is no registry here, apt-get install mmdebstrap and leave --base out"
            f"\n{error}"
        ) from None


def _images(facts: Sequence[dict[str, object]]) -> Iterator[Image]:
    for one in facts:
        config = one.get("Config")
        labels = (config.get("Labels") if isinstance(config, dict) else None) or {}
        tags = one.get("RepoTags")
        for name in map(str, tags if isinstance(tags, list) else []):
            # An image that somebody builds on one of ours has its labels, and another name.
            kind = next((kind for kind, ours in KINDS.items() if name.startswith(f"{ours}:")), None)
            if kind is None:
                continue
            yield Image(
                name,
                kind,
                str(one.get("Architecture", "")),
                str(labels.get("sparsefleet.version", "")),
                int(str(one.get("Size", 0))),
                str(one.get("Created", "")),
            )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
