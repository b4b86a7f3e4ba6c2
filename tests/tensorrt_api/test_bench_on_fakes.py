"""The benchmark on stand-ins: what a trace holds, what is recorded, and what stands beside it, on each version's API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trt_bindings
from cuda_fake import COPY_BYTES_PER_MS
from test_gpu_check import bundle
from trt_fake import CLASSES, FakeModel
from trt_machine import Machine, MakeMachine, expected, images

from gmf_edge.bench.latency import BenchPlan, measure_latency, measure_throughput
from gmf_edge.bench.plain_model import PlainModel
from gmf_edge.deploy import BenchRequest, bench_bundle, deploy_bundle
from gmf_edge.engines.tensorrt.backend import LAYERS_FILE
from gmf_edge.engines.tensorrt.stock import open_stock_engine
from gmf_edge.engines.trace import ProfiledEngine, TracedEngine, TracePlan
from gmf_edge.errors import EngineError
from gmf_edge.spec import BatchProfile, Precision

every_version = pytest.mark.parametrize("version", trt_bindings.VERSIONS)
VERSION = "10.3.0"
PLAN = TracePlan(warmup_s=0.0, duration_s=0.0, iterations=6)


@pytest.fixture
def machine(make: MakeMachine) -> Machine:
    return make(VERSION)


@every_version
def test_a_trace_holds_every_step_without_pythons_gaps(make: MakeMachine, version: str) -> None:
    machine = make(version)
    batch = images(4)
    with machine.open(machine.build()) as engine:
        assert isinstance(engine, TracedEngine)
        assert isinstance(engine, ProfiledEngine)
        traced = engine.trace(batch, PLAN)
        assert (len(traced.traces), traced.cuda_graph, traced.in_flight) == (6, True, 2)
        for trace in traced.traces[1:]:
            assert trace.compute_ms == pytest.approx(machine.model.compute_ms)
            assert trace.h2d_ms == pytest.approx(batch.nbytes / COPY_BYTES_PER_MS)
            assert trace.d2h_ms == pytest.approx(4 * CLASSES * 4 / COPY_BYTES_PER_MS)
            assert trace.latency_ms == pytest.approx(trace.h2d_ms + trace.compute_ms + trace.d2h_ms)
            assert trace.enqueue_ms > 0
        ends = [trace.end_d2h_ms for trace in traced.traces]
        assert ends == sorted(ends)
        # the next one's images go in where the last one's logits have gone out
        assert traced.traces[3].start_h2d_ms >= traced.traces[2].end_d2h_ms
        np.testing.assert_allclose(engine.infer(images(2)), expected(images(2)), atol=2e-3)
    assert not machine.cuda.events


@pytest.mark.parametrize("spin", [True, False])
def test_the_cpu_spins_or_sleeps_as_it_was_told(machine: Machine, spin: bool) -> None:
    with machine.open(machine.build()) as engine:
        engine.trace(images(2), TracePlan(0.0, 0.0, 4, spin_wait=spin))
    assert {word for word in machine.cuda.log if word in ("spin", "sleep")} == {"spin" if spin else "sleep"}


def test_without_transfers_nothing_is_copied(machine: Machine) -> None:
    with machine.open(machine.build()) as engine:
        engine.infer(images(2))
        before = sum(entry.startswith("copy") for entry in machine.cuda.log)
        traced = engine.trace(images(2), TracePlan(0.0, 0.0, 6, transfers=False))
        # the images once, before the first one
        assert sum(entry.startswith("copy") for entry in machine.cuda.log) == before + 1
        assert {(trace.h2d_ms, trace.d2h_ms) for trace in traced.traces} == {(0.0, 0.0)}


def test_streams_run_at_a_time_and_no_more_than_there_are(machine: Machine) -> None:
    files = machine.build()
    with machine.open(files, options={"streams": 2}) as engine:
        found = measure_throughput([engine], 2, (32, 32), 2, BenchPlan(warmup_ms=0, duration_s=0, iterations=8))
        assert (found.streams, found.modes["in_flight"], found.modes["streams"]) == (2, 4, 2)
        assert found.images_per_s > 0
        with pytest.raises(EngineError, match="3 streams of an engine that has 2"):
            engine.trace(images(2), TracePlan(0.0, 0.0, 1, streams=3))


@pytest.mark.parametrize("graphs", [True, False])
def test_every_mode_is_recorded_whatever_it_is(machine: Machine, graphs: bool) -> None:
    with machine.open(machine.build(), options={"cuda_graphs": graphs}) as engine:
        plan = BenchPlan(warmup_ms=0, duration_s=0, iterations=12, transfers=False, spin_wait=True)
        told = measure_latency(engine, 2, (32, 32), plan).to_json()
    assert told["modes"] == {"cuda_graph": graphs, "transfers": False, "spin_wait": True, "streams": 1, "in_flight": 2}
    for name in ("enqueue", "h2d", "d2h", "latency", "gpu_compute"):
        assert set(told[name]) >= {"mean_ms", "median_ms", "percentiles_ms"}, name
    json.dumps(told, allow_nan=False)


def test_layers_have_a_time_of_each_run(machine: Machine) -> None:
    with machine.open(machine.build()) as engine:
        layers = engine.layer_runs(4)
        assert {len(layer.times_ms) for layer in layers} == {4}
        assert [(layer.name, pytest.approx(np.mean(layer.times_ms))) for layer in layers] == engine.layer_times_ms(4)


@pytest.mark.usefixtures("brief_latency")
def test_a_bundle_is_measured_with_trtexecs_files(make: MakeMachine, tmp_path: Path) -> None:
    make(VERSION)
    folder = bundle(tmp_path / "b", "pico", Precision.FP16)
    deploy_bundle(folder, backend="tensorrt")
    files = {name: tmp_path / f"{name}.json" for name in ("times", "profile", "layers")}
    result = bench_bundle(
        folder,
        BenchRequest(
            batches=(2,),
            plan=BenchPlan(warmup_ms=0, duration_s=0, iterations=5),
            streams=2,
            export_times=files["times"],
            export_profile=files["profile"],
            export_layers=files["layers"],
        ),
    )
    assert result.facts.backend == "tensorrt"
    assert [found.streams for found in result.throughputs] == [2]
    assert len(json.loads(files["times"].read_text())) == 5
    head, *rows = json.loads(files["profile"].read_text())
    assert head == {"count": 10}
    assert sum(row["percentage"] for row in rows) == pytest.approx(100)
    assert json.loads(files["layers"].read_text()) == json.loads((folder / LAYERS_FILE).read_text())
    json.dumps(result.to_json(), allow_nan=False)


@every_version
def test_the_plain_export_is_built_as_trtexec_would(make: MakeMachine, version: str, tmp_path: Path) -> None:
    machine = make(version)
    graph = tmp_path / "1-plain.onnx"
    graph.write_bytes(b"plain")
    with open_stock_engine(graph, Precision.FP16, BatchProfile(1, 2, 4), (32, 32)) as engine:
        assert engine.infer(images(2)).shape == (2, CLASSES)
        facts = engine.facts
    flags = machine.trt.configs[-1]._flags
    if version.startswith("11"):
        assert facts.form == "plain export, fp32"
        assert any("precision from the graph alone" in note for note in facts.notes)
    else:
        assert facts.form == "plain export, fp16"
        assert {"FP16", "TF32"} <= flags
        explicit = machine.trt.types["NetworkDefinitionCreationFlag"].EXPLICIT_BATCH
        assert machine.trt.networks[-1]._flags == (1 << int(explicit) if version.startswith("8.") else 0)
    # as trtexec: no layer is told to stay FP32
    assert "OBEY_PRECISION_CONSTRAINTS" not in flags


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16, Precision.FP32])
def test_the_builder_is_given_the_plain_exports_precision_and_no_other(
    make: MakeMachine, precision: Precision, tmp_path: Path
) -> None:
    machine = make(VERSION)
    graph = tmp_path / "1-plain.onnx"
    graph.write_bytes(b"plain")
    with open_stock_engine(graph, precision, BatchProfile(1, 2, 4), (32, 32)) as engine:
        assert engine.facts.form == f"plain export, {precision.value}"
    assert machine.trt.configs[-1]._flags & {"FP16", "BF16", "INT8"} == {precision.name} - {"FP32"}


@pytest.mark.usefixtures("brief_latency")
def test_stock_tensorrt_stands_in_the_table_with_its_parity(
    make: MakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(VERSION, FakeModel(compute_ms=2.0))
    folder = bundle(tmp_path / "b", "pico", Precision.FP16)
    deploy_bundle(folder, backend="tensorrt")
    graph = tmp_path / "1-plain.onnx"
    graph.write_bytes(b"plain")
    monkeypatch.setattr(PlainModel, "graph", graph)
    request = BenchRequest(batches=(2,), plan=BenchPlan(0, 0, 2), against=("stock-trt", "eager"), turn=quick_turn())
    result = bench_bundle(folder, request)
    assert result.baselines is not None
    told: dict[str, Any] = result.baselines.to_json()
    assert list(told["batches"]["2"]["engines"]) == ["gmf-edge", "stock-trt"]
    assert told["batches"]["2"]["measure"] == "GPU compute time"
    assert told["engines"]["stock-trt"]["form"] == "plain export, fp16"
    assert told["engines"]["stock-trt"]["within_gate"] is True
    # PyTorch has no GPU here, and it is not the CPU that is measured against a GPU
    assert "eager" in told["not_run"]


def quick_turn() -> Any:
    from gmf_edge.bench.in_turn import TurnPlan

    return TurnPlan(warmup_s=0.0, seconds=0.0, rounds=3, block_ms=0.0, quiet_s=0.0)
