"""The kernel benchmark as far as it goes without a GPU: what it is timed against is right, and the launch code is the plugin's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import onnxruntime as ort
import torch

from gmf_edge.kernels.archive import kernel_archive
from gmf_edge.ops import group_mix_attention as op
from tests.plugins.test_plugin_library import fake_table

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import kernel_alternatives
import shipped_kernels

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
HEIGHT, WIDTH, CHANNELS = 7, 5, 40


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    arrays = op.random_inputs(np.random.default_rng(0), CHANNELS, 2, HEIGHT * WIDTH)
    return {name: torch.from_numpy(array).float() for name, array in arrays.items()}


def relative_error(got: np.ndarray, inputs: dict[str, torch.Tensor]) -> float:
    attributes = op.node_attributes(HEIGHT, WIDTH, CHANNELS)
    arrays = {name: tensor.double().numpy() for name, tensor in inputs.items()}
    exact = op.reference(arrays, HEIGHT, WIDTH, float(attributes["scale"]), float(attributes["epsilon"]))
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("channels_last", [True, False])
def test_pytorch_in_both_layouts_is_the_operator(inputs: dict[str, torch.Tensor], channels_last: bool) -> None:
    given = kernel_alternatives.torch_inputs(inputs, HEIGHT, WIDTH, channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert given["maps"].is_contiguous(memory_format=layout)
    assert relative_error(kernel_alternatives.attention_core(given).numpy(), inputs) < 1e-5


def test_the_graph_for_stock_tensorrt_is_the_operator(inputs: dict[str, torch.Tensor]) -> None:
    model = kernel_alternatives.stock_model(inputs, HEIGHT, WIDTH)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    [got] = session.run(None, {"qkv": inputs["qkv"].numpy()})
    assert relative_error(got, inputs) < 1e-5
    assert [i.name for i in session.get_inputs()] == ["qkv"]


# in a process whose driver is the mock: it writes 5 where aggregate writes its output, 6 where attend does
ENQUEUE = """
import sys
import numpy as np
sys.path[:0] = [{root!r}, {benchmarks!r}]
from pathlib import Path
from shipped_kernels import ShippedNode
node = ShippedNode(Path({library!r}), Path({archive!r}).read_bytes(), 6, 5, 80)
node.load()
batch, tokens = 3, 30
def aligned(size):
    memory = np.zeros(size + 256, np.uint8)
    return memory[-memory.ctypes.data % 256 :][:size]
output, workspace = aligned(batch * tokens * 80 * 2), aligned(node.workspace_bytes(4))
inputs = [aligned(1 << 16) for _ in range(3)]
node.enqueue(batch, [i.ctypes.data for i in inputs], output.ctypes.data, workspace.ctypes.data, 0)
written = output.reshape(batch * tokens, 160)
assert (written[:, :128] == 6).all() and (written[:, 128:] == 5).all(), written
try:
    node.enqueue(batch, [i.ctypes.data for i in inputs], output.ctypes.data + 2, workspace.ctypes.data, 0)
except Exception as error:
    assert "the output is not aligned" in str(error), error
else:
    raise SystemExit("a misaligned output was accepted")
node.close()
print("launched")
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launch code of the plugin; skips where it cannot be built."""
    try:
        return shipped_kernels.build_library(tmp_path_factory.mktemp("launch"), "-Wall", "-Wextra", "-Werror", "-O0")
    except shipped_kernels.EnvironmentProblem as missing:
        pytest.skip(str(missing))


def test_the_launch_code_is_the_plugins_and_runs_on_the_mock_driver(library: Path, tmp_path: Path) -> None:
    headers = shipped_kernels.cuda_headers()
    mock = tmp_path / "mock"
    mock.mkdir()
    source = ROOT / "tests" / "plugins" / "mock_cuda.cpp"
    command = [
        "c++",
        "-std=c++17",
        "-O0",
        "-shared",
        "-fPIC",
        "-isystem",
        str(headers),
        str(source),
        "-o",
        str(mock / "libcuda.so.1"),
    ]
    subprocess.run(command, check=True)
    archive = tmp_path / "archive"
    archive.write_bytes(kernel_archive(fake_table(tmp_path), 16, packed=True))
    paths = {"root": str(ROOT), "benchmarks": str(BENCHMARKS), "library": str(library), "archive": str(archive)}
    environment = {**os.environ, "LD_LIBRARY_PATH": str(mock)}
    done = subprocess.run([sys.executable, "-c", ENQUEUE.format(**paths)], capture_output=True, text=True, env=environment)
    assert done.stdout == "launched\n", done.stdout + done.stderr


def test_an_archive_for_another_width_is_refused_with_what_to_do(library: Path, tmp_path: Path) -> None:
    archive = kernel_archive(fake_table(tmp_path), 16, packed=True)
    with pytest.raises(shipped_kernels.KernelError, match="segments of 16 channels, this node has 8") as caught:
        shipped_kernels.ShippedNode(library, archive, 6, 5, 40)
    assert "build the bundle again" in caught.value.remedy
