"""Starting TensorRT with NVIDIA's real bindings over libraries that answer nothing, as where the library finds no driver that fits it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import trt_bindings

REPOSITORY = Path(__file__).parents[2]

START = """
import sys
try:
    import numpy
except ImportError:
    print("no NumPy in this Python")
    sys.exit()
from gmf_edge.engines.tensorrt.build import BuildLog
from gmf_edge.engines.tensorrt.load import deserialize
from gmf_edge.engines.tensorrt.options import TensorRTOptions
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import GmfEdgeError
try:
    deserialize(b"", TensorRTVersion.here(), TensorRTOptions(), BuildLog(), None)
except GmfEdgeError as error:
    print(type(error).__name__, error.exit_status, error)
"""


@pytest.mark.parametrize("version", trt_bindings.VERSIONS)
def test_a_null_runtime_is_an_environment_problem(version: str) -> None:
    try:
        python, folder = trt_bindings.unpacked(version)
    except trt_bindings.IndexUnreachable as error:
        pytest.skip(str(error))
    environment = trt_bindings.environment(folder)
    environment["PYTHONPATH"] += f":{REPOSITORY}"
    answer = subprocess.run([python, "-c", START], capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr
    if answer.stdout.startswith("no NumPy"):
        pytest.skip(answer.stdout.strip())
    assert answer.stdout.startswith(f"EnvironmentProblem 4 TensorRT {version} could not be started: ")
    assert "install TensorRT for this CUDA" in answer.stdout
