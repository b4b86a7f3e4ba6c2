"""Options refuse nonsense with what to give instead, and trtexec's spellings mean what they mean there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gmf_edge.engines.tensorrt.cuda import Device
from gmf_edge.engines.tensorrt.options import TensorRTOptions, options_from_trtexec
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import EnvironmentProblem, SpecError
from gmf_edge.spec import BatchProfile, Precision, SizeRange

A100 = Device("NVIDIA A100-SXM4-80GB", "8.0", 108, 81050, False, "12.6", "12.6", "550.54.15", "")
ORIN = Device("Orin", "8.7", 16, 30697, True, "12.6", "12.6", "540.4.0", "MAXN")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workspace": 1}, "no option 'workspace'"),
        ({"workspace_mib": 0}, "workspace_mib is 0"),
        ({"workspace_mib": "1024"}, "give a value of type int"),
        ({"workspace_mib": True}, "give a value of type int"),
        ({"strip": 1}, "give a value of type bool"),
        ({"optimization_level": 6}, "give --builderOptimizationLevel 0 "),
        ({"hardware_compatibility": "ampere"}, r"ampere\+"),
        ({"tactic_sources": ("cublas", "-cudnn")}, "mix a set with changes"),
        ({"tactic_sources": ("cutlass",)}, "unknown tactic source 'cutlass'"),
        ({"tiling": "extreme"}, "tiling is 'extreme'"),
        ({"max_fp32_share": 1.5}, "give a share"),
        ({"max_fp32_share": float("nan")}, "give a share"),
        ({"streams": 0}, "streams is 0"),
        ({"dla_core": -1}, "dla_core is -1"),
    ],
)
def test_nonsense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        TensorRTOptions.of(values)


def test_none_stands_for_the_default_and_paths_and_lists_are_taken() -> None:
    options = TensorRTOptions.of(
        {"workspace_mib": None, "timing_cache": Path("a/b"), "tactic_sources": ["cublas"], "max_fp32_share": 1}
    )
    assert options == TensorRTOptions(timing_cache="a/b", tactic_sources=("cublas",), max_fp32_share=1)


@pytest.mark.parametrize(
    ("version", "values", "message"),
    [
        ("8.6.1", {"strip": True}, "no stripped engines"),
        ("8.6.1", {"refit": True}, "cannot exchange weights"),
        ("10.3.0", {"hardware_compatibility": "same"}, "10.9 or newer"),
        ("10.3.0", {"tiling": "fast"}, "10.9 or newer"),
        ("11.4.0", {"tactic_sources": ("+cudnn",)}, "takes no kernels from"),
    ],
)
def test_what_a_version_lacks_is_refused(version: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        TensorRTOptions.of(values).check(TensorRTVersion.of(version), BatchProfile(), A100)


def test_taking_away_what_a_version_lacks_is_fine() -> None:
    TensorRTOptions(tactic_sources=("-cudnn",)).check(TensorRTVersion.of("11.4.0"), BatchProfile(), A100)


@pytest.mark.parametrize("level", ["ampere+", "same"])
def test_hardware_compatibility_is_refused_on_a_jetson(level: str) -> None:
    options = TensorRTOptions(hardware_compatibility=level)
    options.check(TensorRTVersion.of("10.13.0"), BatchProfile(), A100)
    with pytest.raises(SpecError, match="no hardware compatibility on a Jetson"):
        options.check(TensorRTVersion.of("10.13.0"), BatchProfile(), ORIN)


def test_trtexec_spellings() -> None:
    line = (
        "--minShapes=images:1x3x224x224 --optShapes=images:8x3x224x224 --maxShapes=images:32x3x224x224 "
        "--memPoolSize=workspace:2G "
        "--timingCacheFile=t.cache --builderOptimizationLevel=5 --hardwareCompatibilityLevel=sameComputeCapability "
        "--versionCompatible "
        "--stripWeights --refit --useDLACore=1 --tacticSources=-CUDNN,+CUBLAS --tilingOptimizationLevel=2 --maxAuxStreams=2 "
        "--infStreams=2 --useCudaGraph --plugins=libgmf.so --fp16 --noTF32 "
        "--warmUp=200 --duration=3 --iterations=10 --percentile=90,99"
    )
    request = options_from_trtexec(line.split())
    assert request.profile == BatchProfile(1, 8, 32)
    assert request.image_size == (224, 224)
    assert request.precision is Precision.FP16
    assert request.bench == {"warmup_ms": 200, "duration_s": 3, "iterations": 10, "percentiles": (90, 99)}
    assert request.options == {
        "workspace_mib": 2048,
        "timing_cache": "t.cache",
        "optimization_level": 5,
        "hardware_compatibility": "same",
        "version_compatible": True,
        "strip": True,
        "refit": True,
        "dla_core": 1,
        "tactic_sources": ("-cudnn", "+cublas"),
        "tiling": "moderate",
        "max_aux_streams": 2,
        "streams": 2,
        "cuda_graphs": True,
        "plugin_library": "libgmf.so",
    }
    TensorRTOptions.of(request.options)


@pytest.mark.parametrize(
    ("arguments", "profile"),
    [
        (["--shapes=images:4x3x64x64"], BatchProfile(4, 4, 4)),
        (["--minShapes=images:1x3x64x64", "--maxShapes=images:8x3x64x64"], BatchProfile(1, 8, 8)),
        (["--optShapes=images:2x3x64x64"], BatchProfile(2, 2, 2)),
    ],
)
def test_a_missing_bound_is_the_nearest_given_one(arguments: list[str], profile: BatchProfile) -> None:
    assert options_from_trtexec(arguments).profile == profile


@pytest.mark.parametrize(
    ("size", "mib"),
    [("workspace:1024", 1024), ("workspace:1024M", 1024), ("workspace:1G", 1024), ("workspace:2048K", 2), ("workspace:1B", 1)],
)
def test_pool_sizes_are_mib_unless_a_unit_is_given(size: str, mib: int) -> None:
    assert options_from_trtexec([f"--memPoolSize={size}"]).options == {"workspace_mib": mib}


@pytest.mark.parametrize("order", [["--fp16", "--int8"], ["--int8", "--fp16"], ["--best"]])
def test_int8_with_fp16_is_int8(order: list[str]) -> None:
    assert options_from_trtexec(order).precision is Precision.INT8


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--verbose", "'--verbose' has no counterpart"),
        ("--shapes=input:1x3x224x224", "the input is 'images'"),
        ("--shapes=images:1x1x224x224", "images:8x3x224x224"),
        ("--memPoolSize=dlaSRAM:1", "other pools"),
        ("--warmUp=fast", "whole number"),
        ("--hardwareCompatibilityLevel=turing", "ampere"),
        ("--tacticSources=CUDNN", r"\+CUBLAS,-CUDNN"),
        ("--builderOptimizationLevel=9", "give --builderOptimizationLevel 0 "),
    ],
)
def test_what_cannot_be_read_is_refused(argument: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        options_from_trtexec([argument])


def test_several_image_sizes_are_a_range() -> None:
    request = options_from_trtexec(
        ["--minShapes=images:1x3x64x96", "--optShapes=images:2x3x96x96", "--maxShapes=images:4x3x128x160"]
    )
    assert request.sizes == SizeRange((64, 96), (96, 96), (128, 160))
    assert (request.image_size, request.profile) == ((96, 96), BatchProfile(1, 2, 4))
    assert options_from_trtexec(["--shapes=images:2x3x64x96"]).sizes is None
    with pytest.raises(SpecError, match="out of order"):
        options_from_trtexec(["--minShapes=images:1x3x128x64", "--maxShapes=images:1x3x96x96"])


def test_bf16_is_a_precision_and_not_one_beside_fp16() -> None:
    assert options_from_trtexec(["--bf16"]).precision is Precision.BF16
    assert options_from_trtexec(["--bf16", "--int8"]).precision is Precision.INT8
    with pytest.raises(SpecError, match="--fp16 and --bf16 were both given"):
        options_from_trtexec(["--fp16", "--bf16"])


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("8.6.0", "tensorrt-8.6"),
        ("8.6.1.6", "tensorrt-8.6"),
        ("10.0.1", "tensorrt-10.3"),
        ("10.9.0.34", "tensorrt-10.3"),
        ("10.10.0", "tensorrt-10.13"),
        ("10.16.1", "tensorrt-10.13"),
        ("11.0.0", "tensorrt-11"),
        ("11.4.0.106", "tensorrt-11"),
    ],
)
def test_a_version_maps_to_its_target(text: str, row: str) -> None:
    assert TensorRTVersion.of(text).target.name == row


@pytest.mark.parametrize("text", ["8.5.3", "9.3.0", "12.0.0", "7.1", ""])
def test_other_versions_are_an_environment_problem(text: str) -> None:
    with pytest.raises(EnvironmentProblem, match=r"not supported; use TensorRT 8\.6"):
        TensorRTVersion.of(text)


def test_missing_features_are_told_per_version() -> None:
    assert any("IProgressMonitor" in lack for lack in TensorRTVersion.of("8.6.1").missing)
    assert not any("IProgressMonitor" in lack for lack in TensorRTVersion.of("10.3.0").missing)
    assert any("cuDNN" in lack for lack in TensorRTVersion.of("11.4.0").missing)
    assert [TensorRTVersion.of(text).supports_dla for text in ("8.6.1", "10.7.0", "10.13.3", "11.3.0", "11.4.0")] == [
        True,
        True,
        False,
        False,
        True,
    ]
