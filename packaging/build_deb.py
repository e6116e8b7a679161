"""Builds the Debian packages: edge-agent and fleet-coordinator, each with an environment of its own, by dpkg-deb alone.

Nothing of the target runs here: wheels are files, so an environment for another architecture is unpacked wheels and
three links. It is of Debian 12's Python, 3.11.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from build_wheel import ROOT, build_wheel, pip, project

PYTHON = "3.11"
# Debian's name of an architecture -> Python's.
ARCHITECTURES: Mapping[str, str] = {"amd64": "x86_64", "arm64": "aarch64"}
HERE = Path(__file__).parent
# As zstd, which Debian 12's dpkg unpacks, in a fifth of the time that xz takes a board.
COMPRESSION = ("-Zzstd", "-z12")
FAST = ("-Zzstd", "-z1")


@dataclass(frozen=True, slots=True)
class Package:
    """One of the two. modules: of ours, what it needs; the rest of the wheel is left out."""

    name: str
    module: str
    modules: tuple[str, ...]
    configuration: str
    summary: str
    description: str
    recommends: str = ""


AGENT = Package(
    "edge-agent",
    "edge_agent",
    ("edge_agent", "protocol", "sparse"),
    "agent.toml",
    "trains a model on this device's data, as part of a fleet",
    "The device's end of sparsefleet: trains a PyTorch model on local data without PyTorch\n"
    " and sends compressed updates to a coordinator over MQTT. Nothing else leaves the device.",
)
COORDINATOR = Package(
    "fleet-coordinator",
    "coordinator",
    ("coordinator", "edge_agent", "protocol", "sparse"),
    "coordinator.toml",
    "plans rounds for a fleet of devices that train a model",
    "The server's end of sparsefleet: enrols devices, plans rounds, checks updates and folds\n"
    " them into the next model.",
    "mosquitto (>= 2.0)",
)
# Of libraries, what no device runs: their tests, their tools for programmers, and what a C compiler would read.
LEFT_OUT = (
    *("numpy/f2py", "numpy/distutils"),
    *(f"onnxruntime/{name}" for name in ("backend", "datasets", "quantization", "tools", "transformers")),
)
# The last is onnxruntime for programs in C; Python's module has one in itself.
FOR_COMPILERS = ("*.a", "*.h", "*.pxd", "*.pyi", "libonnxruntime.so.*")
PACKAGES: Mapping[str, Package] = {package.name: package for package in (AGENT, COORDINATOR)}


def build(
    package: Package, architecture: str, wheel: Path, version: str, out: Path, kept: Path, *, fast: bool = False
) -> Path:
    """The package's file, in the folder `out`. wheel: ours. kept: for what the next build can use again. fast: larger,
    for tests."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        _environment(package, architecture, wheel, root / "usr/lib" / package.name / "venv", kept)
        _command(package, root / "usr/bin" / package.name)
        _configuration(package, root)
        _documents(package, root / "usr/share/doc" / package.name)
        unit = root / "lib/systemd/system" / f"{package.name}.service"
        unit.parent.mkdir(parents=True)
        shutil.copy(HERE / package.name / unit.name, unit)
        _permissions(root)
        _control(package, architecture, version, root)
        deb = out / f"{package.name}_{version}_{architecture}.deb"
        out.mkdir(parents=True, exist_ok=True)
        _run("dpkg-deb", "--root-owner-group", *(FAST if fast else COMPRESSION), "--build", str(root), str(deb))
        return deb


