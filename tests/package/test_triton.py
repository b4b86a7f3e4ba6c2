"""The Triton model repository: what Triton's own schema says of it, and the pixels that its preprocessing makes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gmf_edge.bundle import Manifest, open_bundle, seal
from gmf_edge.cli import run
from gmf_edge.engines.openvino.saturation import NARROWED_NOTE
from gmf_edge.errors import AccuracyError, PackageError, SpecError
from gmf_edge.image import input_from_file
from gmf_edge.package import PackageRequest, package_bundle, triton
from gmf_edge.package.triton_config import Symbol, check_repository, missing_schema, parsed, to_pbtxt
from gmf_edge.spec import MAP_GATES

needs_schema = pytest.mark.skipif(missing_schema() is not None, reason=f"{missing_schema()}: pip install tritonclient protobuf")
STAND_IN = Path(__file__).parent / "triton_stand_in"
# as TYPE_... are numbered in model_config.proto
FP32, STRING = 11, 13


def packaged(bundle: Path, out: Path, **asked: Any) -> Path:
    package_bundle(bundle, "triton", out, PackageRequest(**asked))
    return out / "model_repository"


@needs_schema
def test_the_configuration_of_an_engine_says_what_the_bundle_says(tensorrt_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = tensorrt_bundle()
    repository = packaged(bundle, tmp_path / "out", instances=2, max_queue_delay_us=300)
    manifest = open_bundle(bundle).manifest
    config = parsed(repository / "gmf_pico" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("gmf_pico", "tensorrt", manifest.profile.max)
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [("images", FP32, [3, 64, 64])]
    assert [(one.name, one.data_type, list(one.dims), one.label_filename) for one in config.output] == [
        ("logits", FP32, [10], "labels.txt")
    ]
    assert [(group.count, group.kind) for group in config.instance_group] == [(2, config.instance_group[0].KIND_GPU)]
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 300
    assert [(one.batch_size, one.inputs["images"].random_data) for one in config.model_warmup] == [(1, True), (8, True)]
    version = repository / "gmf_pico" / "1"
    assert {path.name for path in version.iterdir()} == {"model.plan"}
    assert (version / "model.plan").read_bytes() == (bundle / "engine.plan").read_bytes()
    assert (repository / "gmf_pico" / "labels.txt").read_text().splitlines() == list(manifest.classes)
    # the engine loads nowhere else, and the page says so
    assert "TensorRT is 10.3.0, on Orin (sm_87)" in (tmp_path / "out" / "README.md").read_text()


@needs_schema
def test_onnxruntime_serves_the_graph_that_was_proved(pico_fp16: Path, tmp_path: Path, copied: Callable[[Path], Path]) -> None:
    ort = pytest.importorskip("onnxruntime")
    repository = packaged(pico_fp16, tmp_path / "out", name="digits")
    config = parsed(repository / "digits" / "config.pbtxt")
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "")
    assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU
    # the file opens where Triton finds it: its weights lie beside it
    session = ort.InferenceSession(str(repository / "digits" / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == [one.name for one in config.input]
    assert [(one.name, one.shape[1:]) for one in session.get_outputs()] == [(one.name, list(one.dims)) for one in config.output]


@needs_schema
def test_openvino_is_told_what_it_was_proved_with(
    pico_fp16: Path, copied: Callable[[Path], Path], change_report: Callable[..., None], tmp_path: Path
) -> None:
    bundle = copied(pico_fp16)
    change_report(bundle, backend="openvino", options={"device": "CPU", "threads": 2, "streams": 1, "arithmetic": "f32"})
    package = package_bundle(bundle, "triton", tmp_path / "out")
    config = parsed(tmp_path / "out" / "model_repository" / "gmf_pico" / "config.pbtxt")
    assert (config.backend, config.default_model_filename) == ("openvino", "model.onnx")
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "TARGET_DEVICE": "CPU",
        "INFERENCE_NUM_THREADS": "2",
        # without it the backend refuses every batch that is not full
        "ENABLE_BATCH_PADDING": "YES",
    }
    assert any("cannot be told to compute in FP32" in note for note in package.notes)
    assert any("fills every batch up to 8" in note for note in package.notes)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@needs_schema
def test_the_preprocessing_model_makes_the_pixels_of_predict(
    precision: str, pico_fp16: Path, pico_fp32: Path, digits: Path, tmp_path: Path
) -> None:
    from google.protobuf import json_format

    bundle = {"fp16": pico_fp16, "fp32": pico_fp32}[precision]
    repository = packaged(bundle, tmp_path / "out")
    model = repository / "gmf_pico_preprocess"
    photograph = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)).save(photograph, exif=exif)
    pictures = [photograph, *sorted(digits.rglob("*.png"))[:3]]
    config = tmp_path / "config.json"
    message = parsed(model / "config.pbtxt")
    config.write_text(json_format.MessageToJson(message, preserving_proto_field_name=True))
    done = subprocess.run(
        [
            sys.executable,
            str(STAND_IN / "serve.py"),
            str(model / "1" / "model.py"),
            str(config),
            str(tmp_path / "got.npz"),
            *map(str, pictures),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    got = np.load(tmp_path / "got.npz")
    preprocess = open_bundle(bundle).manifest.preprocess
    wanted = np.stack([input_from_file(picture, preprocess, upright=True) for picture in pictures])
    assert got["together"].dtype == np.float32
    np.testing.assert_array_equal(got["together"], wanted)
    np.testing.assert_array_equal(got["alone"], wanted[:1])
    # the photograph really was turned
    assert not np.array_equal(wanted[0], input_from_file(photograph, preprocess))
    assert str(got["error"]).startswith("the picture is not a picture that Pillow can read")
    assert got["code_is_invalid_argument"]
    # by the code in the repository, not by the one that is installed here
    assert str(got["code_from"]) == str(model / "1" / "gmf_edge" / "image.py")


@needs_schema
def test_the_ensemble_leads_pictures_to_logits(pico_fp16: Path, tmp_path: Path) -> None:
    repository = packaged(pico_fp16, tmp_path / "out")
    config = parsed(repository / "gmf_pico_pictures" / "config.pbtxt")
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [("pictures", STRING, [1])]
    assert [step.model_name for step in config.ensemble_scheduling.step] == ["gmf_pico_preprocess", "gmf_pico"]
    assert (repository / "gmf_pico_pictures" / "1").is_dir()


BREAKS = {
    "a word that is no field": ("gmf_pico", "max_batch_size:", "max_batchsize:", "no field named"),
    "a value of the wrong kind": ("gmf_pico", "max_batch_size: 8", 'max_batch_size: "8"', "not a model configuration"),
    "an unknown type": ("gmf_pico", "TYPE_FP32", "TYPE_FLOAT", "TYPE_FLOAT"),
    "another folder's name": ("gmf_pico", 'name: "gmf_pico"', 'name: "other"', "not that of its folder"),
    "a backend that does not exist": ("gmf_pico", 'backend: "onnxruntime"', 'backend: "onnx"', "backend 'onnx'"),
    "a batch beyond the largest": (
        "gmf_pico",
        "preferred_batch_size: [8]",
        "preferred_batch_size: [16]",
        "preferred_batch_size 16",
    ),
    "labels that are not there": (
        "gmf_pico",
        'label_filename: "labels.txt"',
        'label_filename: "names.txt"',
        "names.txt is missing",
    ),
    "a warm-up without its input": ("gmf_pico", 'key: "images"', 'key: "image"', "exactly the model's inputs"),
    "a step that is not there": (
        "gmf_pico_pictures",
        'model_name: "gmf_pico"',
        'model_name: "pico"',
        "'pico' is not in the repository",
    ),
    "shapes that do not meet": ("gmf_pico_preprocess", "dims: [3, 64, 64]", "dims: [64, 64, 3]", "does not fit input 'images'"),
    "an output that nobody makes": ("gmf_pico_pictures", 'value: "logits"', 'value: "scores"', "no step makes its output 'logits'"),
}


@needs_schema
@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_configuration_is_refused(case: str, pico_fp16: Path, tmp_path: Path) -> None:
    model, right, wrong, said = BREAKS[case]
    repository = packaged(pico_fp16, tmp_path / "out")
    check_repository(repository)
    path = repository / model / "config.pbtxt"
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    with pytest.raises(PackageError, match=re.escape(said)) as raised:
        check_repository(repository)
    # that two models do not fit shows in the ensemble
    assert f"{'gmf_pico_pictures' if 'fit' in said else model}/config.pbtxt" in str(raised.value)


@needs_schema
def test_a_configuration_that_triton_would_refuse_is_never_delivered(
    pico_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    packaged(pico_fp16, out)
    before = (out / "package.json").read_bytes()
    monkeypatch.setattr(triton, "to_pbtxt", lambda config: to_pbtxt({**config, "max_batch_size": Symbol("many")}))
    with pytest.raises(PackageError, match="not a model configuration of Triton"):
        packaged(pico_fp16, out)
    assert (out / "package.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_text_is_written_so_that_any_name_survives(tmp_path: Path) -> None:
    assert to_pbtxt({"name": 'a "b" \\ ü', "on": True, "kind": Symbol("KIND_CPU"), "dims": [1, -1], "empty": []}) == (
        'name: "a \\"b\\" \\\\ ü"\non: true\nkind: KIND_CPU\ndims: [1, -1]\nempty: []'
    )


def test_without_tritons_schema_the_package_says_that_it_was_not_checked(
    pico_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "missing_schema", lambda: "the package tritonclient is not installed")
    package = package_bundle(pico_fp16, "triton", tmp_path / "out")
    assert any("not parsed with Triton's protobuf" in note for note in package.notes)
    assert "not parsed with Triton's protobuf" in (tmp_path / "out" / "README.md").read_text()


def test_the_plugins_library_travels_where_the_engine_needs_it(tensorrt_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = tensorrt_bundle(form="plugin", version_compatible=True)
    library = tmp_path / "libgmf_edge_plugin_registered.so"
    source = (Path(__file__).parents[2] / "plugins" / "gma" / "register.cpp").read_bytes()
    library.write_bytes(b"\x7fELF" + source)
    packaged(bundle, tmp_path / "out", plugin_library=library)
    assert (tmp_path / "out" / "plugins" / library.name).read_bytes() == library.read_bytes()
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"--backend-config=tensorrt,plugins=/models/plugins/{library.name}" in page
    assert "--backend-config=tensorrt,version-compatible=true" in page
    with pytest.raises(PackageError, match="cannot be loaded without its library"):
        packaged(bundle, tmp_path / "out2")
    library.write_bytes(b"\x7fELF and creators, but nothing that registers them")
    with pytest.raises(PackageError, match="does not register its plugin"):
        packaged(bundle, tmp_path / "out2", plugin_library=library)
    assert not (tmp_path / "out2").exists()


def test_what_cannot_be_served_is_refused(
    tensorrt_bundle: Callable[..., Path],
    pico_export: Path,
    pico_fp16: Path,
    pico_int8: Path,
    copied: Callable[[Path], Path],
    change_report: Callable[..., None],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    with pytest.raises(PackageError, match="has no engine yet"):
        packaged(pico_export, out)
    stripped = tensorrt_bundle(stripped=True)
    with pytest.raises(PackageError, match="no weights of its own"):
        packaged(stripped, out)
    shutil.rmtree(stripped)
    with pytest.raises(AccuracyError, match="outside its gate"):
        packaged(tensorrt_bundle(passed=False), out)
    with pytest.raises(PackageError, match="does not use the plugin"):
        packaged(pico_fp16, out, plugin_library=pico_fp16 / "manifest.json")
    least = copied(pico_fp16)
    manifest = open_bundle(least).manifest
    seal(least, Manifest.from_json({**manifest.to_json(), "profile": {"min": 2, "opt": 2, "max": 8}}))
    with pytest.raises(PackageError, match="smallest batch is 2"):
        packaged(least, out)
    seal(least, Manifest.from_json({**manifest.to_json(), "precision": "int8"}))
    change_report(least, backend="openvino", notes=[NARROWED_NOTE])
    with pytest.raises(PackageError, match="no VNNI"):
        packaged(least, out)
    with pytest.raises(SpecError, match="--name"):
        packaged(pico_fp16, out, name="../up")
    assert not out.exists()


@pytest.mark.parametrize("form", ["triton", "cpp"])
def test_a_backbone_is_for_a_jetson_only(form: str, pico_fp16: Path, copied: Callable[[Path], Path], tmp_path: Path) -> None:
    backbone = copied(pico_fp16)
    manifest = open_bundle(backbone).manifest
    values = manifest.to_json()
    model = {**values["model"], "task": "features", "num_classes": 0}
    seal(backbone, Manifest.from_json({**values, "model": model, "gate": vars(MAP_GATES[manifest.precision]), "classes": []}))
    with pytest.raises(PackageError, match="is a backbone, whose outputs are maps"):
        package_bundle(backbone, form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_a_package_is_replaced(pico_fp16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(["package", str(pico_fp16), "--format", "triton", "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "triton"
    (out / "model_repository" / "gmf_pico" / "labels.txt").write_text("edited")
    assert run(["package", str(pico_fp16), "--format", "triton", "-o", str(out), "-q"]) == 0
    assert (out / "model_repository" / "gmf_pico" / "labels.txt").read_text() != "edited"
    assert capsys.readouterr().out.splitlines()[-1].startswith("PASSED: triton package in ")
    other = tmp_path / "other"
    other.mkdir()
    (other / "work.txt").write_text("mine")
    assert run(["package", str(pico_fp16), "--format", "triton", "-o", str(other), "-q"]) == 1
    assert run(["package", str(pico_fp16), "--format", "triton", "-o", str(pico_fp16 / "package"), "-q"]) == 1
    assert run(["package", str(pico_fp16), "--format", "triton", "-o", str(pico_fp16.parent), "-q"]) == 1
    assert [path.name for path in other.iterdir()] == ["work.txt"]
    assert open_bundle(pico_fp16)
