"""What a plugin node carries: its packed weights and the kernels of its own width and type."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

import onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from gmf_edge.errors import KernelError  # noqa: E402
from gmf_edge.kernels.archive import MAGIC, RECORD, attach_kernels, kernel_archive, widths_by_type  # noqa: E402
from gmf_edge.kernels.compile import KERNELS, TYPES, KernelTable  # noqa: E402
from gmf_edge.kernels.layout import TILINGS, plan, tilings_of  # noqa: E402
from gmf_edge.kernels.pack import packed_arrays  # noqa: E402
from gmf_edge.kernels.run import packed_weights  # noqa: E402
from gmf_edge.ops import group_mix_attention as op  # noqa: E402


def plugin_model(channels: int, height: int, width: int, dtype: Any = np.float16) -> onnx.ModelProto:
    """plugin.onnx of a network that is one attention: the node without its body, weights as initializers."""
    inputs = op.random_inputs(np.random.default_rng(0), channels, 1, height * width)
    shapes = op.input_shapes(channels, "B", height * width)
    node = helper.make_node(
        op.OP_TYPE, list(op.INPUT_NAMES), ["mixed"], name="core", domain=op.DOMAIN, **op.node_attributes(height, width, channels)
    )
    graph = helper.make_graph(
        [node, helper.make_node("Identity", ["mixed"], ["output"])],
        "plugin",
        [helper.make_tensor_value_info("qkv", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shapes["qkv"])],
        [
            helper.make_tensor_value_info(
                "output", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["B", height * width, channels]
            )
        ],
        [numpy_helper.from_array(inputs[name].astype(dtype), name) for name in op.INPUT_NAMES[1:]],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(op.DOMAIN, 1)])


@pytest.mark.parametrize("channels", [40, 200])
def test_numpy_and_the_kernel_pack_the_same_weights(channels: int, device: str) -> None:
    inputs = op.random_inputs(np.random.default_rng(0), channels, 1, 9)
    weights = {name: value.astype(np.float16) for name, value in inputs.items()}
    tensors = {name: torch.from_numpy(value).to(device) for name, value in weights.items()}
    vectors, matrices = packed_weights(tensors, plan(1, 3, 3, channels // 5, tilings_of(channels // 5)[0], 1), fill=float("nan"))
    expected = packed_arrays({name: weights[name] for name in op.INPUT_NAMES[1:]})
    np.testing.assert_array_equal(vectors.cpu().numpy(), expected[0])
    np.testing.assert_array_equal(matrices.cpu().numpy(), expected[1])


def test_nodes_carry_their_own_kernels(orin_table: KernelTable) -> None:
    attached = attach_kernels(plugin_model(80, 7, 7), orin_table)
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in attached.graph.node[0].attribute}
    archive = base64.b64decode(given["kernels"])
    assert archive == kernel_archive(orin_table, 16, packed=True)
    assert archive.startswith(MAGIC)
    # what is packed already is not packed on the GPU
    uses = [(kernel, tiling) for kernel in KERNELS[1:] for tiling in TILINGS]
    for index, (kernel, tiling) in enumerate(uses):
        record = RECORD.unpack_from(archive, 16 + index * RECORD.size)
        image = orin_table.image_of(kernel, "sm_87", 16, "fp16", tiling)
        offset, size = record[-3:-1]
        assert record[5:8] == (1 + TILINGS.index(tiling), image.tile_tokens, image.parts)
        assert record[0].rstrip(b"\0").decode() == kernel
        assert archive[offset : offset + size] == orin_table.read_cubin(image)
        assert record[-1].hex() == image.sha256
    # two tensors in place of 19, unless they are to be refitted
    assert list(attached.graph.node[0].input) == ["qkv", "mixed/vectors", "mixed/matrices"]
    assert {tensor.name for tensor in attached.graph.initializer} == {"mixed/vectors", "mixed/matrices"}
    assert given["packed"] == 1
    refittable = attach_kernels(plugin_model(80, 7, 7), orin_table, pack=False)
    assert list(refittable.graph.node[0].input) == list(op.INPUT_NAMES)
    assert len(refittable.graph.initializer) == 19
    # attaching again replaces
    assert attach_kernels(attached, orin_table) == attached
    own = base64.b64decode({a.name: helper.get_attribute_value(a) for a in refittable.graph.node[0].attribute}["kernels"])
    assert own == kernel_archive(orin_table, 16)
    assert len(archive) < len(own)
    with pytest.raises(KernelError, match="no kernel aggregate for sm_87, S=8"):
        attach_kernels(plugin_model(40, 7, 7), orin_table)


def test_a_node_that_stays_in_fp32_gets_no_fp16_kernels(orin_table: KernelTable) -> None:
    island = plugin_model(80, 7, 7, np.float32)
    assert widths_by_type(island) == {"fp32": {16}}
    with pytest.raises(KernelError, match=r"no kernel aggregate for sm_87, S=16, fp32"):
        attach_kernels(island, orin_table)
    # nobody looks into an image here
    wide = replace(orin_table, images=tuple(replace(image, dtype="fp32") for image in orin_table.images))
    attached = attach_kernels(island, wide)
    [kernels] = [attribute.s for attribute in attached.graph.node[0].attribute if attribute.name == "kernels"]
    assert RECORD.unpack_from(base64.b64decode(kernels), 16)[4] == TYPES.index("fp32")
    assert {tensor.data_type for tensor in attached.graph.initializer} == {TensorProto.FLOAT}


def test_what_the_kernels_read_in_fp32_was_not_rounded_to_fp16(orin_table: KernelTable) -> None:
    exact = {name: value.astype(np.float32) for name, value in op.random_inputs(np.random.default_rng(0), 80, 1, 49).items()}
    attached = attach_kernels(plugin_model(80, 7, 7), orin_table, exact=exact)
    vectors, matrices = (numpy_helper.to_array(tensor) for tensor in attached.graph.initializer)
    weights = {name: exact[name] for name in op.INPUT_NAMES[1:]}
    np.testing.assert_array_equal(vectors, packed_arrays(weights)[0])
    assert not np.array_equal(vectors, vectors.astype(np.float16))
    np.testing.assert_array_equal(matrices, packed_arrays(weights)[1].astype(np.float16))
    # weights that changed since are not taken for these
    other = {name: 2 * value for name, value in exact.items()}
    again = attach_kernels(plugin_model(80, 7, 7), orin_table, exact=other)
    assert again == attach_kernels(plugin_model(80, 7, 7), orin_table)


def test_a_node_whose_tensors_disagree_is_refused(orin_table: KernelTable) -> None:
    mixed = plugin_model(80, 7, 7)
    mixed.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(KernelError, match="core: qkv is FLOAT, its weights are FLOAT16"):
        attach_kernels(mixed, orin_table)


def test_a_builder_that_converts_gets_the_kernels_and_matrices_that_it_will_convert_to(orin_table: KernelTable) -> None:
    attached = attach_kernels(plugin_model(80, 7, 7, np.float32), orin_table, builder_type="fp16")
    assert {tensor.name: tensor.data_type for tensor in attached.graph.initializer} == {
        "mixed/vectors": TensorProto.FLOAT,
        "mixed/matrices": TensorProto.FLOAT16,
    }


def test_a_node_without_constant_weights_is_refused(orin_table: KernelTable) -> None:
    unbound = plugin_model(80, 7, 7)
    del unbound.graph.initializer[:]
    with pytest.raises(KernelError, match="not an initializer"):
        attach_kernels(unbound, orin_table)
    empty = plugin_model(80, 7, 7)
    del empty.graph.node[0]
    with pytest.raises(KernelError, match="has no GmfGroupMixAttention"):
        attach_kernels(empty, orin_table)
