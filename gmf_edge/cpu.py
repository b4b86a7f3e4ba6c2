"""The processor that an engine runs on: its name, and how many threads it may keep busy.

A container with 2 of 64 processors sees all 64 in most places. What holds it back is read from where the kernel keeps it:

affinity    the processors that this process may run on; a cpuset of the container shows here
siblings    hardware threads that share a core: two threads of matrix arithmetic on one core gain nothing
quota       cpu.max (cgroup v2), or cpu.cfs_quota_us over cpu.cfs_period_us (v1), of the process's group and of every group above it

Of a fractional quota the whole part counts (2.5 is 2, 0.5 is 1): one thread more would be stopped by the kernel in every period, and
the other threads of the inference wait for it.

Sources: cgroups(7), proc_pid_mountinfo(5), sched_setaffinity(2), Documentation/admin-guide/cgroup-v2.rst and
ABI/stable/sysfs-devices-system-cpu of Linux.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gmf_edge.errors import SpecError

# names of Arm's cores by /proc/cpuinfo's "CPU part", where that is all that the kernel tells: MIDR_EL1 of Arm's reference manuals
ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
    "0xd83": "Neoverse-V3AE",
}


@dataclass(frozen=True)
class Threads:
    """How many threads an engine is given.

    Attributes:
        count: at least 1.
        reason: why, for the report.
        limited: whether this process may not use the whole machine, or was told not to. Threads should not be tied to processors
            then: other processes would tie theirs to the same ones.
    """

    count: int
    reason: str
    limited: bool

    @property
    def words(self) -> str:
        """ "1 thread", "4 threads"."""
        return f"{self.count} thread{'s' * (self.count != 1)}"


def engine_threads(asked: int | None = None, root: Path = Path("/")) -> Threads:
    """The threads for one engine: as many as were asked for, else one a core that this process may keep busy.

    Args:
        asked: --threads, or None for the default.
        root: where /proc and /sys are looked for.

    Raises:
        SpecError: fewer than one thread.
    """
    if asked is not None:
        if asked < 1:
            raise SpecError(f"--threads is {asked}", "give at least 1, or leave it out")
        return Threads(asked, "as asked", limited=True)
    usable, present = usable_processors(), os.cpu_count() or 1
    cores = core_count(usable, root)
    quota = cpu_quota(root)
    words = [f"{cores} core{'s' * (cores != 1)}"]
    if cores < len(usable):
        words.append(f"of {len(usable)} hardware threads")
    if len(usable) < present:
        words.append(f"(this process may use {len(usable)} of {present} processors)")
    count = cores
    if quota is not None and quota < cores:
        count = max(1, math.floor(quota))
        words.append(f"within a quota of {quota:g} processors")
    return Threads(count, " ".join(words), limited=len(usable) < present or count < cores)


def usable_processors() -> frozenset[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def core_count(processors: frozenset[int], root: Path = Path("/")) -> int:
    """Cores that these processors lie on; each its own where the system does not tell."""
    cores = set()
    for processor in processors:
        topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
        siblings = _content(topology / "core_cpus_list") or _content(topology / "thread_siblings_list")
        cores.add(siblings or str(processor))
    return max(1, len(cores))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that the control groups of this process leave it; None where they do not limit it."""
    quotas = [quota for folder in _cpu_groups(root) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _quota_of(folder: Path) -> float | None:
    v2 = _content(folder / "cpu.max").split()  # "150000 100000" or "max 100000", microseconds
    v1 = [_content(folder / "cpu.cfs_quota_us"), _content(folder / "cpu.cfs_period_us")]  # -1 for none
    for pair in (v2, v1):
        if len(pair) == 2 and all(value.isdigit() for value in pair) and int(pair[1]) > 0 and int(pair[0]) > 0:
            return int(pair[0]) / int(pair[1])
    return None


def _cpu_groups(root: Path) -> Iterator[Path]:
    """Folders of this process's group and of those above it, in every hierarchy that may hold a quota."""
    lines = (line.split(":", 2) for line in _content(root / "proc/self/cgroup").splitlines())
    memberships = [parts for parts in lines if len(parts) == 3]  # number, controllers, path
    for line in _content(root / "proc/self/mountinfo").splitlines():
        # 36 35 98:0 /root /mount/point rw,noatime master:1 - cgroup2 cgroup2 rw,nsdelegate
        left, separator, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not separator or len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            paths = [path for _, controllers, path in memberships if controllers == ""]
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            paths = [path for _, controllers, path in memberships if "cpu" in controllers.split(",")]
        else:
            continue
        mounted, point = _unescaped(fields[3]), root / _unescaped(fields[4]).lstrip("/")
        for path in paths:
            # a container sees its own group as the mount's root, whatever path the process has on the host
            inside = PurePosixPath(path).relative_to(mounted) if PurePosixPath(path).is_relative_to(mounted) else PurePosixPath()
            if ".." in inside.parts:
                inside = PurePosixPath()
            yield from (point / parent for parent in (inside, *inside.parents))


def _unescaped(path: str) -> str:
    """mountinfo writes blanks as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def cpu_name(root: Path = Path("/")) -> str:
    """The processor's name as Linux tells it: on x86 the model, on Arm the board's name with the kind of core."""
    fields = _cpuinfo(root)
    if fields.get("model name"):
        return fields["model name"]
    # Arm: "Raspberry Pi 5 Model B Rev 1.0" is in the device tree, and cpuinfo has numbers alone
    board = _content(root / "proc/device-tree/model").strip("\0") or fields.get("Model", "")
    part = fields.get("CPU part", "")
    core = ARM_PARTS.get(part, part)
    return ", ".join(filter(None, (board, core))) or platform.processor() or platform.machine() or "unknown processor"


def cpu_features(root: Path = Path("/")) -> tuple[str, ...]:
    """Instruction sets by Linux's names, such as avx2 or asimdhp; empty where the system does not tell."""
    fields = _cpuinfo(root)
    # x86 calls them flags, Arm Features
    return tuple(sorted((fields.get("flags") or fields.get("Features", "")).split()))


def _cpuinfo(root: Path) -> dict[str, str]:
    """Of the first processor, and of the board."""
    fields: dict[str, str] = {}
    for line in _content(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _content(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # not Linux, or a file that this process may not see
        return ""
