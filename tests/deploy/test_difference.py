"""Two bundles or two measurements against each other."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmf_edge.bench.latency import BenchPlan
from gmf_edge.bundle import MANIFEST, REPORT, Manifest, seal
from gmf_edge.deploy import BenchRequest, Limits, bench_bundle, compare
from gmf_edge.engines.onnxruntime import OnnxRuntimeEngine
from gmf_edge.engines.protocol import FloatArray
from gmf_edge.errors import BundleError, DataError, SpecError

PLAN = BenchPlan(warmup_ms=0, duration_s=0, iterations=12)


@pytest.fixture(scope="module")
def measured(pico_fp32: Path) -> dict[str, Any]:
    """A measurement of pico at batch 1."""
    return bench_bundle(pico_fp32, BenchRequest(batches=(1,), plan=PLAN)).to_json()


@pytest.fixture
def written(measured: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """written(name, change): the measurement with a change, as a file."""

    def write(name: str, change: Callable[[dict[str, Any]], object] = lambda values: None) -> Path:
        values = copy.deepcopy(measured)
        change(values)
        path = tmp_path / name
        path.write_text(json.dumps(values))
        return path

    return write


def latency(median: float, low: float, high: float) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        values["latency"][0].update(median_ms=median, median_low_ms=low, median_high_ms=high)

    return change


def test_an_engine_made_slower_on_purpose_is_a_regression(pico_fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of the test's own, so that no noise of the machine makes up for it."""
    now, usual = [0.0], OnnxRuntimeEngine.infer
    monkeypatch.setattr("gmf_edge.bench.latency.time.perf_counter", lambda: now[0])
    files = {}
    for name, seconds in (("before", 0.010), ("after", 0.012)):

        def infer(self: OnnxRuntimeEngine, images: FloatArray, seconds: float = seconds) -> FloatArray:
            now[0] += seconds
            return usual(self, images)

        monkeypatch.setattr(OnnxRuntimeEngine, "infer", infer)
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(bench_bundle(pico_fp32, BenchRequest(batches=(1,), plan=PLAN)).to_json()))
    found = compare(files["before"], files["after"], Limits(max_regression=0.05))
    assert (found.passed, found.reason) == (False, "batch 1 is 20.0 % slower, more than 5.0 %")
    assert compare(files["before"], files["after"], Limits(max_regression=0.25)).passed
    assert compare(files["after"], files["before"], Limits(max_regression=0.0)).passed


@pytest.mark.parametrize(
    ("median", "low", "high", "passed", "doubtful"),
    [
        (10.4, 10.38, 10.42, True, False),
        (10.6, 10.58, 10.62, False, False),
        (10.4, 10.0, 10.8, True, True),
        (10.6, 10.2, 11.0, False, True),
    ],
)
def test_the_medians_decide_and_doubt_is_said(
    written: Callable[..., Path], median: float, low: float, high: float, passed: bool, doubtful: bool
) -> None:
    a, b = written("a.json", latency(10.0, 9.999, 10.001)), written("b.json", latency(median, low, high))
    found = compare(a, b, Limits(max_regression=0.05))
    assert (found.passed, bool(found.notes)) == (passed, doubtful)
    assert found.latency[0].low == pytest.approx(low / 10.001 - 1)
    assert found.latency[0].high == pytest.approx(high / 9.999 - 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["engine"].update(device="AMD EPYC 9R14, 8 cores"), "device: "),
        (lambda v: v["machine"].update(cores=64), "cores: "),
        (lambda v: v["latency"][0]["modes"].update(transfers=False), "transfers at batch 1: on and off"),
        (lambda v: v["latency"][0].update(device={"before": {"power_mode": "15W"}}), "power mode: MAXN and 15W"),
        (lambda v: v["made"]["evaluation"].update(sha256="0" * 64), "evaluation images: "),
    ],
)
def test_other_machines_modes_and_images_are_refused_by_name(
    written: Callable[..., Path], change: Callable[[dict[str, Any]], None], words: str
) -> None:
    def first(values: dict[str, Any]) -> None:
        values["latency"][0]["modes"] = {"cuda_graph": True, "transfers": True, "spin_wait": False}
        values["latency"][0]["device"] = {"before": {"power_mode": "MAXN"}}

    def second(values: dict[str, Any]) -> None:
        first(values)
        change(values)

    a, b = written("a.json", first), written("b.json", second)
    with pytest.raises(SpecError, match="not of the same kind") as refusal:
        compare(a, b)
    assert words in refusal.value.problem
    assert "--force" in refusal.value.remedy
    found = compare(a, b, force=True)
    assert len(found.forced) == 1
    assert words in found.forced[0]


