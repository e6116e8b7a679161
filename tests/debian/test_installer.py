"""What install.sh does as root beside what the service's user owns; the package manager's commands are stand-ins."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The package is there already; whoever is asked to run something as the user notes it and runs it.
STAND_INS = {
    "id": "echo 0",
    "dpkg": "echo amd64",
    "apt-get": "exit 1",
    "dpkg-query": 'case "$2" in *Version*) printf 0.2.0 ;; *) printf installed ;; esac',
    "dpkg-deb": 'case "$3" in Package) echo edge-agent ;; Architecture) echo amd64 ;; *) echo 0.2.0 ;; esac',
    "runuser": 'echo "$@" >> "$NOTES"; shift 3; exec "$@"',
    "edge-agent": 'echo made > "$CONFIG"',
}


THERE = ("--coordinator", "h:1")


@dataclass(frozen=True)
class Board:
    """The script, with its folders below another."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "var/lib/edge-agent/data"

    @property
    def config(self) -> Path:
        return self.folder / "etc/edge-agent/agent.toml"

    @property
    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def install(self, *options: str, token: str = "token") -> subprocess.CompletedProcess[str]:
        given = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "NOTES": f"{self.folder}/notes"}
        script, package = self.folder / "install.sh", self.folder / "edge-agent.deb"
        return subprocess.run(
            ["sh", str(script), "--no-start", *options, "--device", "pi-1", str(package), token],
            env=given | {"CONFIG": str(self.config)},
            umask=0o077,
            capture_output=True,
            text=True,
            timeout=30,
        )


@pytest.fixture
def board(tmp_path: Path) -> Board:
    made = Board(tmp_path)
    for folder in (made.data.parent, made.config.parent, tmp_path / "bin"):
        folder.mkdir(parents=True)
    text = (ROOT / "packaging/install.sh").read_text()
    for absolute in ("/var/lib/edge-agent", "/etc/edge-agent"):
        text = text.replace(absolute, f"{tmp_path}{absolute}")
    (tmp_path / "install.sh").write_text(text)
    (tmp_path / "edge-agent.deb").touch()
    for name, body in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    return made


def test_the_data_folder_is_made_by_the_user_whose_folder_it_is_in(board: Board) -> None:
    done = board.install(*THERE)
    assert done.returncode == 0, done.stderr
    assert board.data.is_dir()
    assert f"-u edge-agent -- mkdir -p -m 0750 {board.data}" in board.notes


def test_a_link_that_the_user_put_there_is_not_followed(board: Board) -> None:
    victim = board.folder / "victim"
    board.data.symlink_to(victim)
    done = board.install(*THERE)
    assert done.returncode == 3, done.stderr
    assert f"{board.data} is a link" in done.stderr
    assert not victim.exists()


def test_the_services_user_can_read_the_configuration_whatever_roots_umask(board: Board) -> None:
    assert board.install(*THERE).returncode == 0
    assert board.config.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("options", "token", "said"),
    [((), "token", "where does this device enrol?"), (THERE, "@/no/such/token", "/no/such/token cannot be read")],
)
def test_what_enrolling_lacks_is_said_before_anything_is_installed(
    board: Board, options: tuple[str, ...], token: str, said: str
) -> None:
    (board.folder / "bin/dpkg-query").write_text("#!/bin/sh\nexit 1\n")
    done = board.install(*options, token=token)
    assert done.returncode == 3
    assert said in done.stderr
    assert "nothing was installed" in done.stderr
    assert "installed edge-agent" not in done.stdout
