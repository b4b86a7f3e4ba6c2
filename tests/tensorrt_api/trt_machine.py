"""A made-up device for tests: one version's stand-in TensorRT, stand-in CUDA, and a bundle's graphs (see trt_fake and cuda_fake)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import trt_bindings
from cuda_driver_fake import FakeDriver
from cuda_fake import FakeCuda
from trt_fake import CLASSES, FakeModel, FakeTensorRT

from gmf_edge.artifact import cache_root
from gmf_edge.bundle import GOLDEN, LABELS, Manifest, seal
from gmf_edge.engines.protocol import EngineRequest, Graphs
from gmf_edge.engines.tensorrt import cuda as cuda_calls
from gmf_edge.engines.tensorrt.backend import TensorRTBackend
from gmf_edge.image import Preprocess
from gmf_edge.spec import GATES, OPSET_BF16, OPSET_NEW, OPSET_OLD, BatchProfile, ModelSpec, Precision
from gmf_edge.verify.golden import Golden
from gmf_edge.weights import WeightsOrigin


@dataclass
class Machine:
    """A made-up device: its TensorRT, its CUDA, a bundle folder and an output folder."""

    trt: FakeTensorRT
    cuda: FakeCuda
    driver: FakeDriver
    model: FakeModel
    request: EngineRequest
    out: Path

    def build(self, **changes: Any) -> tuple[str, ...]:
        return TensorRTBackend().build(replace(self.request, **changes), self.out)

    def open(self, files: tuple[str, ...], **changes: Any) -> Any:
        return TensorRTBackend().open(replace(self.request, **changes), self.out, files)

    @property
    def sidecar(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.out / "engine.plan.json").read_text())
        return told

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        return [args for called, args, _ in self.trt.calls if called == name]


MakeMachine = Callable[..., Machine]


def without(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == prefix or name.startswith(prefix + ".")]:
        monkeypatch.delitem(sys.modules, name)


def forget_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polygraphy keeps the TensorRT that it saw first, and the backend the CUDA."""
    without("polygraphy", monkeypatch)
    cuda_calls.runtime.cache_clear()
    cuda_calls.driver.cache_clear()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeMachine]:
    pytest.importorskip("polygraphy", reason="Polygraphy is not installed: pip install polygraphy")
    monkeypatch.setenv("GMF_EDGE_CACHE", str(tmp_path / "cache"))
    cache_root.cache_clear()
    made: list[FakeCuda] = []

    def machine(version: str, model: FakeModel | None = None, **cuda_options: Any) -> Machine:
        try:
            described = trt_bindings.dump(version)
        except trt_bindings.IndexUnreachable as error:
            pytest.skip(str(error))
        model = model or FakeModel()
        cuda = FakeCuda(**cuda_options)
        driver = FakeDriver(cuda)
        trt = FakeTensorRT(described, cuda, model)
        made.append(cuda)
        forget_modules(monkeypatch)
        without("cuda", monkeypatch)
        packages = {name: ModuleType(name) for name in ("cuda", "cuda.bindings")}
        packages["cuda.bindings"].runtime = cuda  # type: ignore[attr-defined]
        packages["cuda.bindings"].driver = driver  # type: ignore[attr-defined]
        packages["cuda"].bindings = packages["cuda.bindings"]  # type: ignore[attr-defined]
        modules = {"cuda.bindings.runtime": cuda, "cuda.bindings.driver": driver, "tensorrt": trt}
        for name, module in {**packages, **modules}.items():
            monkeypatch.setitem(sys.modules, name, module)
        bundle, out = tmp_path / "bundle", tmp_path / "out"
        for folder in (bundle, out):
            folder.mkdir(exist_ok=True)
        files = {}
        for form in ("portable", "plugin"):
            for opset in (OPSET_OLD, OPSET_NEW, OPSET_BF16):
                files[form, opset] = f"{form}-{opset}.onnx"
                (bundle / files[form, opset]).write_bytes(f"{form} {opset}".encode())
        request = EngineRequest(Graphs(bundle, files), Precision.FP16, BatchProfile(1, 2, 4), (32, 32))
        return Machine(trt, cuda, driver, model, request, out)

    yield machine
    forget_modules(monkeypatch)
    cache_root.cache_clear()
    # also what a handler, or a __del__, has swallowed
    assert [text for cuda in made for text in cuda.violations] == []


def images(batch: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(batch, 3, 32, 32)).astype(np.float32)


def expected(batch: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return batch.astype(np.float64).mean(axis=(1, 2, 3))[:, None] + np.arange(CLASSES)


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
