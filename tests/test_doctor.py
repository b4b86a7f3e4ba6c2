"""The doctor: it raises nothing, and whatever is missing comes with what to do."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from gmf_edge import doctor
from gmf_edge.doctor import DEVICE, ENGINES, WORKSTATION, examine
from gmf_edge.engines.finding import MISSING, OK, WARNING, Finding
from gmf_edge.errors import EnvironmentProblem


def by_subject(*findings: Finding) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def test_it_looks_at_everything_that_a_build_needs() -> None:
    found = by_subject(*examine())
    assert {"gmf-edge", *DEVICE, *ENGINES, *WORKSTATION, "CPU", "memory", "cache", "GPU", "TensorRT", "backend"} <= set(found)
    assert found["numpy"] == Finding("numpy", OK, metadata.version("numpy"))
    assert {finding.state for finding in found.values()} <= {OK, WARNING, MISSING}


def test_what_is_missing_comes_with_a_remedy() -> None:
    assert [finding.subject for finding in examine() if finding.state == MISSING and not finding.remedy] == []


def test_a_package_that_is_not_installed_is_missing_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_torch(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor.metadata, "version", without_torch)
    found = by_subject(*examine())["torch"]
    assert (found.state, found.detail) == (MISSING, "not installed")
    assert "gmf-edge[workstation]" in found.remedy


def test_a_package_that_is_registered_but_gone_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "PIL" else object())
    found = by_subject(*examine())
    assert found["pillow"].state == MISSING
    assert "cannot be imported" in found["pillow"].detail
    assert found["numpy"].state == OK


@pytest.mark.parametrize(("mib", "state"), [(200_000, OK), (100, WARNING)])
def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch, mib: int, state: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: f"MemTotal: 1 kB\nMemAvailable:   {mib * 1024} kB\n")
    found = doctor._memory()
    assert (found.state, bool(found.remedy)) == (state, state == WARNING)
    assert f"{mib} MiB free" in found.detail


@pytest.mark.parametrize("text", ["", "MemAvailable: many kB"])
def test_a_system_that_does_not_tell_its_memory_is_no_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: text)
    assert doctor._memory().state == WARNING


def test_a_cache_that_cannot_be_written_is_a_warning_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise EnvironmentProblem("cannot write the cache", "set GMF_EDGE_CACHE")

    monkeypatch.setattr(doctor, "cache_root", refuse)
    found = doctor._disk()
    assert (found.subject, found.state) == ("cache", WARNING)
    assert "GMF_EDGE_CACHE" in found.remedy


def test_a_nearly_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = doctor.shutil.disk_usage("/")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=5 << 20))
    assert (doctor._disk().state, "5 MiB free" in doctor._disk().detail) == (WARNING, True)


def test_no_backend_at_all_is_missing_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(wanted: str) -> None:
        raise EnvironmentProblem("no backend can be used", "pip install one")

    monkeypatch.setattr(doctor, "backends_in_question", none)
    found = by_subject(*examine())["backend"]
    assert found == Finding("backend", MISSING, "no backend can be used", "pip install one")
