"""OpenVINO on a trained GroupMixFormer mobile: FP32, FP16 and INT8 keep its accuracy. Material by GMF_EDGE_TEST_DATA, see the README."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("openvino")

import gmf_edge
from gmf_edge.deploy import deploy_bundle
from gmf_edge.spec import BuildSpec, Precision

pytestmark = pytest.mark.usefixtures("brief_latency")


@pytest.mark.parametrize("precision", list(Precision))
def test_the_trained_mobile_keeps_its_accuracy(precision: Precision, tmp_path: Path) -> None:
    folder = os.environ.get("GMF_EDGE_TEST_DATA")
    if not folder:
        pytest.skip("GMF_EDGE_TEST_DATA does not name the folder with mobile-tin10.pth, tin10-val.zip and tin10-train.zip")
    data = Path(folder)
    spec = BuildSpec(
        precision=precision,
        checkpoint=data / "mobile-tin10.pth",
        image_size=(64, 64),
        eval_data=data / "tin10-val.zip",
        calibration_data=data / "tin10-train.zip" if precision is Precision.INT8 else None,
        calibration_images=100,
    )
    gmf_edge.export(spec, tmp_path / "b")
    result = deploy_bundle(tmp_path / "b", backend="openvino", eval_data=data / "tin10-val.zip")
    parity = result.report["parity"]
    assert result.passed, result.reason
    assert parity["reference_top1"] == pytest.approx(66.37, abs=0.01)
    assert parity["agreement"] >= {Precision.FP32: 1.0, Precision.FP16: 0.99, Precision.BF16: 0.98, Precision.INT8: 0.95}[precision]
    assert (
        parity["cosine"]
        >= {Precision.FP32: 0.999999, Precision.FP16: 0.9999, Precision.BF16: 0.999, Precision.INT8: 0.999}[precision]
    )
    assert ("int8" in result.report["engine"]["precision_shares"]) == (precision is Precision.INT8)
