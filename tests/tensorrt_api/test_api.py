"""Every TensorRT name, member, method and keyword that gmf_edge uses exists in each supported version of NVIDIA's bindings.

Skipped, with the reason, only where the bindings are not cached and the package index cannot be reached.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trt_bindings
from trt_stubs import parameters, python_type, stub
from trt_usage import Usage

from gmf_edge.engines.tensorrt.versions import TensorRTVersion

ENGINES = Path(__file__).parents[2] / "gmf_edge" / "engines" / "tensorrt"
SOURCES = sorted(ENGINES.glob("*.py"))
every_version = pytest.mark.parametrize("version", trt_bindings.VERSIONS)


def described(version: str) -> dict[str, Any]:
    try:
        return trt_bindings.dump(version)
    except trt_bindings.IndexUnreachable as error:
        pytest.skip(str(error))


def guards(version: str) -> dict[str, bool]:
    found = TensorRTVersion.of(version)
    return {name: getattr(found, name) for name in TensorRTVersion.guards()}


@cache
def usage(source: str, version: str) -> Usage:
    return Usage(source, described(version), guards(version), [path.read_text() for path in SOURCES])


def problems_of(source: str, version: str) -> list[str]:
    return usage(source, version).problems


@every_version
def test_bindings_load_over_stub_libraries_and_tell_their_version(version: str) -> None:
    told = described(version)
    assert told["version"] == version
    assert {"Builder", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "OnnxParser"} <= set(told["classes"])
    assert any("network" in s for s in told["classes"]["Builder"]["methods"]["build_serialized_network"])


def test_versions_differ_as_the_version_table_says() -> None:
    """Each guard of TensorRTVersion is true exactly where the bindings have what it guards."""
    for version in trt_bindings.VERSIONS:
        classes = described(version)["classes"]
        members = {name: set(record["members"] or ()) for name, record in classes.items()}
        has = {
            "has_explicit_batch_flag": "EXPLICIT_BATCH" in members["NetworkDefinitionCreationFlag"] and version.startswith("8."),
            "has_weak_typing": "STRONGLY_TYPED" not in members["NetworkDefinitionCreationFlag"],
            # 10.x still has the name; profiles are shared there without it
            "has_profile_sharing_flag": "PROFILE_SHARING_0806" in members["PreviewFeature"] and version.startswith("8."),
            "has_progress_monitor": "IProgressMonitor" in classes,
            "has_strip_plan": {"STRIP_PLAN", "REFIT_IDENTICAL"} <= members["BuilderFlag"] and "OnnxParserRefitter" in classes,
            "has_device_memory_size_v2": "device_memory_size_v2" in classes["ICudaEngine"]["properties"],
            "has_external_tactic_sources": {"CUBLAS", "CUBLAS_LT", "CUDNN"} <= members["TacticSource"],
            "has_same_compute_capability": "SAME_COMPUTE_CAPABILITY" in members["HardwareCompatibilityLevel"],
            "has_tiling": "tiling_optimization_level" in classes["IBuilderConfig"]["properties"],
            "has_creator_list": "all_creators" not in classes["IPluginRegistry"]["properties"],
        }
        assert guards(version) == has, version


@every_version
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_use_exists(version: str, source: Path) -> None:
    assert problems_of(source.read_text(), version) == []


@every_version
def test_the_oracle_sees_what_the_backend_uses(version: str) -> None:
    """An oracle that found nothing would find no problem either."""
    found: set[str] = set()
    for source in SOURCES:
        found |= usage(source.read_text(), version).found
    assert len(found) > 80
    assert {
        "Builder.create_network",
        "IBuilderConfig.set_tactic_sources",
        "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.profiler",
        "EngineInspector.get_engine_information",
        "OnnxParser.parse_from_file",
        "ParserError.desc",
        "IPluginRegistry.load_library",
    } <= found
    assert ("ILayer.precision" in found) == guards(version)["has_weak_typing"]
    assert ("IProgressMonitor.step_complete" in found) == guards(version)["has_progress_monitor"]


# (file, text, text with a mistake, what the oracle says, versions in which it is one)
CONFIG_END = "    if options.tactic_sources is not None:\n"
MISTAKES = {
    "unguarded FP16 flag": (
        "config.py",
        CONFIG_END,
        "    config.set_flag(trt.BuilderFlag.FP16)\n" + CONFIG_END,
        "BuilderFlag has no member FP16",
        {"11.4.0.106"},
    ),
    "unguarded layer precision": (
        "config.py",
        CONFIG_END,
        "    network.get_layer(0).precision = trt.DataType.FLOAT\n" + CONFIG_END,
        "ILayer has no attribute precision",
        {"11.4.0.106"},
    ),
    "unguarded progress monitor": (
        "progress.py",
        "    if version.has_progress_monitor:\n        import",
        "    if True:\n        import",
        "tensorrt has no IProgressMonitor",
        {"8.6.1"},
    ),
    "wrong guard": (
        "config.py",
        "if version.has_same_compute_capability and",
        "if version.has_strip_plan and",
        "HardwareCompatibilityLevel has no member SAME_COMPUTE_CAPABILITY",
        {"10.3.0"},
    ),
    "inverted guard": (
        "contexts.py",
        "if version.has_device_memory_size_v2:",
        "if not version.has_device_memory_size_v2:",
        "ICudaEngine has no attribute device_memory_size",
        {"8.6.1", "11.4.0.106"},
    ),
    "a context's memory set in the old way": (
        "contexts.py",
        "context.set_device_memory(self.activations.pointer, self.activations.size)",
        "context.set_device_memory(self.activations.pointer)",
        "IExecutionContext.set_device_memory takes no such arguments",
        {"10.3.0", "10.13.3.9", "11.4.0.106"},
    ),
    "unknown method": (
        "lane.py",
        "context.execute_async_v3(stream)",
        "context.execute_async_v2([], stream)",
        "IExecutionContext has no attribute execute_async_v2",
        {"10.3.0", "10.13.3.9", "11.4.0.106"},
    ),
    "unknown keyword": (
        "build.py",
        "builder.create_network(flags)",
        "builder.create_network(creation_flags=flags)",
        "Builder.create_network takes no such arguments",
        set(trt_bindings.VERSIONS),
    ),
    "read-only property": (
        "config.py",
        CONFIG_END,
        "    config.num_optimization_profiles = 2\n" + CONFIG_END,
        "IBuilderConfig.num_optimization_profiles cannot be set",
        set(trt_bindings.VERSIONS),
    ),
    "callback that is never called": (
        "run.py",
        "def report_layer_time(",
        "def on_layer_time(",
        "IProfiler never calls a method on_layer_time",
        set(trt_bindings.VERSIONS),
    ),
}


@every_version
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails_exactly_in_the_versions_that_it_breaks(version: str, mistake: str) -> None:
    name, text, broken, message, affected = MISTAKES[mistake]
    source = (ENGINES / name).read_text()
    assert text in source, f"{name} no longer contains {text!r}: adapt the mistake"
    problems = [problem for problem in problems_of(source.replace(text, broken), version) if message in problem]
    assert bool(problems) == (version in affected), problems


MYPY_CONFIG = """[mypy]
python_version = 3.11
check_untyped_defs = True
follow_imports = silent
ignore_missing_imports = True
# callbacks may take less general types than the bindings tell
disable_error_code = override
# the guards of a version are told of what reads them alone: the rest is looked at once for all versions
[mypy-gmf_edge.engines.tensorrt.*]
always_true = {true}
always_false = {false}
[mypy-changed.*]
always_true = {true}
always_false = {false}
[mypy-tensorrt]
ignore_errors = True
[mypy-polygraphy.*,cuda.*,torch.*,onnx.*,onnx_ir.*,onnxruntime.*,openvino.*]
follow_imports = skip
"""


@cache
def mypy_folder(version: str) -> Path:
    """A folder with the generated stub and mypy's configuration for one version."""
    described(version)
    _, unpacked = trt_bindings.unpacked(version)
    folder = unpacked / "mypy"
    folder.mkdir(exist_ok=True)
    (folder / "tensorrt.pyi").write_text(stub(described(version)))
    values = guards(version)
    config = MYPY_CONFIG.format(
        true=",".join(name for name, value in values.items() if value),
        false=",".join(name for name, value in values.items() if not value),
    )
    (folder / "mypy.ini").write_text(config)
    return folder


