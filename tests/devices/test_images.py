"""Images of devices: names that follow from what goes in, command lines, and what is said before anything starts."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devices.cli import main
from devices.images import ImageError, agent_package, making, needs, roots
from devices.images.cache import FOLDER
from devices.images.making import ensure, make, recipe
from devices.images.recipe import PACKAGES, REGISTRY, Recipe, build_command
from devices.images.roots import Root, import_command
from protocol.errors import ConfigurationError
from tests.devices.fake_engine import FakeEngine, fake_engine

BASE = "localhost/some-debian:12"


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The only program that can be found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    monkeypatch.setattr(needs, "here", lambda: "amd64")
    return fake_engine(folder, "podman")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "edge-agent_0.2.0_amd64.deb"
    path.write_bytes(b"a package")
    return path


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree of its own, for changes."""
    tree = tmp_path / "source"
    for part in ("edge_agent", "protocol", "sparse", "packaging/edge-agent"):
        (tree / part).mkdir(parents=True)
        (tree / part / "some.py").write_text("x = 1\n")
    (tree / "packaging/build_deb.py").write_text("raise SystemExit('no network')\n")
    (tree / "pyproject.toml").write_text('[project]\nversion = "0.3.0"\n')
    monkeypatch.setattr(agent_package, "SOURCE", tree)
    return tree


def test_the_same_source_has_the_same_name_and_changed_code_another(source: Path) -> None:
    before = Recipe("amd64").name()
    assert before.startswith("localhost/sparsefleet-device:0.3.0-amd64-")
    assert Recipe("amd64").name() == before
    cached = source / "protocol" / "__pycache__"
    cached.mkdir()
    (cached / "some.pyc").write_bytes(b"compiled")
    assert Recipe("amd64").name() == before
    (source / "protocol" / "some.py").write_text("x = 2\n")
    assert Recipe("amd64").name() != before


def test_a_file_that_moves_between_folders_is_a_change_even_if_all_bytes_are_the_same(source: Path) -> None:
    before = Recipe("amd64").name()
    (source / "protocol" / "some.py").rename(source / "protocol" / "other.py")
    assert Recipe("amd64").name() != before


def test_architecture_base_and_package_are_in_the_name(package: Path) -> None:
    other = package.with_name("edge-agent_0.2.1_amd64.deb")
    other.write_bytes(b"another package")
    names = {
        Recipe("amd64").name(),
        Recipe("arm64").name(),
        Recipe("amd64", base=REGISTRY).name(),
        Recipe("amd64", package=package).name(),
        Recipe("amd64", package=other).name(),
    }
    assert len(names) == 5


def test_an_image_is_built_once_of_the_package_and_the_clocks_file(engine: FakeEngine, package: Path) -> None:
    wanted = recipe("amd64", BASE, package)
    name = make(wanted, "podman")
    assert make(wanted, "podman") == name
    (words,) = engine.told("build")
    assert engine.context() == [package.name, "fleet-emulate", "fleet-emulate/sitecustomize.py"]
    assert {"BASE=" + BASE, "ARCHITECTURE=amd64", "USER_ID=990", f"sparsefleet.base={BASE}"} <= set(words)
    package.write_bytes(b"a changed package")
    assert make(wanted, "podman") != name
    assert len(engine.told("build")) == 2


def test_of_two_that_want_the_same_image_at_once_one_makes_it(engine: FakeEngine, package: Path) -> None:
    wanted = recipe("amd64", BASE, package)
    with ThreadPoolExecutor(2) as both:
        names = set(both.map(lambda _: make(wanted, "podman"), range(2)))
    assert names == {wanted.name()}
    assert len(engine.told("build")) == 1


def test_what_stands_on_a_root_is_built_without_a_network_and_what_stands_on_anothers_base_with_one() -> None:
    own = build_command(Recipe("amd64"), "a:1-2", BASE, Path("context"), "podman")
    others = build_command(Recipe("arm64", base=REGISTRY), "a:1-2", REGISTRY, Path("context"), "podman")
    assert own[own.index("--network") + 1] == "none"
    assert others[others.index("--network") + 1] == "host"
    assert others[others.index("--platform") + 1] == "linux/arm64"


