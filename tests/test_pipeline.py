"""INT8 through the whole pipeline: delivered where it pays, refused where its inputs are wrong; the plugin likewise."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import gmf_edge
from gmf_edge import pipeline
from gmf_edge.bench.compare import NO, YES, Comparison
from gmf_edge.bundle import RANGES, open_bundle
from gmf_edge.cli import run
from gmf_edge.engines.protocol import Engine
from gmf_edge.errors import CalibrationError, SpecError
from gmf_edge.prepare.source import PACKAGED_CALIBRATION, PACKAGED_TEST
from gmf_edge.spec import BuildSpec, ModelSpec, Precision

if TYPE_CHECKING:
    from gmf_edge.kernels.compile import KernelTable

# a fifth of the default's images, as conftest.py's pico_int8, with which the ranges are shared
IMAGES = 100
INT8 = BuildSpec(precision=Precision.INT8, backend="onnxruntime", calibration_images=IMAGES)


def decision(faster: bool) -> Comparison:
    return Comparison(faster, YES if faster else NO, "as the test says", "INT8", "FP32", within_gate=True, margin=1.05)


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """timing(faster): what the comparison of two engines finds, whatever this machine is doing."""

    def set_to(faster: bool) -> None:
        def compared(candidate: Engine, baseline: Engine, **settings: Any) -> Comparison:
            images = np.zeros((1, 3, *settings["image_size"]), np.float32)
            assert candidate.infer(images).shape == baseline.infer(images).shape
            return decision(faster)

        monkeypatch.setattr("gmf_edge.pipeline.compare_engines", compared)

    return set_to


def test_int8_that_pays_is_delivered_with_its_ranges(timing: Callable[[bool], None], pico_export: Path, tmp_path: Path) -> None:
    timing(True)
    result = gmf_edge.build(INT8, tmp_path / "b")
    bundle = open_bundle(tmp_path / "b")
    assert result.passed
    assert bundle.manifest.precision is Precision.INT8
    assert RANGES in bundle.manifest.files
    assert result.report["engine"]["precision_shares"].get("int8", 0) > 0
    assert result.report["alternative"]["precision"] == "fp32"
    assert abs(result.report["parity"]["top1_change_points"]) <= 0.3
    layers = bundle.manifest.lowering["int8"]["layers"]
    for linear in ("att.qkv/MatMul", "mlp.fc1/MatMul", "mlp.fc2/MatMul"):
        assert sum(layer.endswith(linear) for layer in layers) == 5  # blocks of pico
    noise = bundle.manifest.lowering["int8"]["layer_snr"]
    assert {row["layer"] for row in noise} == set(layers)
    assert all(20 < row["output_db"] < 90 for row in noise)  # 8 bits give some 30 to 50 dB
    assert gmf_edge.verify_bundle(tmp_path / "b").passed


def test_int8_that_does_not_pay_is_replaced_and_both_are_reported(
    timing: Callable[[bool], None], pico_export: Path, tmp_path: Path
) -> None:
    timing(False)
    result = gmf_edge.build(INT8, tmp_path / "b")
    bundle = open_bundle(tmp_path / "b")
    assert result.passed
    assert bundle.manifest.precision is Precision.FP32
    assert RANGES not in bundle.manifest.files
    assert result.report["alternative"]["precision"] == "int8"
    assert result.report["comparison"]["accepted"] is False
    assert gmf_edge.build(dataclasses.replace(INT8, keep_int8=True), tmp_path / "b").report["precision"] == "int8"


def test_int8_outside_its_gate_fails_and_keeps_the_other(
    timing: Callable[[bool], None], pico_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing(True)
    strict = {**pipeline_gates(), Precision.INT8: dataclasses.replace(pipeline_gates()[Precision.INT8], min_cosine=1.0)}
    monkeypatch.setattr("gmf_edge.spec.GATES", strict)
    result = gmf_edge.build(INT8, tmp_path / "b")
    assert not result.passed
    assert open_bundle(tmp_path / "b").manifest.precision is Precision.FP32
    assert "INT8 is outside its accuracy gate: " in result.reason
    assert result.report["comparison"]["batches"] == {}


def pipeline_gates() -> dict[Precision, Any]:
    from gmf_edge.spec import GATES

    return dict(GATES)


def test_auto_leaves_no_layer_out_where_int8_is_right(timing: Callable[[bool], None], pico_export: Path, tmp_path: Path) -> None:
    timing(True)
    result = gmf_edge.build(dataclasses.replace(INT8, auto=True, max_drop_points=0.3), tmp_path / "b")
    int8 = open_bundle(tmp_path / "b").manifest.lowering["int8"]
    assert result.passed
    assert int8["exceptions"] == []
    assert len(int8["search"]["table"]) == len(int8["layers"])


def test_calibrate_writes_ranges_that_build_takes(
    timing: Callable[[bool], None], pico_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timing(True)
    ranges = tmp_path / "ranges.json"
    assert run(["calibrate", "--output", str(ranges), "--calibration-images", str(IMAGES), "--quiet"]) == 0
    assert f"wrote {ranges}" in capsys.readouterr().out
    assert json.loads(ranges.read_text())["provenance"]["images"] == IMAGES
    given = gmf_edge.build(dataclasses.replace(INT8, ranges=ranges), tmp_path / "given")
    calibrated = gmf_edge.build(INT8, tmp_path / "calibrated")
    assert given.report["parity"]["cosine"] == calibrated.report["parity"]["cosine"]


def test_ranges_of_another_preprocessing_are_refused_by_name(pico_export: Path, tmp_path: Path) -> None:
    ranges = tmp_path / "ranges.json"
    few = ("--calibration-images", "32", "--crop-pct", "1.0")
    assert run(["calibrate", "--output", str(ranges), *few, "--quiet"]) == 0
    with pytest.raises(CalibrationError, match=r"ranges\.json"):
        gmf_edge.build(dataclasses.replace(INT8, ranges=ranges), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_calibration_on_evaluation_images_is_refused_by_name(pico_export: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"evaluation images.*are calibration images too"):
        gmf_edge.build(dataclasses.replace(INT8, calibration_data=PACKAGED_TEST), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_ten_images_are_too_few(pico_export: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    with zipfile.ZipFile(PACKAGED_CALIBRATION) as archive:
        for name in [name for name in archive.namelist() if name.endswith(".png")][:10]:
            (few / Path(name).name).write_bytes(archive.read(name))
    with pytest.raises(CalibrationError, match="10 images, too few"):
        gmf_edge.build(dataclasses.replace(INT8, calibration_data=few), tmp_path / "b")


def test_int8_of_random_weights_needs_images(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="needs images to calibrate on"):
        gmf_edge.build(dataclasses.replace(INT8, variant="pico", num_classes=7), tmp_path / "b")


def test_calibration_for_another_precision_is_a_usage_error() -> None:
    with pytest.raises(SpecError, match="calibration was given for fp16"):
        BuildSpec(precision=Precision.FP16, calibration_data=PACKAGED_CALIBRATION)


def test_kernels_travel_in_the_plugin_graphs(
    pico_export: Path, pico_kernels: KernelTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")

    def compiled(model: ModelSpec, archs: tuple[str, ...], out: Path, *, dtype: str) -> KernelTable:
        assert (model.variant, archs, dtype) == ("pico", ("sm_87",), "fp16")
        return pico_kernels

    # once a run
    monkeypatch.setattr("gmf_edge.kernels.compile.compile_kernels", compiled)
    bundle = gmf_edge.export(BuildSpec(precision=Precision.FP16, plugin_archs=("sm_87",)), tmp_path / "b")
    assert {row["arch"] for row in bundle.manifest.lowering["kernels"]} == {"sm_87"}
    for name in ("plugin.onnx", "plugin-opset17.onnx"):
        model = onnx.load(tmp_path / "b" / name)
        fused = [node for node in model.graph.node if node.op_type == "GmfGroupMixAttention"]
        assert len(fused) == 5
        for node in fused:
            attributes = {attribute.name: attribute for attribute in node.attribute}
            assert len(attributes["kernels"].s) > 1000
            assert attributes["packed"].i == 1
            assert len(node.input) == 3
            [vectors] = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == node.input[1]]
            # FP32 for the kernels, and not by way of FP16
            assert not np.array_equal(vectors, vectors.astype(np.float16))


def test_pipeline_leaves_nothing_behind_when_it_fails(pico_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "b"))

    monkeypatch.setattr(pipeline, "deploy_in_place", broken)
    with pytest.raises(gmf_edge.GmfEdgeError, match="No space left"):
        gmf_edge.build(BuildSpec(backend="onnxruntime"), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
