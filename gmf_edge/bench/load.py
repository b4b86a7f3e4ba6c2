"""What else the CPU did while something was measured, and the machine that it was.

Shares of all the CPU's time, from /proc/stat and this process's own: other programs', and what a hypervisor gave to other guests ("steal").
Source: proc(5). Linux only; elsewhere nothing is known.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from gmf_edge.cpu import cpu_name, engine_threads

PROC = Path("/proc")
SYSFS = Path("/sys")
# more than this of the CPU's time, and the figures are not the engine's alone
DISTURBING_SHARE = 0.05


class CpuLoad:
    """Runs from when it is made until `stop`."""

    def __init__(self) -> None:
        self._before = _times()
        self._shares: dict[str, float] | None = None

    def stop(self) -> None:
        """End of the measurement."""
        after = _times()
        if self._before is None or after is None:
            return
        total, busy, stolen, own = (last - first for first, last in zip(self._before, after, strict=True))
        # ticks of a hundredth of a second: of less than some tens of them nothing can be told
        if total > 50:
            self._shares = {
                "own_share": min(own / total, 1.0),
                "other_share": max(busy - own, 0.0) / total,
                "stolen_share": stolen / total,
            }

    def notes(self) -> tuple[str, ...]:
        """What disturbed the measurement, one sentence each."""
        if self._shares is None:
            return ()
        notes = []
        if self._shares["other_share"] > DISTURBING_SHARE:
            notes.append(f"other programs took {100 * self._shares['other_share']:.0f} % of the CPU while this was measured")
        if self._shares["stolen_share"] > DISTURBING_SHARE:
            notes.append(f"the hypervisor gave {100 * self._shares['stolen_share']:.0f} % of the CPU to others meanwhile")
        return tuple(notes)

    def to_json(self) -> dict[str, float] | None:
        """Shares of all CPU time, 0..1; None where they cannot be read, or the time was too short."""
        return self._shares


def machine_facts() -> dict[str, Any]:
    """What figures depend on and an engine does not tell: system, Python, memory, the CPU's governor and clock, virtual or not.

    Returns:
        Plain values, None for what cannot be read.
    """
    cpuinfo, meminfo = _content(PROC / "cpuinfo"), _content(PROC / "meminfo")
    memory = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    clocks = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", cpuinfo, re.MULTILINE)]
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)", cpuinfo, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    governor = _content(SYSFS / "devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": engine_threads().count,
        "instructions": [flag for flag in INSTRUCTIONS if flag in known],
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "cpu_mhz": max(clocks) if clocks else None,
        "governor": governor or None,
        "virtual": "hypervisor" in known if flags else None,
    }


# of the CPU: those that decide how fast matrices are multiplied
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16")


def _times() -> tuple[float, float, float, float] | None:
    """(all, busy, stolen, this process's) CPU time in ticks since they were counted."""
    line = _content(PROC / "stat").partition("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu":
        return None
    user, nice, system, idle, iowait, irq, softirq, stolen = (float(part) for part in line[1:9])
    busy = user + nice + system + irq + softirq
    own = os.times()
    return busy + idle + iowait + stolen, busy, stolen, (own.user + own.system) * os.sysconf("SC_CLK_TCK")


def _content(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