def test_healthchecks_are_kept_by_podman_only_in_dockers_format_which_docker_has_no_option_for() -> None:
    podman = build_command(Recipe("amd64"), "a:1-2", BASE, Path("context"), "podman")
    docker = build_command(Recipe("amd64"), "a:1-2", BASE, Path("context"), "docker")
    assert podman[podman.index("--format") + 1] == "docker"
    assert docker[:2] == ("docker", "build")
    assert "--format" not in docker
    assert "--layers=false" not in docker


def test_a_root_has_what_the_package_depends_on_and_is_known_to_the_engine_as_of_its_architecture() -> None:
    root = Root("arm64", PACKAGES, slim=True)
    words = root.command(Path("to.tar"))
    assert words[:3] == ("mmdebstrap", "--quiet", "--variant=minbase")
    assert words[-2:] == ("bookworm", "to.tar")
    assert "--architectures=arm64" in words
    assert "--include=usr-is-merged,adduser,libfaketime,libstdc++6,python3" in words
    assert "--dpkgopt=path-exclude=/usr/share/man/*" in words
    podman, docker = (import_command(root, Path("root.tar"), name) for name in ("podman", "docker"))
    assert podman[podman.index("--arch") + 1] == "arm64"
    assert docker[docker.index("--platform") + 1] == "linux/arm64"
    assert podman[-2:] == docker[-2:] == ("root.tar", root.image)


def test_roots_that_differ_have_other_names() -> None:
    roots = {Root("amd64"), Root("arm64"), Root("amd64", ("python3",)), Root("amd64", (), ("python3",))}
    assert len({root.image for root in roots} | {Root("amd64", slim=True).image}) == 5


def test_without_mmdebstrap_images_stand_on_debians_own(engine: FakeEngine) -> None:
    assert recipe("amd64").base == REGISTRY


def test_without_a_registry_the_other_way_is_named(engine: FakeEngine, package: Path) -> None:
    engine.fail()
    with pytest.raises(ImageError, match=r"(?s)if there is no registry here, apt-get install mmdebstrap.*no route"):
        make(recipe("amd64", None, package), "podman")


def test_without_wheels_the_package_can_be_given(engine: FakeEngine, source: Path) -> None:
    with pytest.raises(
        ImageError, match=r"(?s)build it elsewhere \(make deb\) and give it with --deb FILE.*no network"
    ):
        ensure("amd64", "podman")
    assert engine.told("build") == []


def test_without_an_engine_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConfigurationError, match=r"no podman or docker.*apt-get install --no-install-recommends podman"
    ):
        needs.choose_engine(None)
    with pytest.raises(ConfigurationError, match="no docker on this machine"):
        ensure("amd64", "docker")


def test_an_engine_that_does_not_answer_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Path
) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2; exit 1\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(ImageError, match=r"(?s)is its service started.*Cannot connect to the Docker daemon"):
        make(Recipe("amd64", BASE, package), "docker")


def test_without_emulation_an_arm64_image_is_refused_with_what_to_install(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "BINFMT", tmp_path / "none")
    with pytest.raises(ConfigurationError) as said:
        making.check(Recipe("arm64", BASE), "podman", tmp_path)
    assert "apt-get install --no-install-recommends arch-test binfmt-support qemu-user-static" in str(said.value)


def test_who_may_not_make_the_kernel_emulate_is_told_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in needs.EMULATION_TOOLS:
        (tmp_path / tool).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(needs, "BINFMT", tmp_path / "none")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert needs.emulate().endswith("sudo update-binfmts --enable qemu-aarch64")


def test_who_is_not_root_needs_user_ids_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("mmdebstrap", "newuidmap"):
        (tmp_path / tool).touch(mode=0o755)
    subordinate = tmp_path / "subuid"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(needs, "SUBORDINATE", subordinate)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("getpass.getuser", lambda: "pat")
    assert "sudo usermod --add-subuids" in needs.may_make_roots()
    subordinate.write_text("pat:100000:65536\n")
    assert needs.may_make_roots() == ""


