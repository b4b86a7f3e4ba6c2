"""benchmarks/results_table.py: the README's table is what it prints, and it takes both kinds of files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("results_table", BENCHMARKS / "results_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readmes_table_is_what_the_script_makes_of_the_committed_results(script: Any) -> None:
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    results = script.read_results()
    assert script.with_table(readme, script.table(results)) == readme, "run benchmarks/results_table.py --write"


def test_every_committed_result_says_what_it_was_measured_with(script: Any) -> None:
    for name, values in script.read_results().items():
        if values.get("kind") == script.KIND:
            assert values["engine"]["device"], name
            assert values["machine"]["cores"] >= 1, name
            assert all(latency["modes"].keys() >= {"cuda_graph", "transfers", "spin_wait"} for latency in values["latency"]), name


def test_the_small_models_were_measured_on_a_processor(script: Any) -> None:
    measured = [values for values in script.read_results().values() if values.get("kind") == script.KIND]
    assert {"pico", "mobile", "small"} <= {values["made"]["model"]["variant"] for values in measured}
    # each beside what there is without this project
    assert all(len(values["baselines"]["engines"]) == 5 for values in measured)


LATENCY = {
    "batch": 1,
    "median_ms": 1.5,
    "median_low_ms": 1.49,
    "median_high_ms": 1.52,
    "percentiles_ms": {"99": 1.75},
    "throughput": 900.0,
    "steady": True,
    "gpu_compute": {"median_ms": 1.0, "median_low_ms": None, "median_high_ms": None, "percentiles_ms": {"90": 1.1}},
}


def test_a_gpu_checks_passed_bundles_are_rows(script: Any) -> None:
    engine = {"built_for": {"device": {"name": "Orin"}, "tensorrt": "10.3.0"}}
    passed = {"bundle": "small-fp16", "status": "passed", "engine": engine, "latency": [LATENCY]}
    failed = {"bundle": "pico-fp16", "status": "failed", "reason": "x"}
    rows = list(script.latency_rows({"bundles": [passed, failed], "started": "2026-11-27T06:00:00+00:00"}))
    assert rows == ["| Orin | small | FP16 | tensorrt 10.3.0 | 1 | 1.00 GPU compute |  | 900.0 | 2026-11-27 |"]


def test_an_unsteady_figure_is_marked(script: Any) -> None:
    values = {
        "kind": script.KIND,
        "engine": {"device": "EPYC", "backend": "onnxruntime", "version": "1.32.0"},
        "made": {"model": {"variant": "pico", "image_size": [64, 64]}, "precision": "fp32"},
        "latency": [{**LATENCY, "gpu_compute": None, "steady": False}],
        "written": "2026-11-27T06:00:00+00:00",
    }
    (row,) = script.latency_rows(values)
    assert "1.50 (1.49..1.52) host, unsteady | 1.75 |" in row


def test_engines_in_turn_stand_below_with_ratio_and_parity(script: Any) -> None:
    part = {"times": {"median_ms": 12.5}, "ratio": 1.25, "ratio_low": 1.2, "ratio_high": 1.31}
    engine = {
        "backend": "openvino",
        "version": "2026.4.1",
        "form": "plain export",
        "accuracy": {"agreement": 1.0, "relative_l2": 2.5e-7},
    }
    values = {
        "kind": script.KIND,
        "engine": {"device": "EPYC", "backend": "onnxruntime", "version": "1.32.0"},
        "made": {"model": {"variant": "pico", "image_size": [64, 64]}, "precision": "fp32"},
        "latency": [{**LATENCY, "gpu_compute": None}],
        "written": "2026-11-27T06:00:00+00:00",
        "baselines": {"engines": {"openvino": engine}, "batches": {"1": {"engines": {"openvino": part}}}, "not_run": {}},
    }
    lines = script.table({"a.json": values}).splitlines()
    assert lines[:2] == [script.LATENCY_HEAD, script.rule(script.LATENCY_HEAD)]
    assert lines[-1] == (
        "| EPYC | pico 64x64, FP32 | 1 | openvino: openvino 2026.4.1, plain export | 12.50 | 1.25 | 1.20..1.31 "
        "| agreement 100.00 %, relative L2 2.5e-07 |"
    )


def test_a_readme_without_marks_is_refused(script: Any) -> None:
    with pytest.raises(ValueError, match="lacks"):
        script.with_table("# Benchmarks\n", "table\n")
