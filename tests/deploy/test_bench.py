"""A bundle's engine measured, and beside what there is without this project."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from gmf_edge.bench.baselines import BASELINES, baseline_names
from gmf_edge.bench.in_turn import TurnPlan
from gmf_edge.bench.latency import BenchPlan
from gmf_edge.bench.plain_model import PlainModel
from gmf_edge.bundle import GOLDEN, open_bundle
from gmf_edge.deploy import BenchRequest, bench_bundle
from gmf_edge.errors import CheckpointError, EnvironmentProblem, SpecError
from gmf_edge.verify.golden import Golden
from gmf_edge.weights import WeightsOrigin

BRIEF = BenchPlan(warmup_ms=0, duration_s=0, iterations=8)
TURN = TurnPlan(warmup_s=0.0, seconds=0.0, rounds=3, block_ms=1.0, quiet_s=0.0)


def test_streams_are_measured_at_work_together(pico_fp32: Path) -> None:
    result = bench_bundle(pico_fp32, BenchRequest(batches=(1, 2), plan=BRIEF, streams=2))
    assert [(found.batch, found.streams, found.modes["in_flight"]) for found in result.throughputs] == [(1, 2, 2), (2, 2, 2)]
    assert all(found.images_per_s > 0 and found.latency is not None for found in result.throughputs)
    assert [latency.modes["in_flight"] for latency in result.latencies] == [1, 1]


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_keeps_its_streams_itself(pico_fp32: Path) -> None:
    result = bench_bundle(pico_fp32, BenchRequest(batches=(1,), backend="openvino", plan=BRIEF, streams=2))
    assert result.facts.backend == "openvino"
    (found,) = result.throughputs
    assert (found.streams, found.latency) == (2, None)
    assert found.images_per_s > 0


def test_the_files_are_trtexecs(pico_fp32: Path, tmp_path: Path) -> None:
    times, profile, layers = (tmp_path / f"{name}.json" for name in ("times", "profile", "layers"))
    bench_bundle(
        pico_fp32,
        BenchRequest(batches=(1,), plan=BRIEF, export_times=times, export_profile=profile, export_layers=layers),
    )
    told = json.loads(times.read_text())
    assert len(told) == 8
    assert all(entry["latencyMs"] == pytest.approx(entry["computeMs"]) and entry["computeMs"] > 0 for entry in told)
    head, *rows = json.loads(profile.read_text())
    assert (head, len({row["name"] for row in rows}) == len(rows)) == ({"count": 10}, True)
    assert {layer["Name"] for layer in json.loads(layers.read_text())["Layers"]} == {row["name"] for row in rows}


def test_times_of_several_batches_do_not_go_into_one_file(pico_fp32: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="one file"):
        bench_bundle(pico_fp32, BenchRequest(plan=BRIEF, export_times=tmp_path / "times.json"))


def test_baselines_stand_beside_the_engine_with_their_parity(pico_fp32: Path) -> None:
    wanted = ("eager", "onnxruntime", *(("openvino",) if find_spec("openvino") else ()), "stock-trt")
    result = bench_bundle(pico_fp32, BenchRequest(batches=(1,), plan=BRIEF, against=wanted, turn=TURN))
    assert result.baselines is not None
    told = json.loads(json.dumps(result.baselines.to_json(), allow_nan=False))
    assert list(told["batches"]["1"]["engines"]) == ["gmf-edge", *wanted[:-1]]
    assert told["batches"]["1"]["engines"]["gmf-edge"]["ratio"] == 1.0
    for name in ("gmf-edge", *wanted[:-1]):
        part, engine = told["batches"]["1"]["engines"][name], told["engines"][name]
        assert part["ratio_low"] <= part["ratio"] <= part["ratio_high"]
        assert part["ratio"] > 0
        # each is the model that the bundle is of: FP32 PyTorch's own logits are in the bundle
        assert (engine["within_gate"], engine["accuracy"]["agreement"]) == (True, 1.0), engine["reason"]
        assert engine["accuracy"]["relative_l2"] < 1e-4
    assert list(told["not_run"]) == ["stock-trt"]
    assert "cuda" in told["not_run"]["stock-trt"].lower()


@pytest.mark.slow
def test_a_compiled_model_says_the_same(pico_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile's own C++ takes half a minute; its front end alone shows that the model goes through it."""
    torch = pytest.importorskip("torch")
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiled(model, backend="eager"))
    from gmf_edge.model.torch_engine import TorchEngine

    manifest = open_bundle(pico_fp32).manifest
    golden = Golden.load(pico_fp32 / GOLDEN)
    with TorchEngine(PlainModel(manifest.model, manifest.weights).model, compiled=True, on_gpu=False) as engine:
        assert engine.facts.form == "torch.compile"
        np.testing.assert_allclose(engine.infer(golden.images[:2]), golden.logits[:2], atol=1e-4)


def test_a_compiler_that_is_not_there_is_a_baseline_not_run(pico_fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    def broken(model: object) -> object:
        def call(images: object) -> object:
            raise RuntimeError("Failed to find C++ compiler. Please specify via CXX environment variable.\nmore")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    result = bench_bundle(pico_fp32, BenchRequest(batches=(1,), plan=BRIEF, against=("compile",), turn=TURN))
    assert result.baselines is not None
    assert "Failed to find C++ compiler" in result.baselines.not_run["compile"]
    assert list(result.baselines.contenders) == ["gmf-edge"]


def test_a_checkpoints_bundle_needs_that_checkpoint(pico_fp32: Path, tmp_path: Path) -> None:
    manifest = open_bundle(pico_fp32).manifest
    weights = WeightsOrigin("checkpoint", "mine.safetensors", manifest.weights.sha256, "")
    with pytest.raises(EnvironmentProblem, match=r"does not carry the checkpoint mine\.safetensors"):
        _ = PlainModel(manifest.model, weights).model
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="is not the checkpoint that the bundle was made from"):
        _ = PlainModel(manifest.model, weights, other).model
    from gmf_edge.bench import plain_model

    model = PlainModel(manifest.model, weights, plain_model.ASSETS / "pico.safetensors").model
    assert model.spec == manifest.model


def test_random_weights_are_drawn_again_from_their_seed(odd_pico: object) -> None:
    bundle = open_bundle(odd_pico.bundle)  # type: ignore[attr-defined]
    golden = Golden.load(bundle.path(GOLDEN))
    from gmf_edge.model.torch_engine import TorchEngine

    with TorchEngine(PlainModel(bundle.manifest.model, bundle.manifest.weights).model, compiled=False, on_gpu=False) as engine:
        np.testing.assert_allclose(engine.infer(golden.images[:2]), golden.logits[:2], atol=1e-5)


def test_names_of_baselines() -> None:
    assert baseline_names("eager, onnxruntime,eager") == ("eager", "onnxruntime")
    assert baseline_names("all") == BASELINES
    for text in ("tensorflow", ""):
        with pytest.raises(SpecError, match="unknown baseline"):
            baseline_names(text)


@pytest.mark.parametrize("settings", [{"streams": 0}, {"batches": (0,)}])
def test_requests_that_cannot_be_meant_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="out of range"):
        BenchRequest(**settings)  # type: ignore[arg-type]
