"""The fastest CPU engine within the gate is delivered, the report tells of all, and later verbs open the one that was delivered."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from gmf_edge.bench.compare import Ranking
from gmf_edge.bundle import open_bundle
from gmf_edge.cli import run
from gmf_edge.deploy import bench_bundle, deploy_bundle, open_engine, verify_bundle
from gmf_edge.engines import choose
from gmf_edge.engines.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine
from gmf_edge.engines.openvino.backend import OpenVinoBackend
from gmf_edge.engines.openvino.engine import OpenVinoEngine
from gmf_edge.engines.openvino.settings import BF16, FP32
from gmf_edge.engines.protocol import Engine, FloatArray
from gmf_edge.engines.tensorrt.backend import TensorRTBackend
from gmf_edge.errors import EngineError, SpecError

pytestmark = pytest.mark.usefixtures("brief_latency", "without_tensorrt")


@pytest.fixture
def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRTBackend, "missing", lambda self: "no GPU")


@pytest.fixture
def fastest(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """fastest("openvino"): what timing finds, whatever this machine is doing; the names of those that were timed."""
    timed: list[str] = []

    def set_to(*order: str) -> list[str]:
        def ranked(engines: Sequence[tuple[str, Engine]], **settings: Any) -> Ranking:
            timed.extend(name for name, _ in engines)
            found = tuple(sorted(timed, key=lambda name: order.index(name) if name in order else len(order)))
            return Ranking(found, dict.fromkeys(found, 1.0), dict.fromkeys(found, 2.0), (), "as the test says")

        monkeypatch.setattr("gmf_edge.deploy.choice.rank_engines", ranked)
        return timed

    return set_to


@pytest.mark.parametrize(("name", "kind"), [("openvino", OpenVinoEngine), ("onnxruntime", OnnxRuntimeEngine)])
def test_the_faster_one_is_delivered_and_opened_later(
    name: str, kind: type, fastest: Callable[..., list[str]], pico_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timed = fastest(name)
    out = tmp_path / "b"
    assert run(["deploy", str(pico_export), "--output", str(out), "--threads", "1", "--quiet", "--verbose"]) == 0
    printed = capsys.readouterr().out
    report = open_bundle(out).report
    assert report is not None
    assert timed == ["onnxruntime", "openvino"]
    assert (report["backend"], report["choice"]["delivered"]) == (name, name)
    assert {row: entry["right"] for row, entry in report["choice"]["engines"].items()} == {"onnxruntime": True, "openvino": True}
    assert all(entry["version"] and entry["precision_shares"] for entry in report["choice"]["engines"].values())
    assert "not tensorrt: no GPU" in report["backend_reason"]
    assert "choice: as the test says" in printed
    assert "threads 1 (as asked)" in printed
    assert "delivered" in printed
    with open_engine(open_bundle(out)) as engine:
        assert isinstance(engine, kind)
        assert engine.facts.execution["threads"] == 1  # as it was deployed
    again = verify_bundle(out)
    assert (again.passed, again.report["backend"]) == (True, name)
    other = {"openvino": "onnxruntime", "onnxruntime": "openvino"}[name]
    assert bench_bundle(out, backend=other, batches=(1,), warmup_ms=0, duration_s=0, iterations=1, options={"threads": 2})


def test_timed_for_real_the_delivered_engine_is_the_one_that_the_report_calls_faster(pico_fp32: Path, tmp_path: Path) -> None:
    result = deploy_bundle(pico_fp32, out=tmp_path / "b")
    choice = result.report["choice"]
    (found,) = choice["comparisons"]
    assert result.passed
    assert result.report["backend"] == choice["delivered"] == ("openvino" if found["accepted"] else "onnxruntime")
    assert found["measure"] == "host latency"
    assert {row["median_ms"] > 0 for row in choice["engines"].values()} == {True}
    assert json.loads(json.dumps(choice)) == choice


def test_an_engine_outside_the_gate_is_not_timed_and_not_delivered(
    fastest: Callable[..., list[str]], pico_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = fastest("openvino")
    right = OpenVinoEngine.infer
    monkeypatch.setattr(OpenVinoEngine, "infer", lambda self, images: -right(self, images))
    result = deploy_bundle(pico_export, out=tmp_path / "b")
    assert result.passed
    assert timed == ["onnxruntime"]
    assert result.report["backend"] == "onnxruntime"
    row = result.report["choice"]["engines"]["openvino"]
    assert (row["right"], row["median_ms"]) == (False, None)
    assert "outside the gate" in row["reason"]
    assert "not openvino: outside the gate" in result.report["choice"]["reason"]


def test_where_the_faster_one_fails_later_the_next_is_delivered(
    fastest: Callable[..., list[str]], pico_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest("openvino")
    right = OpenVinoEngine.infer

    def wrong_alone(self: OpenVinoEngine, images: FloatArray) -> FloatArray:
        return np.zeros((1, 10), np.float32) if len(images) == 1 else right(self, images)

    monkeypatch.setattr(OpenVinoEngine, "infer", wrong_alone)
    result = deploy_bundle(pico_export, out=tmp_path / "b")
    assert result.passed
    assert (result.report["backend"], result.report["choice"]["delivered"]) == ("onnxruntime", "onnxruntime")
    assert "openvino is not delivered: " in result.report["choice"]["reason"]


def test_an_engine_that_cannot_be_built_is_left_out_with_its_reason(
    fastest: Callable[..., list[str]], pico_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = fastest("openvino")

    def fail(*arguments: Any, **options: Any) -> Any:
        raise EngineError("the engine does not like this", "try another")

    monkeypatch.setattr(OpenVinoBackend, "build", fail)
    result = deploy_bundle(pico_export, out=tmp_path / "b")
    assert timed == ["onnxruntime"]
    assert "not openvino: the engine does not like this; try another" in result.report["choice"]["reason"]
    monkeypatch.setattr(OnnxRuntimeBackend, "build", fail)
    with pytest.raises(EngineError, match="does not like this"):
        deploy_bundle(pico_export, out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_an_option_that_one_engine_has_decides_for_it_and_one_that_none_has_is_refused(
    fastest: Callable[..., list[str]], pico_export: Path, tmp_path: Path
) -> None:
    timed = fastest("onnxruntime")
    result = deploy_bundle(pico_export, out=tmp_path / "b", options={"device": "CPU"})
    assert (timed, result.report["backend"]) == (["openvino"], "openvino")
    with pytest.raises(SpecError, match="no option 'workspace_mib'"):
        deploy_bundle(pico_export, out=tmp_path / "c", options={"workspace_mib": 64})


def test_a_backend_that_was_asked_for_is_delivered_without_timing(
    fastest: Callable[..., list[str]], pico_export: Path, tmp_path: Path
) -> None:
    timed = fastest("onnxruntime")
    result = deploy_bundle(pico_export, out=tmp_path / "b", backend="openvino")
    assert (timed, result.report["backend"], result.report["choice"]) == ([], "openvino", None)


def test_where_openvino_would_compute_in_bf16_its_fp32_is_tried_too(
    fastest: Callable[..., list[str]], pico_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BF16 is told to a CPU that may not have it: OpenVINO computes in FP32 then, and the choice is made all the same."""
    from gmf_edge.engines.openvino import backend
    from gmf_edge.engines.openvino.settings import Arithmetic

    monkeypatch.setattr(backend, "arithmetic_for", lambda *_: Arithmetic(BF16, "computed in BF16"))
    timed = fastest(f"openvino (arithmetic {FP32})")
    result = deploy_bundle(pico_export, out=tmp_path / "b", backend="openvino")
    assert timed == ["openvino (as it is)", "openvino (arithmetic f32)"]
    assert result.report["choice"]["delivered"] == "openvino (arithmetic f32)"
    assert result.report["engine"]["options"]["arithmetic"] == FP32
    with open_engine(open_bundle(tmp_path / "b")) as engine:
        assert engine.facts.execution["arithmetic"] == "FP32"


def test_the_backends_in_question_are_all_that_can_build_and_tensorrt_alone_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    backends, why = choose.backends_in_question("auto")
    assert [backend.name for backend in backends] == ["onnxruntime", "openvino"]
    assert why == "onnxruntime and openvino (not tensorrt: no GPU)"
    monkeypatch.setattr(OnnxRuntimeBackend, "missing", lambda self: "not installed")
    assert [backend.name for backend in choose.backends_in_question("auto")[0]] == ["openvino"]
    monkeypatch.setattr(TensorRTBackend, "missing_to_build", lambda self: None)
    assert [backend.name for backend in choose.backends_in_question("auto")[0]] == ["tensorrt"]
