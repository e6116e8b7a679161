"""The agent's Debian package for an image: a file that is given, or built from the source tree that this is part of."""

import hashlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from devices.fleet.board import Architecture
from devices.images.commands import ImageError, do
from protocol.errors import ConfigurationError

SOURCE = Path(__file__).parents[2]
# Of the tree, what the package is built from.
_PARTS = ("edge_agent", "protocol", "sparse", "packaging/edge-agent")
_FILES = ("pyproject.toml", "packaging/build_deb.py", "packaging/build_wheel.py", "packaging/post*", "packaging/pre*")
_NAME = re.compile(r"edge-agent_(?P<version>[0-9A-Za-z.+~-]+)_(?P<architecture>[a-z0-9]+)\.deb")


def digest(architecture: Architecture, given: Path | None) -> str:
    """Of what the package is or would be made from."""
    found = hashlib.sha256(architecture.encode())
    if given is not None:
        found.update(given.read_bytes())
    else:
        for path in _sources():
            found.update(f"{path.relative_to(SOURCE)}\0{path.stat().st_size}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def version(given: Path | None) -> str:
    """The agent's version in it."""
    if given is not None:
        return _named(given)["version"]
    return str(tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]["version"])


def has_source() -> bool:
    """Whether there is a tree to build it from; an installed wheel has none."""
    return (SOURCE / "packaging/build_deb.py").is_file()


def check(architecture: Architecture, given: Path | None) -> None:
    """Raises ConfigurationError where there will be no package for an image."""
    if given is None:
        if not has_source():
            raise ConfigurationError(
                f"no source tree round {SOURCE / 'devices'} to build the agent's package from; "
                "give one: fleet-emulate images build --deb FILE"
            )
    elif not given.is_file():
        raise ConfigurationError(f"--deb {given}: no such file")
    elif _named(given)["architecture"] != architecture:
        raise ConfigurationError(f"--deb {given}: not for {architecture}, by its name; give --arch or another file")


def built(architecture: Architecture, folder: Path, cache: Path) -> Path:
    """Builds the package into a folder, with the third parties' wheels kept in `cache`. Raises ImageError."""
    options = ("--package", "edge-agent", "--architecture", architecture, "--fast")
    places = ("--out", str(folder), "--keep", str(cache / "deb"))
    try:
        do(sys.executable, str(SOURCE / "packaging/build_deb.py"), *options, *places)
    except ImageError as error:
        raise ImageError(
            f"the agent's package was not built; where its wheels cannot be downloaded, build it elsewhere (make deb) "
            f"and give it with --deb FILE\n{error}"
        ) from None
    (found,) = folder.glob(f"edge-agent_*_{architecture}.deb")
    return found


def _named(package: Path) -> re.Match[str]:
    match = _NAME.fullmatch(package.name)
    if match is None:
        raise ConfigurationError(f"--deb {package}: not named as edge-agent_VERSION_ARCHITECTURE.deb")
    return match


def _sources() -> Iterator[Path]:
    for pattern in _FILES:
        yield from sorted(SOURCE.glob(pattern))
    for part in _PARTS:
        yield from sorted(
            path for path in (SOURCE / part).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        )
