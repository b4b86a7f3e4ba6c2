"""The real TensorRT 8.6 on a machine without a GPU: everything up to the first CUDA call, and what the real ONNX parser knows.

GMF_EDGE_TRT_HOME names a folder with env.sh, which defines `trt-python`: a Python with TensorRT 8.6, NumPy, Pillow, Polygraphy and
cuda-bindings, without torch and onnx. Skipped where it is not set.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

UP_TO_CUDA = """
import json, sys, tempfile
from pathlib import Path
for name in ("torch", "onnx", "onnxruntime", "typer", "rich"):
    sys.modules[name] = None
import gmf_edge.deploy
from gmf_edge.engines.protocol import EngineRequest, Graphs
from gmf_edge.engines.tensorrt.backend import TensorRTBackend
from gmf_edge.engines.tensorrt.build import parse_graph
from gmf_edge.engines.tensorrt.config import tactic_source_mask
from gmf_edge.engines.tensorrt.doctor import diagnose
from gmf_edge.engines.tensorrt.log import BuildLog
from gmf_edge.engines.tensorrt.plugins import registered_plugins
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
from gmf_edge.errors import GmfEdgeError
from gmf_edge.spec import BatchProfile, Precision
from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, Profile
def error_of(function):
    try:
        function()
    except GmfEdgeError as error:
        return [type(error).__name__, error.exit_status, str(error)]
version = TensorRTVersion.here()
folder = Path(tempfile.mkdtemp())
(folder / "g.onnx").write_bytes(b"")
request = EngineRequest(Graphs(folder, {("portable", 17): "g.onnx"}), Precision.FP16, BatchProfile(), (64, 64))
backend = TensorRTBackend()
told = {
    "version": version.text, "target": version.target.name, "missing": backend.missing(),
    "build": error_of(lambda: backend.build(request, folder)),
    "builder": error_of(lambda: parse_graph(folder / "g.onnx", version, BuildLog())),
    "plugins": registered_plugins(version),
    "tactics": tactic_source_mask(("jit_convolutions",), 0, version),
    "findings": {finding.subject: finding.state for finding in diagnose()},
}
print(json.dumps(told))
"""

# what the backend looks for in messages and answers (gmf_edge.engines.tensorrt.log and .inspect), in the library's own words
WORDS = """
import json, mmap, os
import tensorrt
from gmf_edge.engines.tensorrt.log import OUT_OF_MEMORY_PATTERN, TOO_LITTLE_WORKSPACE_PATTERN, UNOBEYABLE_PATTERN
from gmf_edge.engines.tensorrt.versions import TensorRTVersion
words = {
    "GPU memory allocation failed during initialization of layer: ": OUT_OF_MEMORY_PATTERN,
    "could not be allocated": None,
    "due to insufficient workspace. See verbose log for requested sizes.": TOO_LITTLE_WORKSPACE_PATTERN,
    "Could not find any implementation for node ": TOO_LITTLE_WORKSPACE_PATTERN,
    "Some tactics do not have sufficient workspace memory to run. Increasing workspace size": TOO_LITTLE_WORKSPACE_PATTERN,
    "obeys the requested constraints. I.e. no conforming implementation was found": UNOBEYABLE_PATTERN,
    "incompatible with int8 precision constraints. kOBEY_PRECISION_CONSTRAINTS was set": UNOBEYABLE_PATTERN,
    "I/O tensors for Myelin graph should not be of INT8 type.": None,
    "Metadata": None, "CaskGemmConvolution": None, "CaskGemmMatrixMultiply": None, "reshape_before_": None, "ForeignNode": None,
}
path = next(line.split()[-1] for line in open("/proc/self/maps") if "libnvinfer.so" in line)
with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
    absent = [word for word in words if library.find(word.encode()) < 0]
