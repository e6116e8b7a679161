"""What an image is made of, and the name that follows from it: the same name is the same image."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from devices.fleet.board import Architecture
from devices.images import agent_package, clock
from devices.images.commands import ULIMITS, EngineName, engine_words
from devices.images.roots import Root

HERE = Path(__file__).parent
CONTAINERFILE = HERE / "Containerfile"
NAME = "localhost/sparsefleet-device"
# Where there is an image registry to ask.
REGISTRY = "docker.io/library/debian:12-slim"
# The agent's user there: whose a device's folders must be.
USER_ID = 990
# What the agent's package depends on, and libfaketime.
PACKAGES = ("adduser", "libfaketime", "libstdc++6", "python3")


@dataclass(frozen=True, slots=True)
class Recipe:
    """base: an image's name, or None for a root by mmdebstrap. package: None for one that is built from the source."""

    architecture: Architecture
    base: str | None = None
    package: Path | None = None

    @property
    def root(self) -> Root:
        return Root(self.architecture, PACKAGES, slim=True)

    @property
    def version(self) -> str:
        return agent_package.version(self.package)

    def digest(self) -> str:
        """Of all that goes into it; what the archive or a registry answers today is not in it."""
        found = hashlib.sha256()
        for part in (self.base or self.root.image, agent_package.digest(self.architecture, self.package)):
            found.update(f"{part}\n".encode())
        for path in (CONTAINERFILE, HERE / "sleeping.py"):
            found.update(path.read_bytes())
        return found.hexdigest()[:12]

    def name(self) -> str:
        return f"{NAME}:{self.version}-{self.architecture}-{self.digest()}"


def build_command(recipe: Recipe, name: str, base: str, context: Path, engine: EngineName) -> tuple[str, ...]:
    """The command line that makes an image from a base and a folder with what goes on top."""
    labels = {
        "sparsefleet.kind": "device",
        "sparsefleet.version": recipe.version,
        "sparsefleet.architecture": recipe.architecture,
        "sparsefleet.digest": name.rpartition("-")[2],
        "sparsefleet.base": base,
    }
    arguments = {"BASE": base, "ARCHITECTURE": recipe.architecture, "USER_ID": str(USER_ID)}
    own = ("--layers=false", "--format", "docker", "--quiet", *ULIMITS) if engine == "podman" else ("--quiet",)
    # A root has all that is needed; only a base of another's must be completed from Debian's archive.
    network = "none" if recipe.base is None else "host"
    return (
        *(*engine_words(engine), "build", *own, "--network", network, "--platform", f"linux/{recipe.architecture}"),
        *(word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")),
        *(word for key, value in labels.items() for word in ("--label", f"{key}={value}")),
        *("--tag", name, "--file", str(CONTAINERFILE), str(context)),
    )


def fill(context: Path, package: Path) -> None:
    """Lays into a build's folder what goes into the image."""
    shutil.copy(package, context)
    shim = context / Path(clock.SHIM).name
    shim.mkdir()
    (shim / "sitecustomize.py").write_bytes((HERE / "sleeping.py").read_bytes())
    for path in (context, shim, shim / "sitecustomize.py"):
        path.chmod(0o644 if path.is_file() else 0o755)
