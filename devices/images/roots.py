"""Debian roots as files, made by mmdebstrap from Debian's archive and kept: no image registry is asked."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.fleet.board import Architecture
from devices.images.cache import alone
from devices.images.commands import EngineName, do, engine_words, succeeds

SUITE = "bookworm"
# The Python of that suite: wheels are chosen for it.
PYTHON = "3.11"
NAME = "localhost/sparsefleet-root"
# What a container does not need of its packages; dpkg leaves it out of later ones too. Character sets are iconv's, and
# Python has its own.
UNWANTED = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/share/bash-completion/*",
    "/usr/lib/*/gconv/*",
)
WANTED = ("/usr/share/doc/*/copyright", "/usr/lib/*/gconv/gconv-modules")
# Merged from the start, as Debian's own images are: the package that would merge it later brings Perl, 50 MB.
_MERGED = ("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",)


@dataclass(frozen=True, slots=True)
class Root:
    """What is asked of mmdebstrap. included: packages in it; downloaded: those that lie ready and are not installed."""

    architecture: Architecture
    included: tuple[str, ...] = ()
    downloaded: tuple[str, ...] = ()
    slim: bool = False
    suite: str = SUITE

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.suite, self._words())).encode()).hexdigest()[:12]

    @property
    def image(self) -> str:
        """The name that it is imported under."""
        return f"{NAME}:{self.suite}-{self.architecture}-{self.digest}"

    def file(self, cache: Path) -> Path:
        return cache / f"{self.suite}-{self.architecture}-{self.digest}.tar"

    def command(self, to: Path) -> tuple[str, ...]:
        """The command line that makes it. mmdebstrap chooses its mode: as root, or in a user namespace."""
        return ("mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", *self._words(), self.suite, str(to))

    def _words(self) -> Sequence[str]:
        included = (*(("usr-is-merged",) if self.slim else ()), *self.included)
        words = [f"--architectures={self.architecture}"]
        if included:
            words.append(f"--include={','.join(included)}")
        if self.slim:
            words += [f"--dpkgopt=path-exclude={path}" for path in UNWANTED]
            words += [f"--dpkgopt=path-include={path}" for path in WANTED]
            words += _MERGED
        if self.downloaded:
            words += ["--skip=cleanup/apt/lists,cleanup/apt/cache", f"--customize-hook={_download(self.downloaded)}"]
        return words


def made(root: Root, cache: Path) -> Path:
    """The root's file, made where it is not there yet: half a minute, or three where it is emulated."""
    path = root.file(cache)
    with alone(cache, path.stem):
        if not path.exists():
            half = path.with_name(f"{path.stem}.{os.getpid()}.half")
            try:
                do(*root.command(half))
                half.rename(path)
            finally:
                half.unlink(missing_ok=True)
    return path


def files(cache: Path) -> list[Path]:
    """All that `made` has left there, of whatever recipe."""
    return sorted(cache.glob("*-*-????????????.tar"))


def imported(root: Root, cache: Path, engine: EngineName) -> str:
    """The name of the root's image, which the engine has afterwards."""
    if not succeeds(*engine_words(engine), "image", "inspect", root.image):
        do(*import_command(root, made(root, cache), engine))
    return root.image


def import_command(root: Root, file: Path, engine: EngineName) -> tuple[str, ...]:
    """The command line that makes an image of a root's file."""
    if engine == "docker":
        platform: tuple[str, ...] = ("--platform", f"linux/{root.architecture}")
    else:
        platform = ("--quiet", "--os", "linux", "--arch", root.architecture)
    return (
        *engine_words(engine),
        "import",
        *platform,
        "--change",
        "LABEL sparsefleet.kind=root",
        str(file),
        root.image,
    )


def _download(packages: Sequence[str]) -> str:
    words = "apt-get -qq --yes --download-only --no-install-recommends install"
    return f'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" {words} {" ".join(packages)}'
