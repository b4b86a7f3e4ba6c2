"""What else the CPU did, from files as Linux writes them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from gmf_edge.bench import load
from gmf_edge.bench.load import CpuLoad, machine_facts


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(load, "PROC", tmp_path)
    monkeypatch.setattr(load, "SYSFS", tmp_path / "sys")
    return tmp_path


def stat(root: Path, monkeypatch: pytest.MonkeyPatch, user: int, idle: int, stolen: int, own_s: float) -> None:
    (root / "stat").write_text(f"cpu  {user} 0 0 {idle} 0 0 0 {stolen} 0 0\ncpu0 1 2 3 4\n")
    monkeypatch.setattr(load.os, "times", lambda: SimpleNamespace(user=own_s, system=0.0))
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)


def test_other_programs_and_other_guests_are_told_apart(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat(proc, monkeypatch, 1000, 1000, 0, 1.0)
    found = CpuLoad()
    # of 1000 ticks: 600 busy, of which 400 are this process's, 300 idle, 100 stolen
    stat(proc, monkeypatch, 1600, 1300, 100, 5.0)
    found.stop()
    assert found.to_json() == {"own_share": 0.4, "other_share": 0.2, "stolen_share": 0.1}
    assert [("other programs took 20 %" in note, "gave 10 %" in note) for note in found.notes()] == [(True, False), (False, True)]


def test_a_quiet_machine_has_no_notes(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat(proc, monkeypatch, 0, 0, 0, 0.0)
    found = CpuLoad()
    stat(proc, monkeypatch, 510, 490, 0, 5.0)
    found.stop()
    assert found.notes() == ()


@pytest.mark.parametrize("ticks", [0, 20])
def test_of_a_moment_nothing_is_told(proc: Path, monkeypatch: pytest.MonkeyPatch, ticks: int) -> None:
    stat(proc, monkeypatch, 0, 0, 0, 0.0)
    found = CpuLoad()
    stat(proc, monkeypatch, ticks, 0, 0, 0.0)
    found.stop()
    assert (found.to_json(), found.notes()) == (None, ())


def test_a_system_without_these_files_is_no_error(proc: Path) -> None:
    found = CpuLoad()
    found.stop()
    assert found.to_json() is None
    facts = machine_facts()
    assert (facts["memory_gib"], facts["cpu_mhz"], facts["governor"], facts["virtual"]) == (None, None, None, None)


def test_the_machine_is_told_from_its_files(proc: Path) -> None:
    (proc / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: AMD EPYC 9R14\ncpu MHz\t\t: 2600.000\nflags\t\t: fpu avx2 avx512f avx512_bf16 hypervisor\n"
        "processor\t: 1\nmodel name\t: AMD EPYC 9R14\ncpu MHz\t\t: 3700.125\nflags\t\t: fpu avx2 avx512f avx512_bf16 hypervisor\n"
    )
    (proc / "meminfo").write_text("MemTotal:       16393216 kB\nMemFree: 1 kB\n")
    governor = proc / "sys" / "devices" / "system" / "cpu" / "cpu0" / "cpufreq"
    governor.mkdir(parents=True)
    (governor / "scaling_governor").write_text("performance\n")
    facts = machine_facts()
    assert (facts["cpu_mhz"], facts["memory_gib"]) == (3700.125, 15.6)
    assert (facts["governor"], facts["virtual"]) == ("performance", True)
    assert facts["instructions"] == ["avx2", "avx512f", "avx512_bf16"]