missed = [word for word, pattern in words.items() if pattern and not pattern.search(word)]
print(json.dumps({"absent": absent, "missed": missed, "library": TensorRTVersion.here().library}))
"""

# the parser's list of operators needs a network only to be constructed
DUMMY_NETWORK = """
static long zero(void) { return 0; }
static void *table[512], *inner[64], *outer[64];
void *dummy_network(void) {
    for (int i = 0; i < 512; i++) table[i] = (void *)zero;
    for (int i = 0; i < 64; i++) { inner[i] = table; outer[i] = inner; }
    outer[0] = table;
    return outer;
}
"""

# IParser::supportsOperator is its fifth virtual function: NvOnnxParser.h of 8.6
KNOWN_OPERATORS = """
import ctypes, json, sys
parser = ctypes.CDLL("libnvonnxparser.so.8", mode=ctypes.RTLD_GLOBAL)
dummy = ctypes.CDLL(sys.argv[1])
dummy.dummy_network.restype = parser.createNvOnnxParser_INTERNAL.restype = ctypes.c_void_p
parser.createNvOnnxParser_INTERNAL.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
network = dummy.dummy_network()
made = parser.createNvOnnxParser_INTERNAL(network, network, parser.getNvOnnxParserVersion())
table = ctypes.cast(ctypes.cast(made, ctypes.POINTER(ctypes.c_void_p))[0], ctypes.POINTER(ctypes.c_void_p))
supports = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_char_p)(table[4])
print(json.dumps({name: supports(made, name.encode()) for name in sys.argv[2:]}))
"""


def trt_python(*arguments: str) -> str:
    home = os.environ.get("GMF_EDGE_TRT_HOME")
    if not home:
        pytest.skip("GMF_EDGE_TRT_HOME names no unpacked TensorRT 8.6")
    line = f". {shlex.quote(home)}/env.sh && trt-python {shlex.join(arguments)}"
    paths = f"{REPOSITORY}:{os.environ.get('TRT_PYTHONPATH', '')}".strip(":")
    answer = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env={**os.environ, "TRT_PYTHONPATH": paths}, cwd="/"
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    return answer.stdout.splitlines()[-1]


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU: use pytest -m gpu")
def test_the_whole_path_runs_up_to_the_first_cuda_call_and_reports_status_4() -> None:
    told = json.loads(trt_python("-c", UP_TO_CUDA))
    assert told["version"].startswith("8.6")
    assert told["target"] == "tensorrt-8.6"
    name, status, message = told["build"]
    assert (name, status) == ("EnvironmentProblem", 4)
    assert "no NVIDIA driver is loaded" in message
    assert "no NVIDIA driver is loaded" in told["missing"]
    # the real builder says why it cannot start
    assert told["builder"][:2] == ["EnvironmentProblem", 4]
    assert "CUDA initialization failure" in told["builder"][2]
    assert told["findings"]["GPU"] == "missing"
    assert told["findings"]["TensorRT"] == told["findings"]["TensorRT library"] == told["findings"]["Polygraphy"] == "ok"


def test_messages_and_kinds_are_spelled_as_the_real_library_spells_them() -> None:
    assert json.loads(trt_python("-c", WORDS)) == {"absent": [], "missed": [], "library": "8.6.0"}


def test_the_real_parser_knows_every_operator_of_the_graphs_for_8(tmp_path: Path) -> None:
    bundles = os.environ.get("GMF_EDGE_BUNDLES")
    onnx = pytest.importorskip("onnx")
    graphs = sorted(Path(bundles).rglob("*-opset17.onnx")) if bundles else []
    if not graphs:
        pytest.skip("GMF_EDGE_BUNDLES names no folder of bundles")
    source = tmp_path / "dummy.c"
    source.write_text(DUMMY_NETWORK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "dummy.so"), str(source)], check=True)
    for graph in graphs:
        operators = sorted({node.op_type for node in onnx.load(graph, load_external_data=False).graph.node})
        known = json.loads(trt_python("-c", KNOWN_OPERATORS, str(tmp_path / "dummy.so"), "Conv", "Gelu", *operators))
        # what it must say if it is asked rightly: Gelu came to ONNX with opset 20
        assert known["Conv"] is True
        assert known["Gelu"] is False
        unknown = {name for name in operators if not known[name]}
        assert unknown == ({"GmfGroupMixAttention"} if "plugin" in graph.name else set()), graph
