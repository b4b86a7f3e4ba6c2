"""The device's half: deploy, verify, predict and bench from Python, and what they leave untouched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import gmf_edge
from gmf_edge.bundle import open_bundle
from gmf_edge.deploy import bench_bundle, deploy_bundle, open_engine, predict, verify_bundle
from gmf_edge.engines.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeEngine
from gmf_edge.engines.protocol import EngineRequest, Progress, silent
from gmf_edge.errors import BundleError, DataError, EngineError, EnvironmentProblem
from gmf_edge.verify.golden import Golden

pytestmark = pytest.mark.usefixtures("brief_latency")
TEST_SET = Path(gmf_edge.__file__).parent / "assets" / "pico-digits-test.zip"


def content_of(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_deploying_adds_a_report_and_changes_no_other_file(copied: Callable[[Path], Path], pico_export: Path) -> None:
    folder = copied(pico_export)
    before = content_of(folder)
    result = deploy_bundle(folder, backend="onnxruntime", eval_data=TEST_SET)
    after = content_of(folder)
    assert result.passed, result.reason
    assert result.folder == folder
    assert set(after) - set(before) == {"report.json", "report.html", "measurements.npz"}
    assert {name for name in before if before[name] != after[name]} == {"manifest.json", "reproduce.sh"}
    assert open_bundle(folder).report == json.loads(json.dumps(result.report))


def test_deploying_again_replaces_the_report(copied: Callable[[Path], Path], pico_fp16: Path) -> None:
    folder = copied(pico_fp16)
    result = deploy_bundle(folder, backend="onnxruntime")
    assert set(content_of(folder)) == set(content_of(pico_fp16))
    assert result.report["parity"]["images"] == 16
    assert result.report["parity"]["reference_top1"] is None


def test_a_deployed_bundle_shares_no_file_with_its_source(
    pico_export: Path, copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    # onnx and onnx_ir refuse external weights with a second hard link
    source = copied(pico_export)
    deploy_bundle(source, backend="onnxruntime", out=tmp_path / "deployed")
    assert {path.stat().st_nlink for folder in (source, tmp_path / "deployed") for path in folder.iterdir()} == {1}
    shutil.rmtree(source)
    assert open_bundle(tmp_path / "deployed").report is not None


@pytest.mark.parametrize("step", ["build", "open"])
def test_an_engine_that_fails_leaves_the_bundle_as_it_was(
    copied: Callable[[Path], Path], pico_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise EngineError("the engine does not like this", "try another")

    monkeypatch.setattr(OnnxRuntimeBackend, step, fail)
    folder = copied(pico_export)
    before = content_of(folder)
    for out in (None, tmp_path / "deep" / "out"):
        with pytest.raises(EngineError, match="does not like this"):
            deploy_bundle(folder, backend="onnxruntime", out=out)
    assert content_of(folder) == before
    assert os.listdir(tmp_path) == [folder.name]


def test_an_engine_file_is_kept_listed_and_dropped_by_the_next_deployment(
    copied: Callable[[Path], Path], pico_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(self: OnnxRuntimeBackend, request: EngineRequest, out: Path, progress: Progress = silent) -> tuple[str, ...]:
        (out / "engine.bin").write_bytes(b"engine")
        return ("engine.bin",)

    folder = copied(pico_export)
    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeBackend, "build", build)
        deploy_bundle(folder, backend="onnxruntime")
    assert open_bundle(folder).manifest.engine_files == ("engine.bin",)
    (folder / "engine.bin").write_bytes(b"angine")
    with pytest.raises(BundleError, match=r"engine\.bin was changed"):
        open_bundle(folder)
    (folder / "engine.bin").write_bytes(b"engine")
    deploy_bundle(folder, backend="onnxruntime")
    assert open_bundle(folder).manifest.engine_files == ()
    assert not (folder / "engine.bin").exists()


def test_verifying_writes_nothing(pico_fp16: Path, pico_export: Path) -> None:
    for folder in (pico_fp16, pico_export):
        before = content_of(folder)
        result = verify_bundle(folder, backend="onnxruntime", eval_data=TEST_SET)
        assert result.passed, result.reason
        assert content_of(folder) == before
        assert result.report["parity"]["images"] == 360


def test_verifying_takes_the_backend_that_the_bundle_was_deployed_with(pico_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[str] = []

    def choose(name: str) -> Any:
        wanted.append(name)
        raise EnvironmentProblem("stop here", "")

    monkeypatch.setattr("gmf_edge.deploy.engine.choose_backend", choose)
    with pytest.raises(EnvironmentProblem, match="stop here"):
        verify_bundle(pico_fp16)
    assert wanted == ["onnxruntime"]


def test_a_changed_byte_stops_every_command(pico_fp16: Path, copied: Callable[[Path], Path], digits: Path) -> None:
    folder = copied(pico_fp16)
    content = bytearray((folder / "weights.bin").read_bytes())
    content[12345] ^= 1
    (folder / "weights.bin").write_bytes(content)
    picture = next((digits / "1").iterdir())
    calls: list[Callable[[], Any]] = [
        lambda: deploy_bundle(folder),
        lambda: verify_bundle(folder),
        lambda: predict(folder, [picture]),
        lambda: bench_bundle(folder, duration_s=0),
    ]
    for call in calls:
        with pytest.raises(BundleError, match=r"weights\.bin was changed"):
            call()


def test_predictions_are_the_engines_softmax(pico_fp16: Path, digits: Path) -> None:
    pictures = sorted(digits.rglob("*.png"))
    found = predict(pico_fp16, pictures, top=10)
    assert [prediction.image for prediction in found] == [str(picture) for picture in pictures]
    right = sum(prediction.classes[0][0] == picture.parent.name for prediction, picture in zip(found, pictures, strict=True))
    assert right >= 19
    for prediction in found:
        shares = [share for _, share in prediction.classes]
        assert sum(shares) == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)


def test_predicting_works_where_the_engine_takes_no_single_picture(pico_export: Path, digits: Path, tmp_path: Path) -> None:
    spec = gmf_edge.BuildSpec(precision=gmf_edge.Precision.FP16, profile=gmf_edge.BatchProfile(2, 2, 4))
    folder = gmf_edge.export(spec, tmp_path / "pairs").folder
    picture = next((digits / "6").iterdir())
    assert predict(folder, [picture], backend="onnxruntime")[0].classes[0][0] == "6"


def test_a_picture_that_cannot_be_read_stops_before_the_engine_is_built(
    pico_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxRuntimeBackend, "open", lambda *arguments: pytest.fail("the engine was opened"))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png"):
        predict(pico_fp16, [tmp_path / "a.png"])


def test_the_gate_is_judged_on_the_engine_that_runs(pico_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    infer = OnnxRuntimeEngine.infer
    monkeypatch.setattr(OnnxRuntimeEngine, "infer", lambda self, images: infer(self, images)[::-1].copy())
    result = verify_bundle(pico_fp16)
    assert not result.passed
    assert result.reason.startswith("at batch 8: ")
    assert "another image's logits" in result.reason


def test_bench_takes_the_profiles_sizes_or_those_asked_for(pico_fp16: Path) -> None:
    usual = bench_bundle(pico_fp16, warmup_ms=0, duration_s=0, iterations=2)
    asked = bench_bundle(pico_fp16, batches=(3,), warmup_ms=0, duration_s=0, iterations=2)
    assert [latency.batch for latency in (*usual.latencies, *asked.latencies)] == [1, 8, 3]


def test_the_deployed_engine_opens_and_an_undeployed_bundle_says_so(pico_fp16: Path, pico_export: Path) -> None:
    golden = Golden.load(pico_fp16 / "golden.npz")
    with open_engine(open_bundle(pico_fp16)) as engine:
        assert np.abs(engine.infer(golden.images[:2]) - golden.logits[:2]).max() <= 4e-3
    with pytest.raises(BundleError, match="no engine yet"):
        open_engine(open_bundle(pico_export))


def test_images_in_another_order_or_with_more_beside_them_are_matched_by_content(pico_fp16: Path, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(TEST_SET) as archive:
        archive.extractall(tmp_path / "set")
    pictures = sorted((tmp_path / "set").rglob("*.png"))
    extra = bytearray(pictures[0].read_bytes())
    (pictures[0].parent / "aa-more.png").write_bytes(bytes(extra) + b"trailing bytes of another file")
    for index, picture in enumerate(pictures):
        picture.rename(picture.with_name(f"{997 * index % 1000:03}-{picture.name}"))
    (root,) = {path.parent.parent for path in pictures}
    result = verify_bundle(pico_fp16, eval_data=root)
    assert result.report["parity"]["images"] == 360
    assert result.report["parity"]["agreement"] == 1.0


def test_the_python_api_offers_what_the_package_says() -> None:
    for name in gmf_edge.__all__:
        assert getattr(gmf_edge, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gmf_edge.nothing  # noqa: B018
