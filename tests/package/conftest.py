"""Bundles as a GPU machine leaves them, made without one, and what opens a package's pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gmf_edge.artifact import sha256_of
from gmf_edge.bundle import REPORT, Manifest, open_bundle, seal
from gmf_edge.engines.tensorrt.sidecar import Sidecar
from gmf_edge.spec import OPSET_BF16

ENGINE = b"not TensorRT's bytes: packaging copies an engine and never opens it"


@pytest.fixture
def tensorrt_bundle(pico_fp16: Path, tmp_path: Path) -> Callable[..., Path]:
    """tensorrt_bundle(form=..., ...): a bundle with an engine file, its sidecar and the report of a deployment with TensorRT."""

    def make(passed: bool = True, **sidecar: Any) -> Path:
        folder = tmp_path / "trt"
        shutil.copytree(pico_fp16, folder)
        manifest = open_bundle(folder).manifest
        engine = folder / "engine.plan"
        engine.write_bytes(ENGINE)
        profile = manifest.profile
        about: dict[str, Any] = {
            "engine_file": engine.name,
            "engine_bytes": len(ENGINE),
            "engine_sha256": sha256_of(engine),
            "device": {"name": "Orin", "compute_capability": "8.7", "integrated": True, "multiprocessors": 16, "memory_mib": 62000},
            "tensorrt": "10.3.0",
            "library": "10.3.0",
            "target": "tensorrt-10.3",
            "form": "portable",
            "graph_file": "portable.onnx",
            "graph_sha256": sha256_of(folder / "portable.onnx"),
            "precision": manifest.precision.value,
            "profile": (profile.min, profile.opt, profile.max),
            "image_size": manifest.model.image_size,
            "options": {},
        }
        Sidecar(**{**about, **sidecar}).write(engine)
        report = json.loads((folder / REPORT).read_text())
        report |= {"backend": "tensorrt", "passed": passed, "reason": "made for a test"}
        report["engine"] |= {"backend": "tensorrt", "version": "10.3.0", "device": "Orin", "form": about["form"], "options": {}}
        (folder / REPORT).write_text(json.dumps(report))
        seal(folder, Manifest.from_json({**manifest.to_json(), "engine_files": [engine.name, "engine.plan.json"]}))
        return folder

    return make


@pytest.fixture
def bf16_bundle(pico_fp16: Path, tmp_path: Path) -> Path:
    """A deployed bundle whose manifest names its graphs as BF16's are named; what is in them is FP16."""
    folder = tmp_path / "bf16"
    shutil.copytree(pico_fp16, folder)
    manifest = open_bundle(folder).manifest.to_json()
    for name in ("portable-opset17.onnx", "plugin-opset17.onnx"):
        (folder / name).unlink()
    graphs = {f"{form}/{OPSET_BF16}": f"{form}.onnx" for form in ("portable", "plugin")}
    seal(folder, Manifest.from_json({**manifest, "precision": "bf16", "graphs": graphs}))
    return folder


def changed_report(folder: Path, **changes: Any) -> None:
    """Put values into the engine's part of a bundle's report, and seal it again."""
    manifest = open_bundle(folder).manifest
    report = json.loads((folder / REPORT).read_text())
    report |= {key: value for key, value in changes.items() if key in ("backend", "passed")}
    report["engine"] |= changes
    (folder / REPORT).write_text(json.dumps(report))
    seal(folder, manifest)


@pytest.fixture
def change_report() -> Callable[..., None]:
    """changed_report, for tests."""
    return changed_report
