"""Energy of a measurement, where this machine tells it; the idle draw is part of it.

nvml   the GPU's counter since the driver was loaded (Volta and newer; nvmlDeviceGetTotalEnergyConsumption, millijoules)
rail   a Jetson: power of the rail that feeds the GPU, by the board's ina3221, sampled and summed up
rapl   a CPU: the packages' counters (Intel, AMD; /sys/class/powercap, microjoules, that wrap round), which most systems let root alone read

Sources: nvml.h; Documentation/power/powercap in the Linux kernel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gmf_edge.bench import device
from gmf_edge.bench.device import nvml_device, rail_watts

SAMPLE_S = 0.1


class EnergyMeter:
    """Runs from when it is made until `stop`.

    Args:
        on_gpu: whether the GPU's energy is asked for, or the CPU's.
    """

    def __init__(self, on_gpu: bool) -> None:
        self._energy: dict[str, Any] | None = None
        self._finish = (_gpu_meter() if on_gpu else None) or (None if on_gpu else _rapl_meter())
        self._began = time.perf_counter()

    def stop(self, images: int) -> None:
        """End of the measurement, in which so many images were inferred."""
        seconds = time.perf_counter() - self._began
        found = None if self._finish is None else self._finish()
        self._finish = None
        if found is None or not images or not seconds > 0:
            return
        source, joules = found
        self._energy = {"source": source, "joules_per_image": joules / images, "watts": joules / seconds}

    def to_json(self) -> dict[str, Any] | None:
        """{"source", "joules_per_image", "watts"}; None where nothing could be read."""
        return self._energy


Finish = Callable[[], "tuple[str, float] | None"]


def _gpu_meter() -> Finish | None:
    before = _nvml_joules()
    if before is not None:

        def finish() -> tuple[str, float] | None:
            after = _nvml_joules()
            return None if after is None else ("nvml", after - before)

        return finish
    if rail_watts() is None:
        return None
    return _RailSampler().finish


def _nvml_joules() -> float | None:
    with nvml_device() as (ask, handle):
        millijoules = None if handle is None else ask("nvmlDeviceGetTotalEnergyConsumption", handle)
    return None if millijoules is None else millijoules / 1000


class _RailSampler:
    def __init__(self) -> None:
        self._joules, self._ended = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        last = time.perf_counter()
        while not self._ended.wait(SAMPLE_S):
            last = self._add(last)
        self._add(last)

    def _add(self, last: float) -> float:
        now = time.perf_counter()
        self._joules += (rail_watts() or 0.0) * (now - last)
        return now

    def finish(self) -> tuple[str, float]:
        self._ended.set()
        self._thread.join()
        return "rail", self._joules


def _rapl_meter() -> Finish | None:
    before = _rapl_microjoules()
    if not before:
        return None

    def finish() -> tuple[str, float] | None:
        after = _rapl_microjoules()
        total = 0.0
        for package, (first, size) in before.items():
            if package not in after:
                return None
            # the counter starts again at zero when it is full
            total += (after[package][0] - first) % (size + 1)
        return "rapl", total / 1e6

    return finish


def _rapl_microjoules() -> dict[str, tuple[int, int]]:
    """package -> (counter, its largest value); only whole packages, whose parts have counters of their own."""
    found: dict[str, tuple[int, int]] = {}
    for folder in sorted(device.SYSFS.glob("class/powercap/intel-rapl:*")):
        if folder.name.count(":") == 1:
            counter, size = _whole(folder / "energy_uj"), _whole(folder / "max_energy_range_uj")
            if counter is not None and size is not None:
                found[folder.name] = counter, size
    return found


def _whole(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # most systems let root alone read it
        return None
