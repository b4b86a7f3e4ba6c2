"""Every CUDA function that gmf_edge calls exists in cuda-python of CUDA 11, 12 and 13, with that number of arguments.

cuda-bindings imports without a driver; its docstrings tell the signatures. Skipped only where it is not cached and the index is out
of reach.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import trt_bindings

from gmf_edge.engines.tensorrt import cuda
from gmf_edge.errors import EngineError, EnvironmentProblem

ENGINES = Path(__file__).parents[2] / "gmf_edge" / "engines" / "tensorrt"
# of CUDA 11 (with TensorRT 8.6), 12 (JetPack 6) and 13 (JetPack 7), with what each needs to be imported
VERSIONS = {"11.8.7": (), "12.8.0": (), "13.5.0": ("cuda-pathfinder==1.5.1",)}

DUMP = """
import json, sys
from cuda.bindings import driver, runtime
told = {}
for module in (runtime, driver):
    for name in dir(module):
        value = getattr(module, name)
        if name[:2].lower() == "cu":
            members = list(getattr(value, "__members__", {}))
            told[name] = {"doc": (getattr(value, "__doc__", None) or "").split("\\n")[0], "members": members}
json.dump(told, sys.stdout)
"""


@cache
def installed(version: str) -> tuple[str, str]:
    """(a Python, the PYTHONPATH with which it imports that cuda-bindings)."""
    home = trt_bindings.cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    for python, path in trt_bindings.interpreters():
        folder = home / f"cuda-bindings-{version}-cp{python}"
        packages = (f"cuda-bindings=={version}", *VERSIONS[version])
        try:
            for requirement in packages:
                target = folder / requirement.partition("==")[0]
                if target.exists():
                    continue
                wheels = folder / "wheels" / requirement
                wheels.mkdir(parents=True, exist_ok=True)
                wheel = trt_bindings.download(*requirement.split("=="), python, wheels)
                if wheel is None:
                    break
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(target)
            else:
                return path, ":".join(str(folder / requirement.partition("==")[0]) for requirement in packages)
        except trt_bindings.IndexUnreachable as error:
            pytest.skip(str(error))
    pytest.fail(f"the index has no cuda-bindings {version} for any Python here")


def run_with(version: str, program: str) -> str:
    """What a program prints that imports that cuda-bindings."""
    python, paths = installed(version)
    answer = subprocess.run([python, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": paths})
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@cache
def names_of(version: str) -> dict[str, Any]:
    """Names, signatures and enum members of cuda.bindings.runtime and cuda.bindings.driver."""
    told: dict[str, Any] = json.loads(run_with(version, DUMP))
    return told


def calls() -> list[tuple[str, int, str]]:
    """(function, number of arguments, where) of each call("name", ...), answer_of("name", ...) and runtime().name(...)."""
    found = []
    for source in sorted(ENGINES.glob("*.py")):
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.Call):
                continue
            where = f"{source.name}:{node.lineno}"
            is_call = isinstance(node.func, ast.Name) and node.func.id in ("call", "answer_of")
            if is_call and isinstance(node.args[0], ast.Constant):
                found.append((str(node.args[0].value), len(node.args) - 1, where))
            elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call):
                inner = node.func.value.func
                if isinstance(inner, ast.Name) and inner.id == "runtime":
                    found.append((node.func.attr, len(node.args), where))
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_fits(version: str) -> None:
    told = names_of(version)
    used = calls()
    names = {name for name, _, _ in used}
    assert len(names) > 25, "the walk found too little to be right"
    assert {"cudaMalloc", "cuCtxSetCurrent", "cuPointerGetAttribute"} <= names
    for name, count, where in used:
        assert name in told, f"{where}: cuda-bindings {version} has no {name}"
        if told[name]["members"]:
            continue  # an enum
        signature = re.fullmatch(rf"{name}\((.*)\)(?: ->.*)?", told[name]["doc"])
        assert signature, f"{name} has no signature: {told[name]['doc']!r}"
        arguments = [part for part in signature[1].split(",") if part.strip()]
        assert len(arguments) == count, f"{where}: {told[name]['doc']} is called with {count} arguments"


@pytest.mark.parametrize("version", VERSIONS)
def test_constants_exist(version: str) -> None:
    told = names_of(version)
    assert {"cudaStreamNonBlocking", "cudaEventDisableTiming"} <= set(told)
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"} <= set(told["cudaMemcpyKind"]["members"])
    assert {"CU_POINTER_ATTRIBUTE_CONTEXT", "CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL"} <= set(told["CUpointer_attribute"]["members"])
    assert "cudaStreamCaptureModeThreadLocal" in told["cudaStreamCaptureMode"]["members"]


@pytest.mark.parametrize("version", VERSIONS)
def test_without_a_driver_each_function_answers_with_a_code_or_a_runtime_error(version: str) -> None:
    """Which is what `answer_of` turns into an EnvironmentProblem."""
    program = """
from cuda.bindings import driver, runtime
for function in (driver.cuCtxGetCurrent, runtime.cudaGetDevice, runtime.cudaMemGetInfo, runtime.cudaGetLastError):
    try:
        print(int(function()[0]))
    except RuntimeError as error:
        print("RuntimeError")
"""
    assert len(run_with(version, program).split()) == 4


def test_cuda_python_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the older names exist, the newer ones would be searched for on the disk at each call."""

    class Finder:
        searched: ClassVar[list[str]] = []

        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            self.searched.append(name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    package = ModuleType("cuda")
    package.__path__ = []
    package.cudart = SimpleNamespace(cudaGetDevice=lambda: (0, 3))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    cuda.runtime.cache_clear()
    try:
        assert [cuda.call("cudaGetDevice") for _ in range(5)] == [3] * 5
        assert Finder.searched == ["cuda.bindings"]
    finally:
        cuda.runtime.cache_clear()


@pytest.mark.parametrize("code", [802, 999, 304])
def test_a_driver_that_does_not_start_is_an_environment_problem(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """802: NVSwitch machines without a Fabric Manager; 999 and 304: half-loaded drivers and containers."""
    answers = SimpleNamespace(
        cudaDriverGetVersion=lambda: (0, 12040),
        cudaRuntimeGetVersion=lambda: (0, 12040),
        cudaGetDeviceCount=lambda: (code, None),
        cudaStreamSynchronize=lambda stream: (code,),
        cudaError_t=lambda number: SimpleNamespace(name="cudaErrorSomething"),
    )
    monkeypatch.setattr(cuda, "runtime", lambda: answers)
    with pytest.raises(EnvironmentProblem, match=f"cudaGetDeviceCount: error {code}"):
        cuda.Device.here()
    # later the two others may mean anything
    later = EnvironmentProblem if code == 802 else EngineError
    with pytest.raises(later, match=str(code)) as raised:
        cuda.call("cudaStreamSynchronize", 7)
    assert type(raised.value) is later