def test_places_on_one_disk_must_have_room_for_all_of_them(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free >> 20
    half = free * 3 // 4
    assert needs.room([(tmp_path / "yet" / "to be made", half)]) == ""
    assert f"MiB free and {2 * half} MiB are needed" in needs.room([(tmp_path, half), (tmp_path / "store", half)])


def test_a_full_disk_and_all_else_that_is_missing_are_said_together(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Path
) -> None:
    monkeypatch.setattr(needs, "STORE_MIB", 1 << 40)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(ConfigurationError, match=r"needs mmdebstrap; apt-get install .*; .* has \d+ MiB free"):
        make(Recipe("amd64", None, package), "podman")
    assert engine.told("build") == []


@pytest.mark.parametrize(
    ("name", "text"),
    [("edge-agent_0.2.0_arm64.deb", "not for amd64"), ("agent.deb", "not named as"), ("none.deb", "no such file")],
)
def test_a_package_that_does_not_fit_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    if name != "none.deb":
        path.write_bytes(b"")
    with pytest.raises(ConfigurationError, match=text):
        agent_package.check("amd64", path)


def test_an_installed_wheel_has_no_source_and_asks_for_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_package, "SOURCE", tmp_path)
    with pytest.raises(ConfigurationError, match="give one: fleet-emulate images build --deb FILE"):
        agent_package.check("amd64", None)
    assert making.current() == frozenset()


def test_without_a_source_a_fleet_takes_the_image_that_was_built_of_a_package(
    engine: FakeEngine, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_package, "SOURCE", tmp_path)
    with pytest.raises(ConfigurationError, match="--deb FILE"):
        ensure("amd64", "podman")
    name = make(recipe("amd64", BASE, package), "podman")
    assert ensure("amd64", "podman") == name
    with pytest.raises(ConfigurationError, match="--deb FILE"):
        ensure("arm64", "podman")


def test_images_are_built_listed_and_removed_by_command(
    engine: FakeEngine, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["images", "build", "--arch", "amd64", "--base", BASE, "--deb", str(package), "--json"]
    assert main(build) == 0
    (built,) = json.loads(capsys.readouterr().out)["images"]
    assert (built["built"], built["kind"], built["version"]) == (True, "device", "0.2.0")
    assert main(build) == 0
    (again,) = json.loads(capsys.readouterr().out)["images"]
    assert (again["built"], again["name"]) == (False, built["name"])
    assert main(["images", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["images"]
    assert (listed["name"], listed["current"]) == (built["name"], False)
    assert main(["images", "remove", "no-such-image"]) == 3
    assert main(["images", "remove", built["name"].removeprefix("localhost/")]) == 0
    assert engine.told("rmi") == [["rmi", built["name"]]]
    assert main(["images", "remove", "--old"]) == 2
    assert main(["images", "list"]) == 2


def test_roots_are_removed_only_when_asked_for_with_their_files(
    engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Root("amd64")
    (tmp_path / "cache").mkdir()
    root.file(tmp_path / "cache").write_bytes(b"a root")
    roots.imported(root, tmp_path / "cache", "podman")
    assert main(["images", "remove"]) == 2
    assert main(["images", "remove", "--roots"]) == 0
    assert engine.told("rmi") == [["rmi", root.image]]
    assert not root.file(tmp_path / "cache").exists()


def test_what_others_built_on_an_image_of_ours_is_not_ours(
    engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.has("localhost/edge-agent:test", {"sparsefleet.kind": "root"})
    assert main(["images", "remove", "--roots"]) == 2
    assert engine.told("rmi") == []


def test_packages_of_architectures_that_are_not_asked_for_are_refused(engine: FakeEngine, package: Path) -> None:
    assert main(["images", "build", "--arch", "arm64", "--deb", str(package)]) == 3
    assert main(["images", "build", "--arch", "all", "--deb", str(package), "--deb", str(package)]) == 3