def test_flips_accuracy_sizes_and_the_making_of_two_bundles(
    pico_fp32: Path, pico_fp16: Path, copied: Callable[[Path], Path]
) -> None:
    worse = copied(pico_fp16)
    report = json.loads((worse / REPORT).read_text())
    report["parity"]["engine_top1"] -= 0.5
    report["parity"]["flips"] = [{"image": "3/12.png"}, {"image": "8/40.png"}]
    (worse / REPORT).write_text(json.dumps(report))
    seal(worse, Manifest.from_json(json.loads((worse / MANIFEST).read_text())))
    found = compare(pico_fp32, worse, Limits(max_drop_points=0.4))
    assert (found.passed, found.reason) == (False, "top-1 is 0.50 points lower, more than 0.4")
    assert found.accuracy_change_points == pytest.approx(-0.5)
    assert (found.flips_only_in_a, found.flips_only_in_b) == ((), ("3/12.png", "8/40.png"))
    before, after = found.sizes["weights.bin"]
    assert before is not None
    assert after is not None
    assert 0.4 < after / before < 0.6
    assert "precision: fp32 -> fp16" in found.made
    assert any(line.startswith("islands only in B: ") for line in found.made)
    assert {change.batch for change in found.latency} == {1, 8}
    assert compare(pico_fp32, worse, Limits(max_drop_points=0.5)).passed
    json.dumps(found.to_json(), allow_nan=False)


def test_a_bundle_and_a_measurement_of_it_are_compared(pico_fp32: Path, written: Callable[..., Path]) -> None:
    found = compare(pico_fp32, written("m.json"), Limits(max_drop_points=0.0))
    assert found.passed
    assert (found.made, found.flips_only_in_a, dict(found.sizes)) == ((), (), {})
    assert [change.batch for change in found.latency] == [1]


def test_without_labels_agreement_is_what_may_drop(written: Callable[..., Path]) -> None:
    def untrained(agreement: float) -> Callable[[dict[str, Any]], None]:
        return lambda values: values["accuracy"].update(engine_top1=None, agreement=agreement)

    a, b = written("a.json", untrained(1.0)), written("b.json", untrained(0.98))
    found = compare(a, b, Limits(max_drop_points=1.0))
    assert found.reason == "agreement with FP32 PyTorch is 2.00 points lower, more than 1"
    assert compare(a, b, Limits(max_drop_points=2.0)).passed


def test_a_limit_on_what_is_not_there_is_refused(written: Callable[..., Path]) -> None:
    def other_batch(values: dict[str, Any]) -> None:
        values["latency"][0]["batch"] = 2
        values["accuracy"] = None

    a, b = written("a.json"), written("b.json", other_batch)
    with pytest.raises(SpecError, match="no batch size at which both were measured"):
        compare(a, b, Limits(max_regression=0.05))
    with pytest.raises(SpecError, match="no accuracy"):
        compare(a, b, Limits(max_drop_points=1.0))


def test_what_is_no_measurement_is_refused(pico_export: Path, tmp_path: Path, written: Callable[..., Path]) -> None:
    good = written("good.json")
    (tmp_path / "other.json").write_text('{"kind": "something else"}')
    (tmp_path / "broken.json").write_text("{")
    for name in ("other.json", "broken.json"):
        with pytest.raises(DataError, match=name):
            compare(good, tmp_path / name)
    with pytest.raises(BundleError, match="was not deployed"):
        compare(pico_export, good)
    with pytest.raises(BundleError, match="does not exist"):
        compare(tmp_path / "nothing", good)


@pytest.mark.parametrize("limit", [-0.1, float("nan"), float("inf")])
def test_limits_that_cannot_be_meant_are_refused(limit: float) -> None:
    with pytest.raises(SpecError, match="--max-regression"):
        Limits(max_regression=limit)


def test_a_latency_of_nan_does_not_pass(written: Callable[..., Path]) -> None:
    a, b = written("a.json"), written("b.json", latency(float(np.nan), 1.0, 1.0))
    assert not compare(a, b, Limits(max_regression=0.05)).passed
