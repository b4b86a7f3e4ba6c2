"""Energy by the GPU's counter, a Jetson's rail and a CPU's packages, from stand-ins of what each answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gmf_edge.bench import device, energy
from gmf_edge.bench.energy import EnergyMeter


@contextmanager
def counter(values: Iterator[int | None]) -> Iterator[Any]:
    yield lambda name, handle: next(values) if name == "nvmlDeviceGetTotalEnergyConsumption" else None, "handle"


def test_the_gpus_counter_is_taken_where_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([5_000_000, 5_012_000])  # millijoules
    monkeypatch.setattr(energy, "nvml_device", lambda: counter(values))
    meter = EnergyMeter(on_gpu=True)
    meter.stop(images=24)
    found = meter.to_json()
    assert found is not None
    assert (found["source"], found["joules_per_image"]) == ("nvml", pytest.approx(0.5))
    assert found["watts"] > 0


def test_a_jetsons_rail_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "nvml_device", lambda: counter(iter([None, None])))
    monkeypatch.setattr(energy, "rail_watts", lambda: 10.0)
    meter = EnergyMeter(on_gpu=True)
    time.sleep(0.25)
    meter.stop(images=5)
    found = meter.to_json()
    assert found is not None
    assert (found["source"], found["watts"]) == ("rail", pytest.approx(10.0, rel=0.5))
    assert found["joules_per_image"] >= 0.5


def package(root: Path, name: str, microjoules: int) -> None:
    folder = root / "class" / "powercap" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("65532610987\n")


def test_a_cpus_packages_are_added_and_may_wrap_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "SYSFS", tmp_path)
    package(tmp_path, "intel-rapl:0", 65532610987 - 999_999)
    package(tmp_path, "intel-rapl:1", 1_000_000)
    package(tmp_path, "intel-rapl:0:0", 7)  # a part of the first one
    meter = EnergyMeter(on_gpu=False)
    package(tmp_path, "intel-rapl:0", 1_000_000)
    package(tmp_path, "intel-rapl:1", 2_000_000)
    package(tmp_path, "intel-rapl:0:0", 9_000_000)
    meter.stop(images=3)
    found = meter.to_json()
    assert found is not None
    assert (found["source"], found["joules_per_image"]) == ("rapl", pytest.approx(1.0))


def test_a_machine_that_tells_nothing_has_no_energy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "SYSFS", tmp_path)
    monkeypatch.setattr(energy, "nvml_device", lambda: counter(iter([None] * 4)))
    for on_gpu in (True, False):
        meter = EnergyMeter(on_gpu)
        meter.stop(images=1)
        assert meter.to_json() is None


def test_a_counter_that_only_root_may_read_is_no_energy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "SYSFS", tmp_path)
    package(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "class" / "powercap" / "intel-rapl:0" / "energy_uj").unlink()
    meter = EnergyMeter(on_gpu=False)
    meter.stop(images=1)
    assert meter.to_json() is None
