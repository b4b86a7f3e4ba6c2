"""report.json: the fields that readers rely on, null where a number does not exist, and never NaN."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmf_edge.bundle import open_bundle
from gmf_edge.engines.protocol import EngineFacts, LayerRecord
from gmf_edge.spec import GATES, Precision
from gmf_edge.verify.golden import Reference
from gmf_edge.verify.parity import ParityReport
from gmf_edge.verify.report import report_of, write_report

PARITY_FIELDS = {
    "images", "reference_top1", "engine_top1", "top1_change_points", "interval_95", "agreement", "flips", "max_abs_error", "cosine",
    "batches",
}  # fmt: skip


def report_in(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return values


def parity(**changes: Any) -> ParityReport:
    values: dict[str, Any] = {
        "images": 3, "reference_top1": None, "engine_top1": None, "reference_top5": None, "engine_top5": None,
        "top1_change_points": None, "interval_95": None, "discordant": None,
        "agreement": 1.0, "clear_agreement": 1.0, "flips": (), "max_abs_error": 0.1,
        "relative_l2": 0.1, "cosine": 1.0, "min_cosine": 1.0, "reference_spread": 1.0, "non_finite_images": 0,
        "reference_non_finite_images": 0,
    }  # fmt: skip
    return ParityReport(**{**values, **changes})


def report_with(bundle: Path, found: ParityReport) -> dict[str, Any]:
    facts = EngineFacts(
        "onnxruntime", "1", "a CPU", "portable", (LayerRecord("a", "Conv", "fp32", 0.5),), {"fp32": 1.0}, ("a note",)
    )
    manifest = open_bundle(bundle).manifest
    latency = {"batch": 2, "median_ms": 1.5}
    return report_of(manifest, facts, "as asked", found, GATES[Precision.FP16], False, "because", [latency])


def test_a_labelled_build_reports_every_field_with_its_number(pico_fp16: Path) -> None:
    report = report_in(pico_fp16)
    assert (report["passed"], report["backend"], report["precision"]) == (True, "onnxruntime", "fp16")
    assert report["weights"]["trained"] is True
    found = report["parity"]
    assert set(found) >= PARITY_FIELDS
    assert set(found["batches"]) == {"1", "8"}
    assert found["images"] == 360
    assert found["reference_top1"] > 99
    low, high = found["interval_95"]
    assert low <= found["top1_change_points"] <= high
    assert found["top1_change_points"] == pytest.approx(found["engine_top1"] - found["reference_top1"])
    assert set(report["latency"]) == {"1", "8"}
    assert all(latency["median_ms"] > 0 for latency in report["latency"].values())


def test_the_reference_accuracy_is_the_references(pico_fp16: Path) -> None:
    reference = Reference.load(pico_fp16 / "reference.npz")
    assert reference.labels is not None
    top1 = 100 * float(np.mean(reference.logits.argmax(axis=1) == reference.labels))
    assert report_in(pico_fp16)["parity"]["reference_top1"] == pytest.approx(top1)


def test_numbers_that_do_not_exist_are_null(pico_fp16: Path, tmp_path: Path) -> None:
    write_report(report_with(pico_fp16, parity(max_abs_error=float("nan"), cosine=float("nan"))), tmp_path / "report.json")
    found = report_in(tmp_path)["parity"]
    for name in ("reference_top1", "engine_top1", "top1_change_points", "interval_95", "max_abs_error", "cosine"):
        assert found[name] is None, name
    assert found["agreement"] == 1.0


def test_a_report_with_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report({"cosine": float("nan")}, tmp_path / "report.json")


def test_a_report_says_what_ran_and_why(pico_fp16: Path) -> None:
    report = report_with(pico_fp16, parity())
    assert (report["passed"], report["reason"], report["backend_reason"]) == (False, "because", "as asked")
    assert report["engine"]["layers"] == [{"name": "a", "kind": "Conv", "precision": "fp32", "time_ms": 0.5}]
    assert report["engine"]["notes"] == ("a note",)
    assert report["latency"] == {"2": {"batch": 2, "median_ms": 1.5}}
    assert report["gate"] == {"max_drop_points": 0.1, "min_agreement": 0.99, "min_cosine": 0.9999, "strict": False}
    assert report["model"]["variant"] == "pico"
    json.dumps(report, allow_nan=False)


def test_the_gate_in_the_report_is_the_one_that_was_applied(pico_fp16: Path) -> None:
    manifest = open_bundle(pico_fp16).manifest
    gate = replace(GATES[Precision.FP16], max_drop_points=7.0)
    facts = EngineFacts("onnxruntime", "1", "a CPU", "portable")
    assert report_of(manifest, facts, "", parity(), gate, True, "", [])["gate"]["max_drop_points"] == 7.0