def mypy_says(version: str, files: list[Path]) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mypy")
    folder = mypy_folder(version)
    kept = mypy_folder(trt_bindings.VERSIONS[0]) / "cache"
    command = [sys.executable, "-m", "mypy", "--config-file", str(folder / "mypy.ini"), "--cache-dir", str(kept)]
    repository = ENGINES.parents[2]
    environment = {**trt_bindings.environment(folder), "MYPYPATH": f"{folder}:{repository}", "PYTHONPATH": ""}
    return subprocess.run([*command, *map(str, files)], capture_output=True, text=True, cwd=repository, env=environment)


# the oldest and the newest; the walk over the syntax trees has all of them every time
@pytest.mark.parametrize(
    "version",
    [
        pytest.param(version, marks=[] if version in (trt_bindings.VERSIONS[0], trt_bindings.VERSIONS[-1]) else [pytest.mark.slow])
        for version in trt_bindings.VERSIONS
    ],
)
def test_the_types_fit_by_mypy(version: str) -> None:
    answer = mypy_says(version, SOURCES)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_mypy_refuses_the_unguarded_fp16_flag(tmp_path: Path) -> None:
    name, text, broken, _, _ = MISTAKES["unguarded FP16 flag"]
    wrong = tmp_path / "changed" / name
    wrong.parent.mkdir()
    (wrong.parent / "__init__.py").touch()
    wrong.write_text((ENGINES / name).read_text().replace(text, broken))
    answer = mypy_says("11.4.0.106", [wrong])
    assert answer.returncode == 1
    assert 'has no attribute "FP16"' in answer.stdout
    assert mypy_says(trt_bindings.VERSIONS[0], [wrong]).returncode == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tensorrt.tensorrt.IBuilderConfig", "IBuilderConfig"),
        ("nvinfer1::IEngineInspector", "EngineInspector"),
        ("nvinfer1::ILogger::Severity", "ILogger.Severity"),
        ("List[tensorrt.tensorrt.Dims]", "list[Dims]"),
        ("typing.SupportsInt", "SupportsInt"),
        ("buffer", "Buffer"),
        ("detail::accessor<detail::accessor_policies::str_attr>", "Any"),
    ],
)
def test_pybind_types_are_read(text: str, expected: str) -> None:
    classes = {"IBuilderConfig", "EngineInspector", "ILogger", "ILogger.Severity", "Dims"}
    assert python_type(text, classes) == expected


def test_pybind_signatures_are_read() -> None:
    signature = "f(self: tensorrt.tensorrt.A, x: List[int], y: tensorrt.tensorrt.E = <E.STATIC: 0>, z: str = None) -> bool"
    assert parameters(signature) == [
        ("x", "List[int]", False),
        ("y", "tensorrt.tensorrt.E", True),
        ("z", "str", True),
    ]