def _environment(package: Package, architecture: str, wheel: Path, venv: Path, kept: Path) -> None:
    """A venv as `python -m venv` makes it, with wheels of that architecture, compiled so that no start compiles."""
    site = venv / "lib" / f"python{PYTHON}" / "site-packages"
    shutil.copytree(_third_party(package, architecture, kept), site)
    # From a folder, not as a file: of a file its path would be written down.
    ours = ("--no-index", "--find-links", str(wheel.parent), "sparsefleet==" + wheel.name.split("-")[1])
    pip("install", "--no-deps", "--no-compile", "--target", str(site), *_choice(architecture), *ours)
    shutil.rmtree(site / "bin", ignore_errors=True)
    for name in {"coordinator", "devices", "edge_agent", "export"} - set(package.modules):
        shutil.rmtree(site / name)
    # What removes channels from a torch module, where there is no torch.
    shutil.rmtree(site / "sparse" / "channels")
    for name in package.modules:
        _compile(site / name, f"{_site(package)}/{name}")
    (venv / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n")
    (venv / "bin").mkdir()
    (venv / "bin/python3").symlink_to(f"/usr/bin/python{PYTHON}")
    (venv / "bin/python").symlink_to("python3")


def _third_party(package: Package, architecture: str, kept: Path) -> Path:
    """Everything but our own wheel, compiled; the same for every version with the same pins, so it is made once."""
    pins = HERE / package.name / "requirements.txt"
    digest = hashlib.sha256(pins.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]
    folder = kept / f"{package.name}-{architecture}-{digest}"
    if not folder.exists():
        half = folder.with_name(f"{folder.name}.{os.getpid()}")
        pip("install", "--no-deps", "--no-compile", "--target", str(half), *_choice(architecture), "-r", str(pins))
        tests = [path for path in half.rglob("tests") if path.is_dir()]
        for leftover in (half / "bin", *tests, *(half / name for name in LEFT_OUT)):
            shutil.rmtree(leftover, ignore_errors=True)
        for pattern in FOR_COMPILERS:
            for path in half.rglob(pattern):
                path.unlink()
        _compile(half, _site(package))
        half.rename(folder)
    return folder


def _choice(architecture: str) -> tuple[str, ...]:
    # pip takes for another machine only what is named; Debian 12 has a newer glibc than either.
    machine = ARCHITECTURES[architecture]
    platforms = [word for glibc in ("2_28", "2_17") for word in ("--platform", f"manylinux_{glibc}_{machine}")]
    return ("--only-binary=:all:", "--python-version", PYTHON, *platforms)


def _site(package: Package) -> str:
    """Where the environment's libraries are on a device."""
    return f"/usr/lib/{package.name}/venv/lib/python{PYTHON}/site-packages"


def _compile(folder: Path, there: str) -> None:
    # By the source's hash, not its time, and never checked: files of a package change with the package alone.
    options = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", there)
    _run(_interpreter(), *options, str(folder))


def _interpreter() -> str:
    """A Python of the packages' version, whose compiled files they take; it may be another architecture's."""
    found = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which(f"python{PYTHON}")
    if found is None:
        sys.exit(f"build_deb: needs a Python {PYTHON}, as the packages are for; apt-get install python{PYTHON}")
    return found


def _command(package: Package, path: Path) -> None:
    # -P: the folder of this file holds every command of the machine, and none of our modules.
    path.parent.mkdir(parents=True)
    path.write_text(
        f"#!/usr/lib/{package.name}/venv/bin/python3 -P\nimport sys\n\nfrom {package.module}.cli import main\n\n"
        "sys.exit(main())\n"
    )


def _configuration(package: Package, root: Path) -> None:
    """An empty folder for it, and a sample. The file itself is the operator's, never dpkg's: `enroll` writes it, and no
    upgrade asks about it. Until it is there the service does not start."""
    (root / "etc" / package.name).mkdir(parents=True)
    sample = root / "usr/share" / package.name / f"{package.configuration}.sample"
    sample.parent.mkdir(parents=True)
    site = root / _site(package).lstrip("/")
    program = (
        f"import sys; sys.path.insert(0, sys.argv[1]); import {package.module}.sample as s; print(s.SAMPLE, end='')"
    )
    text = _run(_interpreter(), "-I", "-S", "-B", "-c", program, str(site))
    state = f"/var/lib/{package.name}"
    places = {"state": state} if package is AGENT else {"bundle": f"{state}/bundle", "state": f"{state}/state"}
    if package is COORDINATOR:
        places["folder"] = f"{state}/trust"
    for key, place in places.items():
        text, count = re.subn(rf'(?m)^{key} = "[^"]*" *', f'{key} = "{place}"  ', text)
        assert count == 1, f"{key} is {count} times in the sample of {package.name}"
    sample.write_text(text)
    if package is AGENT:
        (root / "etc" / package.name / "agent.d").mkdir()
        generator = root / "lib/systemd/system-generators/edge-agent-limits"
        generator.parent.mkdir(parents=True)
        shutil.copy(HERE / package.name / "limits-generator", generator)
        generator.chmod(0o755)


def _documents(package: Package, folder: Path) -> None:
    folder.mkdir(parents=True)
    licence = (ROOT / "LICENSE").read_text()
    (folder / "copyright").write_text(
        "sparsefleet, by the sparsefleet authors, under the licence below. The libraries in the environment carry\n"
        f"their licences in their .dist-info folders.\n\n{licence}"
    )
    shutil.copy(HERE / package.name / "requirements.txt", folder / "requirements.txt")


def _permissions(root: Path) -> None:
    """Whatever umask the builder had."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            program = path.is_dir() or path.parent.name in ("bin", "system-generators")
            path.chmod(0o755 if program else 0o644)


def _control(package: Package, architecture: str, version: str, root: Path) -> None:
    size = sum(path.lstat().st_size for path in root.rglob("*")) >> 10
    folder = root / "DEBIAN"
    folder.mkdir()
    recommends = f"Recommends: {package.recommends}\n" if package.recommends else ""
    major, minor = PYTHON.split(".")
    (folder / "control").write_text(
        f"Package: {package.name}\nVersion: {version}\nArchitecture: {architecture}\n"
        "Maintainer: The sparsefleet authors <sparsefleet@localhost>\nSection: science\nPriority: optional\n"
        f"Depends: python3 (>= {PYTHON}), python{PYTHON}, python3 (<< {major}.{int(minor) + 1}), libc6 (>= 2.28), "
        f"libstdc++6, adduser\n{recommends}"
        f"Installed-Size: {size}\nDescription: {package.summary}\n {package.description}\n"
    )
    for script in ("postinst", "prerm", "postrm"):
        text = (HERE / script).read_text().replace("@PACKAGE@", package.name)
        (folder / script).write_text(text.replace("@CONFIGURATION@", package.configuration))
        (folder / script).chmod(0o755)
    folder.chmod(0o755)


def _run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        sys.exit(f"build_deb: needs {command[0]}; apt-get install dpkg")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Build .deb packages for Debian 12, for this architecture or another.",
        epilog="example: python packaging/build_deb.py --package edge-agent --architecture arm64 --out dist",
    )
    parser.add_argument("--package", choices=PACKAGES, action="append", help="again for more (default: all)")
    parser.add_argument("--architecture", choices=ARCHITECTURES, action="append", help="likewise")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder (default: dist)")
    parser.add_argument("--source", type=Path, default=ROOT, help="tree to build (default: this one)")
    parser.add_argument("--keep", type=Path, help="folder for what the next build can use again (default: none)")
    parser.add_argument("--fast", action="store_true", help="larger packages, built sooner, for tests")
    parser.add_argument("--version", help="in place of pyproject.toml's")
    options = parser.parse_args()
    version, at_s = project(options.source)
    version = options.version or version
    os.environ["SOURCE_DATE_EPOCH"] = str(at_s)
    with tempfile.TemporaryDirectory() as folder:
        kept = options.keep or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        wheel = build_wheel(options.source, Path(folder), options.version)
        for name in options.package or PACKAGES:
            for architecture in options.architecture or ARCHITECTURES:
                print(
                    build(PACKAGES[name], architecture, wheel, version, options.out, kept, fast=options.fast),
                    flush=True,
                )


if __name__ == "__main__":
    main()
