"""benchmarks/gpu_check.py: what it reports with a GPU (stand-ins), without one, and for bundles that are missing or wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trt_fake import CLASSES, FakeModel
from trt_machine import MakeMachine, expected, images

from gmf_edge.bundle import GOLDEN, LABELS, Manifest, seal
from gmf_edge.image import Preprocess
from gmf_edge.spec import GATES, OPSET_NEW, OPSET_OLD, BatchProfile, ModelSpec, Precision
from gmf_edge.verify.golden import Golden
from gmf_edge.weights import WeightsOrigin

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("gmf_edge.deploy.BUILD_DURATION_S", 0.01)
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bundle(folder: Path, variant: str, precision: Precision, wrong_by: float = 0.0) -> Path:
    """A bundle for the stand-in engine, whose logits are the image's mean plus the class index."""
    folder.mkdir(parents=True)
    graphs = {}
    for form in ("portable", "plugin"):
        for opset in (OPSET_OLD, OPSET_NEW):
            graphs[f"{form}/{opset}"] = f"{form}-{opset}.onnx"
            (folder / graphs[f"{form}/{opset}"]).write_bytes(b"onnx")
    drawn = np.concatenate([images(2, 1), 4 * images(2, 2) + 1])
    logits = expected(drawn) + wrong_by * np.arange(CLASSES) ** 2
    Golden(drawn, logits.astype(np.float32), "drawn").save(folder / GOLDEN)
    (folder / LABELS).write_text("".join(f"class {number}\n" for number in range(CLASSES)))
    model = replace(ModelSpec.of("pico", CLASSES, (32, 32)), variant=variant)
    manifest = Manifest(
        model=model,
        weights=WeightsOrigin.random(0),
        precision=precision,
        profile=BatchProfile(1, 2, 4),
        preprocess=Preprocess((32, 32)),
        gate=GATES[precision],
        io_dtype="float32",
        classes=tuple(f"class {number}" for number in range(CLASSES)),
        graphs=graphs,
    )
    seal(folder, manifest)
    return folder


@pytest.mark.parametrize("version", ["8.6.1", "11.4.0.106"])
def test_bundles_are_deployed_verified_and_measured(make: MakeMachine, gpu_check: Any, tmp_path: Path, version: str) -> None:
    make(version)
    bundle(tmp_path / "bundles" / "a", "pico", Precision.FP16)
    bundle(tmp_path / "bundles" / "b", "mobile", Precision.FP16, wrong_by=3.0)
    bundle(tmp_path / "bundles" / "c", "small", Precision.INT8)
    damaged = bundle(tmp_path / "bundles" / "d", "small", Precision.FP32)
    (damaged / "portable-20.onnx").write_bytes(b"ONNX")
    result = gpu_check.check(tmp_path / "bundles", tmp_path / "work", {}, lambda line: None, bench_seconds=0.01, run_tests=False)
    runs = {run["bundle"]: run for run in result["bundles"]}
    assert runs["pico-fp16"]["status"] == "passed", runs["pico-fp16"]
    assert [step["batch"] for step in runs["pico-fp16"]["steps"]] == [1, 2, 4]
    assert [entry["batch"] for entry in runs["pico-fp16"]["latency"]] == [1, 2, 4]
    assert runs["pico-fp16"]["engine"]["precision_shares"] == pytest.approx({"fp16": 14 / 15, "fp32": 1 / 15})
    assert runs["pico-fp16"]["steps"][0]["cuda_graph"] is True
    # the engine does not do what the bundle's golden data say
    assert runs["mobile-fp16"]["status"] == "failed"
    assert "at batch 1" in runs["mobile-fp16"]["reason"]
    # the stand-in's layers run in FP16, not in INT8
    assert runs["small-int8"]["status"] == "failed"
    assert "no matrix product of the engine runs in int8" in runs["small-int8"]["reason"]
    assert runs["d"]["status"] == "failed"
    assert "portable-20.onnx was changed" in runs["d"]["reason"]
    assert runs["pico-fp32"] == {
        "bundle": "pico-fp32",
        "status": "not run",
        "reason": f"no bundle of pico in fp32 below {tmp_path / 'bundles'}",
    }
    assert result["passed"] is False
    assert result["summary"] == "1 passed, 3 failed, 7 not run"
    assert result["device"]["name"] == "Fake Orin"
    path = gpu_check.result_path(tmp_path, result)
    assert path.name.startswith(f"Fake-Orin-tensorrt{version}-20")
    json.dumps(result, allow_nan=False)


def test_all_passed_is_said_only_when_something_ran(make: MakeMachine, gpu_check: Any, tmp_path: Path) -> None:
    make("10.3.0", FakeModel(precision="fp16"))
    arguments = [str(tmp_path), "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w"), "--seconds", "0.01", "--no-tests"]
    assert gpu_check.main(arguments) == 1
    bundle(tmp_path / "bundles" / "a", "pico", Precision.FP16)
    assert gpu_check.main(arguments) == 0
    assert gpu_check.main([*arguments, "--builderOptimizationLevel=5"]) == 0
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main([*arguments, "--fp16"])
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main([*arguments, "--unknown"])


def test_without_a_gpu_the_script_says_what_was_not_run(tmp_path: Path) -> None:
    """The real script in a new process, with torch and onnx out of reach, as on a device."""
    bundle(tmp_path / "bundles" / "a", "pico", Precision.FP16)
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "onnx", "tensorrt"):
        (blocked / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')\n")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(blocked), "GMF_EDGE_COMMIT": "abc"}
    environment.pop("TRT_HOME", None)
    command = [
        str(SCRIPT.with_suffix(".sh")),
        str(tmp_path / "bundles"),
        "--results",
        str(tmp_path / "r"),
        "--work",
        str(tmp_path / "w"),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 4, answer.stdout + answer.stderr
    assert answer.stdout.splitlines()[-1].startswith("NOT RUN: 0 passed, 0 failed, 10 not run: ")
    [path] = (tmp_path / "r").glob("no-gpu-*.json")
    result = json.loads(path.read_text())
    assert result["commit"] == "abc"
    assert {run["status"] for run in result["bundles"]} == {"not run"}
    assert all(run["reason"] for run in result["bundles"])
    assert result["tests"]["status"] == "not run"
    assert not list((tmp_path / "w").iterdir())
