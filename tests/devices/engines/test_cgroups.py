"""Control groups of both versions, as the kernel lays them out in files."""

from pathlib import Path

import pytest

from devices.engines.cgroups import Cgroup, CgroupError, cgroup_of

_ID = "c0ffee" * 10
_MIB = 1 << 20


def put(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")
    return folder


def proc(folder: Path, membership: str, mounts: str) -> Path:
    """A /proc with process 7 in it, its groups, and what is mounted."""
    put(folder / "7", {"cgroup": membership})
    put(folder / "self", {"mountinfo": mounts})
    return folder


def test_version_2_is_read_where_the_engine_set_the_limits_above_the_process(tmp_path: Path) -> None:
    group = put(
        tmp_path / f"fs/machine.slice/libpod-{_ID}.scope",
        {
            "cpu.max": "25000 100000",
            "cpu.stat": "usage_usec 1500000\nuser_usec 1000000",
            "memory.max": str(64 * _MIB),
            "memory.swap.max": "0",
            "memory.current": str(12 * _MIB),
            "memory.stat": f"anon 1\ninactive_file {2 * _MIB}",
            "memory.peak": str(20 * _MIB),
            "memory.events": "low 0\noom 3\noom_kill 2",
        },
    )
    put(group / "container", {"cpu.max": "max 100000", "memory.max": "max"})
    mounts = f"30 1 0:26 / {tmp_path}/fs rw - cgroup2 cgroup2 rw,nsdelegate"
    path = proc(tmp_path / "proc", f"0::/machine.slice/libpod-{_ID}.scope/container", mounts)
    found = cgroup_of(7, _ID, path)
    assert (found.cores(), found.memory_mib(), found.swap_mib()) == (0.25, 64, 0)
    assert (found.used_mib(), found.peak_mib(), found.cpu_s()) == (10.0, 20.0, 1.5)
    assert found.out_of_memory_kills() == 2
    found.set_cores(0.5)
    assert (group / "cpu.max").read_text() == "50000 100000"
    found.set_cores(None)
    assert (group / "cpu.max").read_text() == "max 100000"


def test_version_1_is_read_from_each_controllers_own_place(tmp_path: Path) -> None:
    place = f"libpod_parent/libpod-{_ID}"
    cpu = put(tmp_path / "cpu,cpuacct" / place, {"cpu.cfs_quota_us": "12500", "cpu.cfs_period_us": "100000"})
    put(cpu, {"cpuacct.usage": "2500000000"})
    put(
        tmp_path / "memory" / place,
        {
            "memory.limit_in_bytes": str(64 * _MIB),
            "memory.memsw.limit_in_bytes": str(80 * _MIB),
            "memory.usage_in_bytes": str(12 * _MIB),
            "memory.stat": f"inactive_file 1\ntotal_inactive_file {2 * _MIB}",
            "memory.max_usage_in_bytes": str(20 * _MIB),
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1",
        },
    )
    mounts = (
        f"31 1 0:27 / {tmp_path}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        f"32 1 0:28 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n"
        f"33 1 0:29 / {tmp_path}/unified rw - cgroup2 cgroup2 rw"
    )
    path = proc(tmp_path / "proc", f"4:memory:/{place}\n3:cpu,cpuacct:/{place}\n0::/{place}", mounts)
    found = cgroup_of(7, _ID, path)
    assert (found.cores(), found.memory_mib(), found.swap_mib()) == (0.125, 64, 16)
    assert (found.used_mib(), found.peak_mib(), found.cpu_s()) == (10.0, 20.0, 2.5)
    assert found.out_of_memory_kills() == 1
    found.set_cores(0.5)
    assert (cpu / "cpu.cfs_quota_us").read_text() == "50000"
    # Of a tenth of a second the kernel would give no less than a hundredth of a core.
    found.set_cores(0.004)
    assert (found.cores(), (cpu / "cpu.cfs_period_us").read_text()) == (0.004, "1000000")
    found.set_cores(None)
    assert found.cores() is None


def test_a_mount_that_shows_a_part_of_the_hierarchy_is_counted_from_there(tmp_path: Path) -> None:
    put(tmp_path / "shown" / "inner", {"memory.max": str(8 * _MIB)})
    mounts = f"30 1 0:26 /outer {tmp_path}/shown rw - cgroup2 cgroup2 rw"
    assert cgroup_of(7, "", proc(tmp_path / "proc", "0::/outer/inner", mounts)).memory_mib() == 8
    (tmp_path / "proc/7/cgroup").write_text("0::/elsewhere\n")
    assert cgroup_of(7, "", tmp_path / "proc") == Cgroup()


def test_what_is_not_limited_or_not_told_is_none(tmp_path: Path) -> None:
    group = Cgroup({"": put(tmp_path, {"cpu.max": "max 100000", "memory.max": "max"})})
    assert (group.cores(), group.memory_mib(), group.swap_mib(), group.peak_mib()) == (None, None, None, None)
    old = Cgroup({"memory": put(tmp_path / "old", {"memory.limit_in_bytes": "9223372036854771712"})})
    assert old.memory_mib() is None
    assert Cgroup().out_of_memory_kills() == 0
    assert cgroup_of(1 << 22) == Cgroup()


def test_a_quota_that_nobody_keeps_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CgroupError, match="cpu controller"):
        Cgroup({"memory": tmp_path}).set_cores(0.5)
    with pytest.raises(CgroupError, match="does not take"):
        Cgroup({"cpu": tmp_path / "gone"}).set_cores(0.5)
