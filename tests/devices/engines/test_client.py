"""The engines' command line against a command that behaves as they do where they fail."""

from pathlib import Path

import pytest

from devices.engines.client import Client, limits_of_users
from devices.engines.containers import Containers
from devices.engines.engine import EngineError

# A podman whose own runtime cannot start containers, and whose runc can.
_PODMAN = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
case "$*" in
  "--runtime runc run "*) echo started;;
  *" run "*|"run "*) echo "Error: OCI runtime error: crun: unknown version of cgroup" >&2; exit 126;;
  "container inspect gone") echo "Error: no such container gone" >&2; exit 125;;
  "container inspect "*) cat "$(dirname "$0")/inspected";;
  "sleep") exec sleep 1000;;
esac
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH but for the shell's own, with a podman and a runc that may be called."""
    for name, text in (("podman", _PODMAN), ("runc", "#!/bin/sh\n"), ("crun", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def calls(tools: Path) -> list[str]:
    return (tools / "calls").read_text().splitlines()


def test_where_the_default_runtime_fails_another_is_tried_and_kept(tools: Path) -> None:
    client = Client("podman")
    client.begin("a", ("image",))
    assert client.runtime == "runc"
    assert calls(tools) == [
        "run --detach --name a image",
        "rm --force a",
        "--runtime crun run --detach --name a image",
        "rm --force a",
        "--runtime runc run --detach --name a image",
    ]
    client.begin("b", ("image",))
    assert calls(tools)[5:] == ["--runtime runc run --detach --name b image"]


def test_where_no_runtime_can_each_ones_words_are_told(tools: Path) -> None:
    (tools / "podman").write_text(_PODMAN.replace("--runtime runc run", "never"))
    with pytest.raises(EngineError, match=r"default runtime: .*cgroup; crun: .*cgroup; runc: .*cgroup"):
        Client("podman").begin("a", ("image",))


def test_a_refusal_that_is_not_the_runtimes_is_told_at_once(tools: Path) -> None:
    text = _PODMAN.replace("OCI runtime error: crun: unknown version of cgroup", "image not known")
    (tools / "podman").write_text(text)
    with pytest.raises(EngineError, match="image not known"):
        Client("podman").begin("a", ("image",))
    assert calls(tools) == ["run --detach --name a image", "rm --force a"]


def test_a_container_that_is_not_there_is_none_and_a_command_that_is_not_there_says_what_to_install(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Client("podman").inspect("gone") is None
    (tools / "podman").unlink()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(EngineError, match="apt-get install podman"):
        Client("podman").inspect("gone")


def test_a_command_that_hangs_is_given_up(tools: Path) -> None:
    with pytest.raises(EngineError, match=r"took more than 0\.2 s"):
        Client("podman").call("sleep", timeout_s=0.2)


def test_a_container_whose_end_is_not_noted_yet_has_not_ended(tools: Path) -> None:
    engine = Containers("podman")
    said = '[{"Id": "c0ffee", "State": {"Status": "%s", "Pid": 0, "ExitCode": %d}, "HostConfig": {"Memory": 0}}]'
    said = said.replace('"ExitCode"', '"StartedAt": "2026-11-23T15:00:00.123456789+01:00", "ExitCode"')
    (tools / "inspected").write_text(said % ("running", 0))
    assert engine.condition("fleet", "a").state == "running"
    (tools / "inspected").write_text(said % ("exited", 5))
    ended = engine.condition("fleet", "a")
    assert (ended.state, ended.exit_code) == ("ended", 5)


def test_limits_of_users_are_never_above_our_own() -> None:
    files, processes = limits_of_users()[1], limits_of_users()[3]
    assert files.startswith("nofile=")
    soft, hard = (int(part) for part in files.removeprefix("nofile=").split(":"))
    assert 0 < soft <= 1024 <= hard or soft == hard
    assert processes.startswith("nproc=")


_CROWDED = """#!/bin/sh
cd "$(dirname "$0")"
echo "$@" >> calls
case "$1" in
  ps) cat names;;
  rm)
    case "$*" in
      *.link) mv later names;;
      *.run) : > names;;
    esac
    echo "no such container" >&2
    exit 1;;
esac
"""


def test_what_is_started_or_goes_while_a_fleet_is_taken_away_is_looked_for_again(tools: Path) -> None:
    (tools / "podman").write_text(_CROWDED)
    (tools / "names").write_text("sparsefleet.f.a sparsefleet.f.a.link")
    (tools / "later").write_text("sparsefleet.f.a.run")
    Containers("podman").remove("f")
    assert [words for words in calls(tools) if words.startswith("rm")] == [
        "rm --force --volumes sparsefleet.f.a",
        "rm --force --volumes sparsefleet.f.a.link",
        "rm --force --volumes sparsefleet.f.a.run",
    ]


def test_what_an_engine_refuses_to_take_away_is_told_in_its_words(tools: Path) -> None:
    (tools / "podman").write_text(_CROWDED.replace(": > names", ":"))
    (tools / "names").write_text("sparsefleet.f.a")
    with pytest.raises(EngineError, match="podman rm: no such container"):
        Containers("podman").remove("f")
