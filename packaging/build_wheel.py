"""Builds the project's wheel from a copy of what belongs in it: a build in place would find what earlier builds left.

A program by its path (`python packaging/build_wheel.py --out dist`), for this folder has the name of a library.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build_wheel(source: Path, out: Path, version: str | None = None) -> Path:
    """The wheel of the tree in `source`, written to the folder `out`; under another version if one is given."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "source"
        _copy_sources(source, copy)
        if version is not None:
            _set_version(copy / "pyproject.toml", version)
        made = Path(folder) / "wheel"
        pip("wheel", "--no-deps", "--wheel-dir", str(made), str(copy))
        (wheel,) = made.glob("*.whl")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(wheel, out / wheel.name))


def pip(*arguments: str) -> None:
    """Runs this Python's pip, without its other configurations of output. Raises SystemExit with what it said."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"pip {' '.join(arguments)} failed:\n{done.stderr.strip()[-2000:]}")


def project(source: Path) -> tuple[str, int]:
    """Its version, and the time that everything in a package is given: of the last commit, so that the same source
    makes the same package."""
    version = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        said = subprocess.run(["git", "-C", str(source), "log", "-1", "--format=%ct"], capture_output=True, text=True)
        given = said.stdout.strip() or str(int((source / "pyproject.toml").stat().st_mtime))
    return str(version), int(given)


def _copy_sources(source: Path, copy: Path) -> None:
    table = tomllib.loads((source / "pyproject.toml").read_text())
    copy.mkdir(parents=True)
    for name in ("pyproject.toml", *table["project"]["license-files"], table["project"]["readme"]):
        shutil.copy(source / name, copy / name)
    for pattern in table["tool"]["setuptools"]["packages"]["find"]["include"]:
        name = pattern.removesuffix("*")
        shutil.copytree(source / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))


def _set_version(path: Path, version: str) -> None:
    text = path.read_text()
    old = tomllib.loads(text)["project"]["version"]
    path.write_text(text.replace(f'version = "{old}"', f'version = "{version}"', 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Build the wheel that every part is installed from.",
        epilog='example: python packaging/build_wheel.py --out dist && pip install "$(echo dist/*.whl)[agent]"',
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder (default: dist)")
    parser.add_argument("--source", type=Path, default=ROOT, help="tree to build (default: this one)")
    parser.add_argument("--version", help="in place of pyproject.toml's")
    options = parser.parse_args()
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(project(options.source)[1]))
    print(build_wheel(options.source, options.out, options.version))


if __name__ == "__main__":
    main()
