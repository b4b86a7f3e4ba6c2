"""Every CUDA runtime function that gmf_edge calls exists in cuda-python of CUDA 11, 12 and 13, with that number of arguments.

cuda-bindings imports without a driver; its docstrings tell the signatures. Skipped only where it is not cached and the index is out
of reach.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trt_bindings

ENGINES = Path(__file__).parents[2] / "gmf_edge" / "engines" / "tensorrt"
# of CUDA 11 (with TensorRT 8.6), 12 (JetPack 6) and 13 (JetPack 7), with what each needs to be imported
VERSIONS = {"11.8.7": (), "12.8.0": (), "13.5.0": ("cuda-pathfinder==1.5.1",)}

DUMP = """
import json, sys
from cuda.bindings import runtime
told = {}
for name in dir(runtime):
    value = getattr(runtime, name)
    if name.startswith("cuda"):
        members = list(getattr(value, "__members__", {}))
        told[name] = {"doc": (getattr(value, "__doc__", None) or "").split("\\n")[0], "members": members}
json.dump(told, sys.stdout)
"""


@cache
def runtime_of(version: str) -> dict[str, Any]:
    """Names, signatures and enum members of cuda.bindings.runtime."""
    home = trt_bindings.cache_folder()
    home.mkdir(parents=True, exist_ok=True)
    for python, path in trt_bindings.interpreters():
        folder = home / f"cuda-bindings-{version}-cp{python}"
        try:
            for requirement in (f"cuda-bindings=={version}", *VERSIONS[version]):
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
                packages = (f"cuda-bindings=={version}", *VERSIONS[version])
                paths = ":".join(str(folder / requirement.partition("==")[0]) for requirement in packages)
                answer = subprocess.run([path, "-c", DUMP], capture_output=True, text=True, env={"PYTHONPATH": paths})
                assert answer.returncode == 0, answer.stderr
                told: dict[str, Any] = json.loads(answer.stdout)
                return told
        except trt_bindings.IndexUnreachable as error:
            pytest.skip(str(error))
    pytest.fail(f"the index has no cuda-bindings {version} for any Python here")


def calls() -> list[tuple[str, int, str]]:
    """(function, number of arguments, where) of each call("name", ...) and runtime().name(...)."""
    found = []
    for source in sorted(ENGINES.glob("*.py")):
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.Call):
                continue
            where = f"{source.name}:{node.lineno}"
            if isinstance(node.func, ast.Name) and node.func.id == "call" and isinstance(node.args[0], ast.Constant):
                found.append((str(node.args[0].value), len(node.args) - 1, where))
            elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call):
                inner = node.func.value.func
                if isinstance(inner, ast.Name) and inner.id == "runtime":
                    found.append((node.func.attr, len(node.args), where))
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_fits(version: str) -> None:
    told = runtime_of(version)
    used = calls()
    assert len({name for name, _, _ in used}) > 20, "the walk found too little to be right"
    for name, count, where in used:
        assert name in told, f"{where}: cuda-bindings {version} has no {name}"
        signature = re.fullmatch(rf"{name}\((.*)\)(?: ->.*)?", told[name]["doc"])
        assert signature, f"{name} has no signature: {told[name]['doc']!r}"
        arguments = [part for part in signature[1].split(",") if part.strip()]
        assert len(arguments) == count, f"{where}: {told[name]['doc']} is called with {count} arguments"


@pytest.mark.parametrize("version", VERSIONS)
def test_constants_exist(version: str) -> None:
    told = runtime_of(version)
    assert {"cudaStreamNonBlocking", "cudaEventDisableTiming"} <= set(told)
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaMemcpyDeviceToDevice"} <= set(
        told["cudaMemcpyKind"]["members"]
    )
    assert "cudaStreamCaptureModeThreadLocal" in told["cudaStreamCaptureMode"]["members"]
