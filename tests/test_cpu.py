"""Threads within affinity, cgroup v1 and v2 quotas, on made-up /proc and /sys trees as the kernel writes them; the processor's name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gmf_edge import cpu
from gmf_edge.cpu import core_count, cpu_features, cpu_name, cpu_quota, engine_threads
from gmf_edge.errors import SpecError

V2_MOUNT = "29 23 0:26 {root} /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "33 31 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"

Tree = Callable[[Mapping[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """tree({path: content}): a root with these files."""

    def make(files: Mapping[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """machine(64, usable=...): processors that are there, and those that this process may use."""

    def be(present: int, usable: frozenset[int] | None = None) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: present)
        monkeypatch.setattr(cpu, "usable_processors", lambda: usable or frozenset(range(present)))

    return be


def siblings(pairs: int) -> dict[str, str]:
    """Of `pairs` cores with two hardware threads each, numbered as Linux does: 0 and n, 1 and n + 1."""
    topology = "sys/devices/system/cpu/cpu{}/topology/core_cpus_list"
    return {topology.format(number): f"{number % pairs},{number % pairs + pairs}\n" for number in range(2 * pairs)}


def test_a_free_machine_gives_a_thread_a_core(tree: Tree, machine: Callable[..., None]) -> None:
    machine(8)
    found = engine_threads(root=tree({}))
    assert (found.count, found.limited, found.reason) == (8, False, "8 cores")


def test_hardware_threads_of_one_core_count_once(tree: Tree, machine: Callable[..., None]) -> None:
    machine(8)
    found = engine_threads(root=tree(siblings(4)))
    assert (found.count, found.limited, found.reason) == (4, False, "4 cores of 8 hardware threads")


def test_older_kernels_call_siblings_otherwise(tree: Tree) -> None:
    root = tree({f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list": "0-1\n" for number in (0, 1)})
    assert core_count(frozenset({0, 1}), root) == 1


def test_a_cpuset_of_two_of_64_processors_gives_two_threads(tree: Tree, machine: Callable[..., None]) -> None:
    machine(64, frozenset({5, 6}))
    found = engine_threads(root=tree(siblings(32)))
    assert (found.count, found.limited) == (2, True)
    assert found.reason == "2 cores (this process may use 2 of 64 processors)"


def test_a_cpuset_of_both_threads_of_one_core_gives_one(tree: Tree, machine: Callable[..., None]) -> None:
    machine(64, frozenset({5, 37}))
    assert engine_threads(root=tree(siblings(32))).count == 1


@pytest.mark.parametrize(
    ("written", "count"),
    [("200000 100000", 2), ("250000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("max 100000", 64)],
)
def test_a_quota_of_cgroup_v2_limits_a_container(tree: Tree, machine: Callable[..., None], written: str, count: int) -> None:
    machine(64)
    # in a container with a namespace of its own, its group is the root of what is mounted
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT.format(root="/"),
        "sys/fs/cgroup/cpu.max": written + "\n",
    }
    found = engine_threads(root=tree(files))
    assert (found.count, found.limited) == (count, count != 64)
    assert ("quota" in found.reason) == (count != 64)


def test_a_fractional_quota_is_told_as_it_is(tree: Tree, machine: Callable[..., None]) -> None:
    machine(64)
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT.format(root="/"),
        "sys/fs/cgroup/cpu.max": "250000 100000",
    }
    assert engine_threads(root=tree(files)).reason == "64 cores within a quota of 2.5 processors"


def test_a_quota_above_the_cores_changes_nothing(tree: Tree, machine: Callable[..., None]) -> None:
    machine(2)
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT.format(root="/"),
        "sys/fs/cgroup/cpu.max": "800000 100000",
    }
    assert engine_threads(root=tree(files)) == cpu.Threads(2, "2 cores", limited=False)


def test_the_strictest_group_above_the_process_counts(tree: Tree) -> None:
    files = {
        "proc/self/cgroup": "0::/kubepods/pod7/c1\n",
        "proc/self/mountinfo": V2_MOUNT.format(root="/"),
        "sys/fs/cgroup/kubepods/cpu.max": "1600000 100000\n",
        "sys/fs/cgroup/kubepods/pod7/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/kubepods/pod7/c1/cpu.max": "max 100000\n",
    }
    assert cpu_quota(tree(files)) == 3.0


@pytest.mark.parametrize(("quota", "found"), [("350000", 3.5), ("-1", None)])
def test_a_quota_of_cgroup_v1_is_read(tree: Tree, quota: str, found: float | None) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct"
    files = {
        "proc/self/cgroup": "12:pids:/docker/ab12\n4:cpu,cpuacct:/docker/ab12\n1:name=systemd:/docker/ab12\n",
        # docker binds the container's own group: the mount's root is the group's path on the host
        "proc/self/mountinfo": V1_MOUNT.format(root="/docker/ab12"),
        f"{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}/cpu.cfs_period_us": "100000\n",
    }
    assert cpu_quota(tree(files)) == found


def test_v1_beside_an_empty_v2_hierarchy_is_read(tree: Tree) -> None:
    files = {
        "proc/self/cgroup": "1:cpu:/job/7\n0::/\n",
        "proc/self/mountinfo": V1_MOUNT.format(root="/") + V2_MOUNT.format(root="/").replace("cgroup rw", "cgroup/unified rw", 1),
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "120000",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "50000",
    }
    assert cpu_quota(tree(files)) == 2.4


def test_a_group_that_lies_outside_the_mount_is_taken_for_the_mounts_root(tree: Tree) -> None:
    files = {
        "proc/self/cgroup": "0::/../../elsewhere\n",
        "proc/self/mountinfo": V2_MOUNT.format(root="/a\\040b"),
        "sys/fs/cgroup/cpu.max": "400000 100000",
    }
    assert cpu_quota(tree(files)) == 4.0


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "nonsense\n", "proc/self/mountinfo": "nonsense\n"},
        {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2_MOUNT.format(root="/"), "sys/fs/cgroup/cpu.max": "many few\n"},
        {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2_MOUNT.format(root="/"), "sys/fs/cgroup/cpu.max": "100 0\n"},
    ],
)
def test_what_cannot_be_read_is_no_limit(tree: Tree, files: dict[str, str]) -> None:
    assert cpu_quota(tree(files)) is None


def test_what_was_asked_for_is_given_whatever_the_machine_is(tree: Tree, machine: Callable[..., None]) -> None:
    machine(2)
    assert engine_threads(3, tree({})) == cpu.Threads(3, "as asked", limited=True)
    with pytest.raises(SpecError, match="--threads is 0"):
        engine_threads(0)


def test_the_affinity_of_this_process_is_respected() -> None:
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(usable)})
        found = engine_threads()
        assert found.count == 1
        assert found.limited == (os.cpu_count() != 1)
    finally:
        os.sched_setaffinity(0, usable)


X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu avx2 sse4_2\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd asimdhp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"


@pytest.mark.parametrize(
    ("files", "name", "features"),
    [
        ({"proc/cpuinfo": X86}, "AMD EPYC 7763", ("avx2", "fpu", "sse4_2")),
        (
            {"proc/cpuinfo": ARM, "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"},
            "Raspberry Pi 5 Model B Rev 1.0, Cortex-A76",
            ("asimd", "asimdhp", "fp"),
        ),
        ({"proc/cpuinfo": ARM.replace("0xd0b", "0xfff")}, "0xfff", ("asimd", "asimdhp", "fp")),
    ],
)
def test_name_and_features_are_the_processors(tree: Tree, files: dict[str, str], name: str, features: tuple[str, ...]) -> None:
    root = tree(files)
    assert (cpu_name(root), cpu_features(root)) == (name, features)


def test_a_system_without_proc_still_has_a_name(tree: Tree) -> None:
    assert cpu_name(tree({}))
    assert cpu_features(tree({})) == ()
