"""The sidecar says where an engine belongs, and refuses it elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from gmf_edge.engines.tensorrt.cuda import Device, available_memory_mib, cuda_version_text, driver_version
from gmf_edge.engines.tensorrt.sidecar import Sidecar, graph_sha256
from gmf_edge.engines.tensorrt.versions import TensorRTVersion, version_of_number
from gmf_edge.errors import EngineError, EnvironmentProblem, StaleArtifact
from gmf_edge.scratch import write_atomically

ORIN = Device("Orin", "8.7", 16, 7620, True, "12.6", "12.6", "540.4.0", "MAXN")
A100 = Device("NVIDIA A100-SXM4-80GB", "8.0", 108, 81050, False, "12.6", "12.6", "550.54.15", "")
A10 = replace(A100, name="NVIDIA A10", compute_capability="8.6", multiprocessors=72)
RTX3090 = replace(A10, name="NVIDIA GeForce RTX 3090")
T4 = replace(A100, name="Tesla T4", compute_capability="7.5")


def engine(folder: Path, device: Device, version: str = "10.3.0", **changes: Any) -> tuple[Path, Sidecar]:
    path = folder / "engine.plan"
    path.write_bytes(b"ftrt plan")
    sidecar = Sidecar(
        engine_file=path.name,
        engine_bytes=9,
        engine_sha256=hashlib.sha256(b"ftrt plan").hexdigest(),
        device=asdict(device),
        tensorrt=version,
        library=changes.pop("library", ""),
        target="tensorrt-10.3",
        form="portable",
        graph_file="portable.onnx",
        graph_sha256="0" * 64,
        precision="fp16",
        profile=(1, 2, 4),
        image_size=(224, 224),
        options={"workspace_mib": 512},
        layers=({"name": "conv", "kind": "gemm", "precision": "fp16", "time_ms": 0.1},),
        **changes,
    )
    sidecar.write(path)
    return path, sidecar


def test_it_survives_the_disk(tmp_path: Path) -> None:
    path, sidecar = engine(tmp_path, ORIN, notes=("a note",), precision_shares={"fp16": 1.0})
    assert Sidecar.read(path) == sidecar
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == ["engine.plan", "engine.plan.json"]
    assert os.stat(Sidecar.path_of(path)).st_mode & 0o777 == 0o644


def test_an_engine_where_it_was_built_is_accepted(tmp_path: Path) -> None:
    path, sidecar = engine(tmp_path, ORIN)
    sidecar.check(path, replace(ORIN, power_mode="15W", driver="540.5.0"), TensorRTVersion.of("10.3.0"))


@pytest.mark.parametrize(
    ("built_on", "here", "level", "accepted"),
    [
        (A100, A100, "none", True),
        (A100, A10, "none", False),
        (A10, RTX3090, "none", False),
        (A10, RTX3090, "same", True),
        (A100, A10, "same", False),
        (A100, A10, "ampere+", True),
        (A100, T4, "ampere+", False),
        (T4, A100, "ampere+", False),
        # a Jetson's engine never fits a desktop GPU
        (ORIN, A10, "ampere+", False),
    ],
)
def test_other_gpus(tmp_path: Path, built_on: Device, here: Device, level: str, accepted: bool) -> None:
    path, sidecar = engine(tmp_path, built_on, hardware_compatibility=level)
    if accepted:
        sidecar.check(path, here, TensorRTVersion.of("10.3.0"))
    else:
        with pytest.raises(StaleArtifact, match=f"built on {built_on.name}.*this machine has {here.name}.*gmf-edge deploy"):
            sidecar.check(path, here, TensorRTVersion.of("10.3.0"))


@pytest.mark.parametrize(
    ("built", "here", "compatible", "accepted"),
    [
        ("10.3.0", "10.3.0", False, True),
        ("10.3.0", "10.4.0", False, False),
        ("10.3.0", "10.13.3.9", True, True),
        ("10.13.3.9", "10.3.0", True, False),
        ("10.3.0", "11.4.0", True, True),
        ("8.6.1", "10.3.0", True, True),
        ("8.6.1", "11.4.0", True, False),
    ],
)
def test_other_versions(tmp_path: Path, built: str, here: str, compatible: bool, accepted: bool) -> None:
    path, sidecar = engine(tmp_path, ORIN, version=built, version_compatible=compatible)
    if accepted:
        sidecar.check(path, ORIN, TensorRTVersion.of(here))
    else:
        with pytest.raises(StaleArtifact, match=f"TensorRT {built}; this machine has TensorRT {here}"):
            sidecar.check(path, ORIN, TensorRTVersion.of(here))


AGX = replace(ORIN, memory_mib=30697)
NX = replace(ORIN, multiprocessors=8, memory_mib=15389)


def test_modules_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """CUDA calls every Orin module "Orin"."""
    path, sidecar = engine(tmp_path, NX)
    sidecar.check(path, AGX, TensorRTVersion.of("10.3.0"))
    assert "built for 8 multiprocessors, opened on 16" in sidecar.device_notes(AGX)[0]
    assert sidecar.device_notes(replace(NX, power_mode="10W")) == ()
    path, sidecar = engine(tmp_path, AGX)
    # a power mode that switches multiprocessors off
    sidecar.check(path, replace(AGX, multiprocessors=8), TensorRTVersion.of("10.3.0"))
    with pytest.raises(StaleArtifact):
        sidecar.check(path, NX, TensorRTVersion.of("10.3.0"))


def test_the_library_counts_and_not_its_bindings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sidecar = engine(tmp_path, ORIN, library="8.6.0", version="8.6.1")
    here = TensorRTVersion.of("8.6.1")
    monkeypatch.setattr(TensorRTVersion, "library", property(lambda self: "8.6.1"))
    with pytest.raises(StaleArtifact, match=r"libnvinfer 8\.6\.0.*this machine has libnvinfer 8\.6\.1"):
        sidecar.check(path, ORIN, here)
    monkeypatch.setattr(TensorRTVersion, "library", property(lambda self: ""))
    sidecar.check(path, ORIN, here)


@pytest.mark.parametrize(
    ("number", "text"), [(8600, "8.6.0"), (8601, "8.6.1"), (100300, "10.3.0"), (101303, "10.13.3"), (110400, "11.4.0")]
)
def test_release_numbers(number: int, text: str) -> None:
    assert version_of_number(number) == text


def test_a_jetsons_page_cache_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmf_edge.engines.tensorrt.cuda.free_memory_mib", lambda: 700)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       31434012 kB\nMemFree:          716800 kB\nMemAvailable:   20480000 kB\n")
    assert available_memory_mib(ORIN, meminfo) == 20000
    assert available_memory_mib(A100, meminfo) == 700
    assert available_memory_mib(ORIN, tmp_path / "gone") == 700


def test_a_damaged_engine_is_refused(tmp_path: Path) -> None:
    path, sidecar = engine(tmp_path, ORIN)
    path.write_bytes(b"ftrt plaN")
    with pytest.raises(EngineError, match="not the file that was built"):
        sidecar.check(path, ORIN, TensorRTVersion.of("10.3.0"))
    path.unlink()
    with pytest.raises(EngineError, match="is missing"):
        sidecar.check(path, ORIN, TensorRTVersion.of("10.3.0"))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, EngineError, "has no engine.plan.json"),
        ("{", EngineError, "cannot be read"),
        ("[]", StaleArtifact, "schema None"),
        ('{"schema": 99}', StaleArtifact, "schema 99"),
        ('{"schema": 1}', EngineError, "not an engine's sidecar"),
        (b"\xff\xfe", EngineError, "cannot be read"),
    ],
)
def test_a_sidecar_that_is_none_is_refused(
    tmp_path: Path, content: str | bytes | None, error: type[EngineError], message: str
) -> None:
    path, _ = engine(tmp_path, ORIN)
    sidecar = Sidecar.path_of(path)
    sidecar.unlink()
    if content is not None:
        sidecar.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(error, match=message):
        Sidecar.read(path)


def test_a_sidecar_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path, _ = engine(tmp_path, ORIN)
    values = json.loads(Sidecar.path_of(path).read_text())
    Sidecar.path_of(path).write_text(json.dumps({**values, "surprise": 1}))
    with pytest.raises(EngineError, match="not an engine's sidecar"):
        Sidecar.read(path)


def test_writing_into_a_missing_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        write_atomically(tmp_path / "gone" / "engine.plan", b"x")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "engine.plan"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentProblem, match="No space left on device"):
        write_atomically(path, b"new")
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


def test_the_graphs_digest_covers_its_weights(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    import numpy as np

    tensor = onnx.numpy_helper.from_array(np.arange(512, dtype=np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    path = tmp_path / "model.onnx"
    model = onnx.helper.make_model(graph)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = graph_sha256(path)
    assert graph_sha256(path) == before
    content = bytearray((tmp_path / "weights.bin").read_bytes())
    content[5] ^= 1
    (tmp_path / "weights.bin").write_bytes(content)
    assert graph_sha256(path) != before


def test_the_drivers_version_is_read_from_proc(tmp_path: Path) -> None:
    proc = tmp_path / "version"
    proc.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12.2.0\n"
    )
    assert driver_version(proc) == "550.54.15"
    assert driver_version(tmp_path / "none") == ""


def test_cuda_versions_are_spelled() -> None:
    assert [cuda_version_text(number) for number in (12060, 11080, 13050, 0)] == ["12.6", "11.8", "13.5", "0.0"]
