"""What options of the command line ask the library for."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from gmf_edge.cli import run
from gmf_edge.cli.options import BundleOptions, EngineOptions, PrecisionName, PrecisionProof
from gmf_edge.engines.tensorrt.options import TensorRTOptions
from gmf_edge.errors import SpecError
from gmf_edge.sizes import parse_size
from gmf_edge.spec import Precision


def test_engine_options_reach_the_backend_only_where_they_were_given() -> None:
    assert EngineOptions().request([]).options == {}
    given = EngineOptions(workspace_mib=64, precision_proof=PrecisionProof.WARN).request(["--builderOptimizationLevel=5"])
    assert given.options == {"workspace_mib": 64, "precision_proof": "warn", "optimization_level": 5}


@pytest.mark.parametrize("command", ["build", "deploy"])
def test_the_proof_of_precision_can_warn_instead_of_refusing(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    asked: list[dict[str, Any]] = []

    def stop(*arguments: Any, **settings: Any) -> None:
        asked.append(settings["options"])
        raise KeyboardInterrupt

    monkeypatch.setattr("gmf_edge.pipeline.build", stop)
    monkeypatch.setattr("gmf_edge.deploy.deploy_bundle", stop)
    where = [str(tmp_path)] if command == "deploy" else []
    for value in ("warn", "refuse"):
        assert run([command, *where, "--precision-proof", value]) == 130
    assert asked == [{"precision_proof": "warn"}, {"precision_proof": "refuse"}]
    assert run([command, *where, "--precision-proof=shrug"]) == 2


@pytest.mark.skipif(
    "precision_proof" not in {field.name for field in fields(TensorRTOptions)}, reason="this backend has no such option yet"
)
def test_tensorrt_takes_every_choice() -> None:
    for choice in PrecisionProof:
        assert TensorRTOptions.of({"precision_proof": choice.value})


def test_auto_is_int8_with_a_search() -> None:
    spec = BundleOptions(precision=PrecisionName.AUTO).spec()
    assert (spec.precision, spec.auto) == (Precision.INT8, True)


def test_an_alias_and_its_precision_are_one_request() -> None:
    assert BundleOptions(fp16=True, precision=PrecisionName.FP16).spec().precision is Precision.FP16
    with pytest.raises(SpecError, match="two precisions were asked for: fp16 and int8"):
        BundleOptions(fp16=True, precision=PrecisionName.INT8).spec()


def test_settings_of_a_measurement_are_not_a_builds() -> None:
    with pytest.raises(SpecError, match="a build measures with fixed settings"):
        EngineOptions().request(["--warmUp=10"])


def test_image_sizes_are_read_as_height_by_width() -> None:
    assert (parse_size("224"), parse_size("256X192")) == ((224, 224), (256, 192))


@pytest.mark.parametrize("text", ["", "x", "224x", "1x2x3", "-32", "²²4"])
def test_an_image_size_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="cannot read the image size"):
        parse_size(text)


def test_two_precisions_are_refused_with_every_way_to_name_one() -> None:
    with pytest.raises(SpecError, match=r"bf16 and int8.*--bf16 and --int8"):
        BundleOptions(bf16=True, int8=True).spec()
