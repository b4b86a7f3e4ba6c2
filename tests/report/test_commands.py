"""A request as plain values: the command line that asks for the same, without a path of the machine."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import typer

import gmf_edge.pipeline
from gmf_edge.cli import app, run
from gmf_edge.deploy import Result
from gmf_edge.engines.tensorrt.options import TensorRTOptions, options_from_trtexec
from gmf_edge.report.commands import arguments_of, engine_request_of, flag_of, relative_name, request_of
from gmf_edge.sizes import SizeRange
from gmf_edge.spec import BatchProfile, BuildSpec, Precision, Task
from gmf_edge.weights import WeightsOrigin

ORIGIN = WeightsOrigin("checkpoint", "model.pth", "a" * 64)
EVALUATION = {"name": "val.zip", "images": 5, "sha256": "b" * 64}
CALIBRATION = {"images": 40, "seed": 3, "images_sha256": "c" * 64, "method": "mse"}


def words(request: dict[str, Any], paths: dict[str, str]) -> list[str]:
    """A record as the arguments of a command line, the user's paths in their places."""
    found: list[str] = []
    for argument in arguments_of(request):
        found += [argument] if isinstance(argument, str) else [argument[0], paths[argument[1]]]
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[BuildSpec, dict[str, Any]]]:
    """What `gmf-edge build` asks of the library."""
    calls: list[tuple[BuildSpec, dict[str, Any]]] = []

    def build(spec: BuildSpec, out: Path, *, use_plugin: bool, options: dict[str, Any], progress: Any) -> Result:
        calls.append((spec, {"use_plugin": use_plugin, **options}))
        return Result(out, True, "", {})

    monkeypatch.setattr(gmf_edge.pipeline, "build", build)
    monkeypatch.setattr("gmf_edge.cli.prepare.show_result", lambda *given, **named: None)
    return calls


@pytest.mark.parametrize(
    "spec",
    [
        BuildSpec(),
        BuildSpec(precision=Precision.FP16, variant="small", image_size=(256, 192), num_classes=7, seed=4, io_dtype="float16"),
        BuildSpec(checkpoint=Path("m.pth"), eval_data=Path("set.zip/val"), eval_images=5, max_drop_points=0.25, crop_pct=0.9),
        BuildSpec(precision=Precision.INT8, auto=True, calibration_data=Path("train"), calibration_images=40, budget_minutes=2.5),
        BuildSpec(precision=Precision.INT8, recipe="fastest", keep_int8=True, backend="openvino", profile=BatchProfile(2, 4, 16)),
        BuildSpec(precision=Precision.FP16, variant="pico", plugin_archs=("sm_87", "sm_90")),
        BuildSpec(precision=Precision.BF16, task=Task.FEATURES, image_size=(64, 96), profile=BatchProfile(1, 1, 8)),
        BuildSpec(
            variant="mobile", task=Task.FEATURES, profile=BatchProfile(1, 1, 1), image_size=(96, 96),
            sizes=SizeRange((64, 64), (96, 96), (128, 160)),
        ),
    ],
    ids=["defaults", "shape", "data", "auto", "int8", "kernels", "backbone", "sizes"],
)  # fmt: skip
def test_the_command_line_of_a_request_asks_for_the_same(spec: BuildSpec, asked: list[Any]) -> None:
    request = json.loads(json.dumps(request_of(spec, ORIGIN, EVALUATION, CALIBRATION)))
    paths = {
        "CHECKPOINT": str(spec.checkpoint),
        "EVAL_DATA": str(spec.eval_data),
        "CALIBRATION_DATA": str(spec.calibration_data),
    }
    assert run(["build", *words(request, paths), "-q"]) == 0
    assert [found for found, _ in asked] == [spec]


def test_every_field_of_a_request_has_a_flag_of_build() -> None:
    command: Any = typer.main.get_command(app)
    flags = {flag for parameter in command.commands["build"].params for flag in parameter.opts}
    settled = {"precision", "auto", "profile", "image_size", "sizes"}
    assert {flag_of(field.name) for field in fields(BuildSpec) if field.name not in settled} <= flags
    assert {"--precision", "--min-batch", "--opt-batch", "--max-batch", "--image-size", "--dynamic-size"} <= flags


def test_files_are_kept_by_name_and_digest_and_never_by_path(tmp_path: Path) -> None:
    labels, recipe = tmp_path / "names.txt", tmp_path / "own.toml"
    labels.write_text("ant\n")
    recipe.write_text("mlp = true\n")
    spec = BuildSpec(
        precision=Precision.INT8,
        checkpoint=tmp_path / "model.pth",
        labels=labels,
        recipe=str(recipe),
        eval_data=tmp_path / "set.zip" / "val",
        calibration_data=tmp_path / "train",
        seed=3,
    )
    request = request_of(spec, ORIGIN, EVALUATION, CALIBRATION)
    assert str(tmp_path) not in json.dumps(request)
    assert request["files"]["--checkpoint"] == {"name": "model.pth", "sha256": "a" * 64}
    assert request["files"]["--eval-data"] == {"name": "set.zip/val", "images": 5, "seed": 3, "sha256": "b" * 64}
    assert request["files"]["--calibration-data"] == {"name": "train", "images": 40, "seed": 3, "sha256": "c" * 64}
    assert request["files"]["--labels"]["name"] == "names.txt"
    assert len(request["files"]["--recipe"]["sha256"]) == 64


@pytest.mark.parametrize(("path", "name"), [("a/b/val", "val"), ("/x/a.zip", "a.zip"), ("x/a.ZIP/val", "a.ZIP/val")])
def test_the_name_of_images_begins_at_their_archive(path: str, name: str) -> None:
    assert relative_name(Path(path)) == name


def test_engine_options_come_back_from_their_flags(asked: list[Any]) -> None:
    options = {
        "threads": 2, "workspace_mib": 512, "precision_proof": "warn", "optimization_level": 5, "version_compatible": True,
        "hardware_compatibility": "same", "strip": True, "refit": True, "dla_core": 1, "tactic_sources": ("-cudnn", "+cublas"),
        "tiling": "moderate", "max_aux_streams": 2, "streams": 3, "cuda_graphs": True, "timing_cache": "",
    }  # fmt: skip
    request = engine_request_of("build", use_plugin=False, options=options)
    assert request["unspelled"] == {}
    assert run(["build", *words(request, {}), "-q"]) == 0
    ((_, found),) = asked
    assert found == {"use_plugin": False, **options}
    trtexec = options_from_trtexec([word for word in request["options"] if "=" in word])
    assert replace(TensorRTOptions.of(trtexec.options), timing_cache="").tiling == "moderate"


def test_what_no_flag_can_say_is_named(tmp_path: Path) -> None:
    library = tmp_path / "plugin.so"
    library.write_bytes(b"code")
    options = {"max_fp32_share": 0.3, "cuda_graphs": False, "tactic_sources": ("cublas",), "timing_cache": str(tmp_path / "t")}
    request = engine_request_of("deploy", use_plugin=True, options={**options, "plugin_library": str(library)}, evaluated=True)
    assert request["unspelled"] == {"max_fp32_share": 0.3, "cuda_graphs": False, "tactic_sources": ["cublas"]}
    assert request["files"]["--plugins"]["name"] == "plugin.so"
    assert str(tmp_path) not in json.dumps(request)
