"""`fleet-emulate images`: build the images of devices, list them, remove them."""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.command import Parser
from protocol.errors import ConfigurationError, NothingToDoError

if TYPE_CHECKING:
    from rich.console import Console

    from devices.fleet.board import Architecture
    from devices.images.making import Image
    from devices.images.recipe import Recipe

# An engine has it before names that are of no registry, and takes them without.
LOCAL = "localhost/"
EPILOG = """\
examples:
  fleet-emulate images build                                # for this machine's architecture
  fleet-emulate images build --arch all --engine podman
  fleet-emulate images build --base debian:12-slim --deb edge-agent_0.2.0_amd64.deb
  fleet-emulate images list --json
  fleet-emulate images remove --old

exit codes: 0 ok, 1 failure, 2 nothing to do, 3 configuration
"""


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    images = commands.add_parser(
        "images",
        help="build the images of devices in containers, list and remove them",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = images.add_subparsers(required=True, metavar="COMMAND")
    build = _verb(verbs, "build", "make them from the agent's package; does nothing where they are up to date", _build)
    build.add_argument("--arch", choices=("amd64", "arm64", "all"), help="default: this machine's")
    build.add_argument("--base", metavar="IMAGE", help="a Debian 12 (default: made by mmdebstrap; else debian:12-slim)")
    build.add_argument("--deb", type=Path, action="append", default=[], metavar="FILE", help="the agent's package")
    _verb(verbs, "list", "those that are there, and which are of this code", _list)
    remove = _verb(verbs, "remove", "remove them; what a container is of stays", _remove)
    remove.add_argument("names", nargs="*", metavar="NAME", help="which (default: all of devices)")
    remove.add_argument("--old", action="store_true", help="only those of other code than this")
    remove.add_argument("--roots", action="store_true", help="also the roots that they were made on, and their files")


def _verb(
    verbs: "argparse._SubParsersAction[Parser]", name: str, text: str, command: Callable[[argparse.Namespace], int]
) -> Parser:
    parser = verbs.add_parser(name, help=text, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("podman", "docker"), help="default: the one that is there")
    parser.add_argument("--json", action="store_true", help="facts as a JSON object; progress goes to stderr")
    parser.set_defaults(command=command)
    return parser


def _build(options: argparse.Namespace) -> int:
    # Imported here, as below, so that --help and mistakes answer at once.
    from rich.console import Console

    from devices.images import agent_package, making, needs
    from devices.images.cache import cache_folder
    from devices.text import bytes_text

    console = Console(stderr=options.json)
    engine = needs.choose_engine(options.engine)
    wanted = _recipes(options)
    for recipe in wanted:
        agent_package.check(recipe.architecture, recipe.package)
        if not making.has(recipe.name(), engine):
            making.check(recipe, engine, cache_folder())
    facts = []
    for recipe in wanted:
        there = making.has(recipe.name(), engine)
        started = time.monotonic()
        name = making.make(recipe, engine, _progress(console))
        took_s = round(time.monotonic() - started, 1)
        image = next(one for one in making.found(engine) if one.name == name)
        facts.append({**asdict(image), "built": not there, "seconds": took_s})
        said = "is up to date" if there else f"built in {took_s} s"
        console.print(f"{name}: {said}, {bytes_text(image.size_bytes)}", highlight=False, soft_wrap=True)
    if options.json:
        print(json.dumps({"engine": engine, "images": facts}))
    return 0


def _recipes(options: argparse.Namespace) -> "list[Recipe]":
    from devices.images import making, needs

    known: tuple[Architecture, ...] = ("amd64", "arm64")
    here = needs.here() if options.arch is None else options.arch
    chosen = [one for one in known if here in (one, "all")]
    packages = {}
    for path in options.deb:
        of = next((one for one in known if path.name.endswith(f"_{one}.deb")), None)
        if of is None or of in packages:
            raise ConfigurationError(
                f"--deb {path}: one file for each architecture, edge-agent_VERSION_ARCHITECTURE.deb"
            )
        packages[of] = path
    unused = [str(path) for of, path in packages.items() if of not in chosen]
    if unused:
        raise ConfigurationError(f"--deb {unused[0]}: no image for its architecture is asked for; give --arch")
    return [making.recipe(one, options.base, packages.get(one)) for one in chosen]


def _progress(console: "Console") -> Callable[[str], AbstractContextManager[object]]:
    @contextmanager
    def progress(what: str) -> Iterator[None]:
        started = time.monotonic()
        with console.status(what):
            yield
        console.print(f"  {what}: {time.monotonic() - started:.1f} s", highlight=False, soft_wrap=True)

    return progress


def _list(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from devices.images import making, needs
    from devices.text import bytes_text

    engine = needs.choose_engine(options.engine)
    images, current = making.found(engine), making.current()
    if options.json:
        facts = [{**asdict(image), "current": image.name in current} for image in images]
        print(json.dumps({"engine": engine, "images": facts}))
        return 0
    if not images:
        raise NothingToDoError(f"{engine} has no images of devices; fleet-emulate images build makes them")
    table = Table("image", "size", "of")
    table.columns[0].overflow = "fold"
    for image in images:
        made_of = "a Debian root" if image.kind == "root" else "this code" if image.name in current else "other code"
        table.add_row(image.name.removeprefix(LOCAL), bytes_text(image.size_bytes), made_of)
    Console().print(table)
    return 0


def _remove(options: argparse.Namespace) -> int:
    from devices.images import making, needs, roots
    from devices.images.cache import cache_folder

    engine = needs.choose_engine(options.engine)
    names = [image.name for image in _chosen(options, making.found(engine), making.current())]
    if names:
        making.remove(names, engine)
    files = roots.files(cache_folder()) if options.roots else []
    for path in files:
        path.unlink()
    removed = [*names, *map(str, files)]
    if options.json:
        print(json.dumps({"engine": engine, "removed": removed}))
    elif removed:
        print("\n".join(f"removed {one}" for one in removed))
    if not removed:
        raise NothingToDoError(f"{engine} has no such images of devices")
    return 0


def _chosen(options: argparse.Namespace, images: "tuple[Image, ...]", current: frozenset[str]) -> "list[Image]":
    """Those to be removed, devices' before the roots that they are made on."""
    asked = {LOCAL + name.removeprefix(LOCAL) for name in options.names}
    unknown = asked - {image.name for image in images}
    if unknown:
        raise ConfigurationError(f"{min(unknown)}: no image of ours; fleet-emulate images list shows them")
    devices = [image for image in images if image.kind == "device" and not (options.old and image.name in current)]
    chosen = devices + [image for image in images if image.kind == "root" and options.roots]
    return [image for image in images if image.name in asked] if asked else chosen
