"""TensorRT's Python ahead-of-time form: packed weights, the split graph, PTX signatures, the real bindings."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from gmf_edge.errors import KernelError  # noqa: E402
from gmf_edge.kernels.archive import MAGIC, RECORD, attach_kernels, kernel_archive  # noqa: E402
from gmf_edge.kernels.compile import KERNELS, KernelTable, compile_widths  # noqa: E402
from gmf_edge.kernels.layout import plan  # noqa: E402
from gmf_edge.kernels.pack import packed_arrays  # noqa: E402
from gmf_edge.kernels.run import packed_weights  # noqa: E402
from gmf_edge.kernels.tensorrt_aot import AGGREGATE, ATTEND, split_for_aot  # noqa: E402
from gmf_edge.ops import group_mix_attention as op  # noqa: E402


@pytest.fixture(scope="module")
def node_table(tmp_path_factory: pytest.TempPathFactory) -> KernelTable:
    return compile_widths((8,), ("sm_90",), tmp_path_factory.mktemp("node"), form="node")


def plugin_model(channels: int, height: int, width: int) -> onnx.ModelProto:
    """plugin.onnx of a network that is one attention: the node without its body, weights as initializers."""
    inputs = op.random_inputs(np.random.default_rng(0), channels, 1, height * width)
    shapes = op.input_shapes(channels, "B", height * width)
    node = helper.make_node(
        op.OP_TYPE, list(op.INPUT_NAMES), ["mixed"], name="core", domain=op.DOMAIN, **op.node_attributes(height, width, channels)
    )
    graph = helper.make_graph(
        [node, helper.make_node("Identity", ["mixed"], ["output"])],
        "plugin",
        [helper.make_tensor_value_info("qkv", TensorProto.FLOAT16, shapes["qkv"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT16, ["B", height * width, channels])],
        [numpy_helper.from_array(inputs[name].astype(np.float16), name) for name in op.INPUT_NAMES[1:]],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(op.DOMAIN, 1)])


@pytest.mark.parametrize("channels", [40, 200])
def test_numpy_and_the_kernel_pack_the_same_weights(channels: int, device: str) -> None:
    inputs = op.random_inputs(np.random.default_rng(0), channels, 1, 9)
    weights = {name: value.astype(np.float16) for name, value in inputs.items()}
    tensors = {name: torch.from_numpy(value).to(device) for name, value in weights.items()}
    vectors, matrices = packed_weights(tensors, plan(1, 9, channels // 5, 16, 1), fill=float("nan"))
    expected = packed_arrays({name: weights[name] for name in op.INPUT_NAMES[1:]})
    np.testing.assert_array_equal(vectors.cpu().numpy(), expected[0])
    np.testing.assert_array_equal(matrices.cpu().numpy(), expected[1])


def test_split_graph_is_two_nodes_with_packed_weights_alone() -> None:
    split = split_for_aot(plugin_model(80, 14, 14), multiprocessors=132, batch=1)
    aggregate, attend, identity = split.graph.node
    assert (aggregate.op_type, attend.op_type, identity.op_type) == (AGGREGATE, ATTEND, "Identity")
    assert list(attend.input) == [*aggregate.input, *aggregate.output]
    assert attend.output[0] == "mixed"
    assert {tensor.name: list(tensor.dims) for tensor in split.graph.initializer} == {
        "mixed/vectors": [251, 16],
        "mixed/matrices": [6, 16, 16],
    }
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in attend.attribute}
    assert (given["splits"], given["tiles_per_split"], given["plugin_namespace"]) == (4, 1, b"gmf_edge")
    with pytest.raises(KernelError, match="has no GmfGroupMixAttention"):
        split_for_aot(split, 132, 1)
    unbound = plugin_model(80, 14, 14)
    del unbound.graph.initializer[:]
    with pytest.raises(KernelError, match="not an initializer"):
        split_for_aot(unbound, 132, 1)


def test_ptx_takes_inputs_integers_outputs_and_nothing_hidden(node_table: KernelTable) -> None:
    for kernel, integers_at, total in (("aggregate", 3, 9), ("attend", 6, 10)):
        image = node_table.image_of(kernel, "sm_90", 8, "fp16")
        ptx = (node_table.folder / image.ptx).read_text()
        found = re.search(r"\.entry\s+\w+\s*\((.*?)\)", ptx, re.DOTALL)
        assert found is not None
        parameters = [line.strip() for line in found.group(1).split(",")]
        assert len(parameters) == total == len(image.arguments)
        assert [".u32" in parameter for parameter in parameters] == [integers_at <= i < integers_at + 3 for i in range(total)]
        assert ".version 8.0" in ptx


def test_nodes_carry_their_own_kernels_in_the_library_form(node_table: KernelTable, tmp_path: Path) -> None:
    table = compile_widths((16,), ("sm_87",), tmp_path)
    attached = attach_kernels(plugin_model(80, 7, 7), table)
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in attached.graph.node[0].attribute}
    archive = base64.b64decode(given["kernels"])
    assert archive == kernel_archive(table, 16)
    assert archive.startswith(MAGIC)
    for index, kernel in enumerate(KERNELS):
        record = RECORD.unpack_from(archive, 16 + index * RECORD.size)
        image = table.image_of(kernel, "sm_87", 16, "fp16")
        offset, size = record[-3:-1]
        assert record[0].rstrip(b"\0").decode() == kernel
        assert archive[offset : offset + size] == table.read_cubin(image)
        assert record[-1].hex() == image.sha256
    # two tensors in place of 19, unless they are to be refitted
    assert list(attached.graph.node[0].input) == ["qkv", "mixed/vectors", "mixed/matrices"]
    assert {tensor.name for tensor in attached.graph.initializer} == {"mixed/vectors", "mixed/matrices"}
    assert given["packed"] == 1
    refittable = attach_kernels(plugin_model(80, 7, 7), table, pack=False)
    assert list(refittable.graph.node[0].input) == list(op.INPUT_NAMES)
    assert len(refittable.graph.initializer) == 19
    # attaching again replaces
    assert attach_kernels(attached, table) == attached
    with pytest.raises(KernelError, match="no kernel pack_weights for sm_87, S=8"):
        attach_kernels(plugin_model(40, 7, 7), table)
    with pytest.raises(KernelError, match="no kernel pack_weights"):
        kernel_archive(node_table, 8)


def real_bindings() -> ModuleType:
    """The helper that fetches the real bindings and builds stub libraries for them; skips where it cannot."""
    path = Path(__file__).parents[1] / "tensorrt_api" / "trt_bindings.py"
    spec = importlib.util.spec_from_file_location("trt_bindings_for_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("version", ["10.13.3.9", "11.4.0.106"])
def test_plugins_register_with_the_real_bindings(version: str, node_table: KernelTable) -> None:
    bindings = real_bindings()
    try:
        python, folder = bindings.unpacked(version)
    except bindings.IndexUnreachable as error:
        pytest.skip(f"the bindings of TensorRT {version} cannot be fetched: {error}")
    environment = bindings.environment(folder)
    root = str(Path(__file__).parents[2])
    # NumPy of this environment: the bindings' folder holds only tensorrt
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], root, str(Path(np.__file__).parents[1])])
    script = Path(__file__).with_name("check_aot.py")
    done = subprocess.run([python, str(script), str(node_table.folder)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["registered"] == [f"gmf_edge::{AGGREGATE}", f"gmf_edge::{ATTEND}"]
    assert answers[AGGREGATE]["outputs"] == 3
    assert [kind.split(".")[-1] for kind in answers[AGGREGATE]["types"]] == ["HALF", "FLOAT", "HALF"]
    assert answers[ATTEND]["inputs"] == ["qkv", "vectors", "matrices", "scratch", "partials", "local"]
    for name in (AGGREGATE, ATTEND):
        assert answers[name]["ptx_holds_entry"]
        assert answers[name]["integers"] == 3
