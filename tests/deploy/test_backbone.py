"""A backbone's bundle on the device: several image sizes in one engine, proved map by map, and what makes no sense of it refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmf_edge import BuildSpec, Precision, cli, export
from gmf_edge.bundle import GOLDEN, open_bundle
from gmf_edge.deploy import bench_bundle, deploy_bundle, open_engine, predict, verify_bundle
from gmf_edge.errors import BundleError, EngineError, SpecError
from gmf_edge.spec import MAPS, SizeRange, Task
from gmf_edge.verify.maps import GoldenMaps

EXAMPLE = Path(__file__).parents[2] / "examples" / "feature_pyramid.py"


def test_the_bundle_carries_portable_graphs_and_maps_and_passes(pico_backbone: Path) -> None:
    bundle = open_bundle(pico_backbone)
    manifest = bundle.manifest
    assert manifest.model.task is Task.FEATURES
    assert manifest.sizes == SizeRange((32, 64), (64, 64), (64, 96))
    # the plugin's node has H and W in it; classes have no names
    assert set(manifest.graphs.values()) == {"portable.onnx", "portable-opset17.onnx"}
    assert manifest.classes == ()
    assert "labels.txt" not in manifest.files
    golden = GoldenMaps.load(bundle.path(GOLDEN))
    assert [size.image_size for size in golden.sizes] == [(64, 64), (32, 64), (64, 96), (32, 96)]
    report: Any = bundle.report
    assert report["passed"]
    assert set(report["parity"]["maps"]) == set(MAPS)
    assert len(report["parity"]["proofs"]) == len(MAPS) * 4 * 2
    assert all(0 < worst["relative_l2"] <= 0.01 for worst in report["parity"]["maps"].values())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_precision_of_one_size_passes(precision: str, backend: str, tmp_path: Path) -> None:
    spec = BuildSpec(task=Task.FEATURES, precision=Precision(precision), calibration_images=100)
    export(spec, tmp_path / "b")
    result = deploy_bundle(tmp_path / "b", backend=backend)
    assert result.passed, result.reason
    assert result.report["precision"] == precision


def test_it_is_verified_benched_and_shown_like_a_classifier(pico_backbone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = verify_bundle(pico_backbone)
    assert result.passed
    assert "relative L2 error stage1" in result.reason
    assert cli.run(["inspect", str(pico_backbone)]) == 0
    shown = capsys.readouterr().out
    assert "32x64 to 64x96, tuned for 64x64, backbone: maps of strides 4, 8, 16, 32, fp16" in shown
    assert all(name in shown for name in MAPS)
    assert bench_bundle(pico_backbone, batches=(1,), warmup_ms=1, duration_s=0.01, iterations=1)


def test_what_makes_no_sense_of_a_backbone_is_refused(pico_backbone: Path, digits: Path) -> None:
    with pytest.raises(BundleError, match="is a backbone: it gives the maps of four stages and knows no classes"):
        predict(pico_backbone, [digits])
    with pytest.raises(BundleError, match="its golden images travel with their maps"):
        verify_bundle(pico_backbone, eval_data=digits)
    with pytest.raises(SpecError, match="points of top-1, which a backbone has not"):
        verify_bundle(pico_backbone, max_drop_points=0.5)
    with open_engine(open_bundle(pico_backbone)) as engine:
        with pytest.raises(EngineError, match="a backbone: it gives maps and no logits"):
            engine.infer(np.zeros((1, 3, 64, 64), np.float32))
        for size in ((64, 128), (48, 64)):
            with pytest.raises(EngineError, match="H and W multiples of 32, from 32x64 to 64x96"):
                engine.infer_maps(np.zeros((1, 3, *size), np.float32))


def test_openvino_takes_every_size_from_one_graph(pico_backbone: Path) -> None:
    pytest.importorskip("openvino")
    result = verify_bundle(pico_backbone, backend="openvino")
    assert result.passed, result.reason
    assert {tuple(row["image_size"]) for row in result.report["parity"]["proofs"]} == {(64, 64), (32, 64), (64, 96), (32, 96)}


def test_the_maps_feed_a_feature_pyramid(pico_backbone: Path, digits: Path) -> None:
    specification: Any = importlib.util.spec_from_file_location("feature_pyramid", EXAMPLE)
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    picture = next(digits.rglob("*.png"))
    levels = example.pyramid_of(pico_backbone, picture, (32, 96))
    assert {name: level.shape for name, level in levels.items()} == {
        name: (1, 256, 32 // stride, 96 // stride) for name, stride in zip(MAPS, (4, 8, 16, 32), strict=True)
    }
    assert all(np.isfinite(level).all() and level.std() > 0 for level in levels.values())
