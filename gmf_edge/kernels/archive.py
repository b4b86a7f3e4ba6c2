"""The kernels of one width as one value: what a node of plugin.onnx carries in its attribute `kernels`, and an engine after it.

Layout, little endian: MAGIC, count, zero; `count` records (RECORD); the cubins, each at its record's offset from the start.
The attribute is this in base64, because a string attribute passes through parsers that stop at a NUL.
plugins/gma/kernel_archive.cpp reads it.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gmf_edge.errors import KernelError
from gmf_edge.kernels.compile import KERNELS, TYPES, KernelTable
from gmf_edge.kernels.layout import TILINGS
from gmf_edge.kernels.pack import packed_arrays
from gmf_edge.ops.group_mix_attention import FLOAT_INPUTS, INPUT_NAMES, OP_TYPE

if TYPE_CHECKING:
    import onnx

MAGIC = b"GMFKRN02"
HEADER = struct.Struct("<8sII")
# kernel, entry, arch, S, type, tiling (0: none, else 1 + its place in TILINGS), T, parts, warps, shared bytes, arguments, zero, scale,
# epsilon, offset, size, SHA-256
RECORD = struct.Struct("<16s64s10I2f2Q32s")
ATTRIBUTE = "kernels"
# what TensorRT's parser looks a plugin up by
PLUGIN_VERSION, PLUGIN_NAMESPACE = "1", ""


def kernel_archive(
    table: KernelTable, segment_dim: int, dtype: str = "fp16", archs: tuple[str, ...] | None = None, packed: bool = False
) -> bytes:
    """The images for one width.

    Args:
        table: what compile_kernels made.
        segment_dim: S.
        dtype: of compile.TYPES.
        archs: which architectures; None for all that the table holds.
        packed: for a node whose weights are packed already, which launches no kernel for that.

    Raises:
        KernelError: an image is missing or is not the one that was compiled.
    """
    archs = archs or tuple(dict.fromkeys(image.arch for image in table.images))
    uses = [] if packed else [(KERNELS[0], "")]
    uses += [(kernel, tiling) for kernel in KERNELS[1:] for tiling in TILINGS]
    images = [table.image_of(kernel, arch, segment_dim, dtype, tiling) for arch in archs for kernel, tiling in uses]
    cubins = [table.read_cubin(image) for image in images]
    records, offset = [], HEADER.size + RECORD.size * len(images)
    for image, cubin in zip(images, cubins, strict=True):
        if len(image.entry) >= 64:
            raise KernelError(f"the entry {image.entry} is too long for an archive", "shorten the kernel's name")
        records.append(
            RECORD.pack(
                image.kernel.encode(),
                image.entry.encode(),
                int(image.arch.removeprefix("sm_")),
                image.segment_dim,
                TYPES.index(image.dtype),
                1 + TILINGS.index(image.tiling) if image.tiling else 0,
                image.tile_tokens,
                image.parts,
                image.warps,
                image.shared_bytes,
                len(image.arguments),
                0,
                image.scale,
                image.epsilon,
                offset,
                len(cubin),
                bytes.fromhex(image.sha256),
            )
        )
        offset += len(cubin)
    return b"".join([HEADER.pack(MAGIC, len(images), 0), *records, *cubins])


def attach_kernels(
    model: onnx.ModelProto,
    table: KernelTable,
    archs: tuple[str, ...] | None = None,
    pack: bool = True,
    builder_type: str | None = None,
    exact: Mapping[str, NDArray[np.float32]] | None = None,
) -> onnx.ModelProto:
    """A copy of plugin.onnx whose fused nodes carry their kernels and the names that TensorRT's parser wants.

    Args:
        model: with nodes OP_TYPE and without their function bodies.
        table, archs: see kernel_archive. Each node gets the kernels of its own type: those that stay in FP32 get FP32 ones.
        pack: replace the 19 weights of a node by the two tensors that the kernels read, which saves a launch; False keeps the
            weights as they are, for engines whose weights are refitted.
        builder_type: the kernels' type where the builder converts between types (TensorRT 8.6, INT8: its graph is FP32 and the builder
            makes the rest FP16); None where tensors have the type that the graph says.
        exact: FP32 weights of the graph before it was lowered, by name: `vectors`, which is FP32, then holds them unrounded.

    Raises:
        KernelError: there is no such node, no kernel for its width and type, or weights that are not initializers.
    """
    import onnx
    from onnx import helper

    attached = onnx.ModelProto()
    attached.CopyFrom(model)
    encoded: dict[tuple[int, str, bool], str] = {}
    nodes = [node for node in attached.graph.node if node.op_type == OP_TYPE]
    if not nodes:
        raise KernelError(f"the graph has no {OP_TYPE} node", "give the fused graph without its function bodies (plugin.onnx)")
    for node in nodes:
        given = {attribute.name: attribute for attribute in node.attribute}
        width = given["segment_dim"].i
        dtype = builder_type or node_type(attached, node)
        if pack and len(node.input) == len(INPUT_NAMES):
            names = pack_node(attached, node, dtype, exact or {})
            del node.input[1:]
            node.input.extend(names)
        elif len(node.input) == len(INPUT_NAMES):
            _in_one_type(attached, node)
        packed = len(node.input) != len(INPUT_NAMES)
        key = (width, dtype, packed)
        if key not in encoded:
            encoded[key] = base64.b64encode(kernel_archive(table, width, dtype, archs, packed)).decode()
        values: dict[str, str | int] = {
            "plugin_version": PLUGIN_VERSION,
            "plugin_namespace": PLUGIN_NAMESPACE,
            "packed": int(packed),
            ATTRIBUTE: encoded[key],
        }
        for name, value in values.items():
            if name in given:
                node.attribute.remove(given[name])
            node.attribute.append(helper.make_attribute(name, value))
    drop_unused_initializers(attached)
    return attached


def node_type(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
    """The type, of compile.TYPES, in which a fused node computes: that of its matrices, which is qkv's as well.

    Raises:
        KernelError: its weights are not initializers, or of another type than kernels have or than qkv.
    """
    from onnx import TensorProto

    # pointwise_1, or the packed matrices
    name = node.input[INPUT_NAMES.index("pointwise_1") if len(node.input) == len(INPUT_NAMES) else 2]
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    known = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16", TensorProto.FLOAT: "fp32"}
    if types.get(name) not in known:
        raise KernelError(
            f"{node.name}: the weight {name} is not an initializer of a type that kernels have", "give gmf-edge's plugin.onnx"
        )
    declared = {info.name: info.type.tensor_type.elem_type for info in (*model.graph.input, *model.graph.value_info)}
    qkv = declared.get(node.input[0], types[name])
    if qkv != types[name]:
        # the kernels would read memory of another type
        raise KernelError(
            f"{node.name}: qkv is {TensorProto.DataType.Name(qkv)}, its weights are {TensorProto.DataType.Name(types[name])}",
            "give gmf-edge's plugin.onnx, whose nodes are of one type",
        )
    return known[types[name]]


def widths_by_type(model: onnx.ModelProto) -> dict[str, set[int]]:
    """Which S the fused nodes of a graph have, by the type in which they compute.

    Raises:
        KernelError: see node_type.
    """
    widths: dict[str, set[int]] = {}
    for node in model.graph.node:
        if node.op_type == OP_TYPE:
            [width] = [attribute.i for attribute in node.attribute if attribute.name == "segment_dim"]
            widths.setdefault(node_type(model, node), set()).add(width)
    return widths


def pack_node(
    model: onnx.ModelProto, node: onnx.NodeProto, dtype: str, exact: Mapping[str, NDArray[np.float32]]
) -> tuple[str, str]:
    """Adds `vectors` (FP32) and `matrices` (of the kernels' type) of a fused node to the graph's initializers; returns their names.

    Raises:
        KernelError: a weight is not an initializer.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    missing = [name for name in node.input[1:] if name not in constants]
    if missing:
        raise KernelError(f"{node.name}: the weight {missing[0]} is not an initializer", "give the plugin.onnx that gmf-edge wrote")
    arrays = {}
    for name, given in zip(INPUT_NAMES[1:], node.input[1:], strict=True):
        rounded = numpy_helper.to_array(constants[given])
        # precision.fp16 calls the FP16 copy of a weight so
        before = exact.get(given.removesuffix("/float16"))
        same = before is not None and np.array_equal(before.astype(rounded.dtype), rounded)
        arrays[name] = before if before is not None and same else rounded
    names = (f"{node.output[0]}/vectors", f"{node.output[0]}/matrices")
    vectors, matrices = packed_arrays(arrays)
    if dtype == "fp16":
        matrices = matrices.astype(np.float16)
    for name, array in zip(names, (vectors, matrices), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return names


def _in_one_type(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Round the weights that the graph keeps in FP32 to the others' type, which the kernel that packs them on the GPU reads."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    index_of = {name: index for index, name in enumerate(INPUT_NAMES)}
    others = constants.get(node.input[index_of["pointwise_1"]])
    for name in FLOAT_INPUTS:
        tensor = constants.get(node.input[index_of[name]])
        if tensor is None or others is None or tensor.data_type == others.data_type:
            continue
        array = numpy_helper.to_array(tensor).astype(numpy_helper.to_array(others).dtype)
        rounded = numpy_helper.from_array(array, f"{node.output[0]}/{name}")
        model.graph.initializer.append(rounded)
        node.input[index_of[name]] = rounded.name


def drop_unused_initializers(model: onnx.ModelProto) -> None:
    """Takes out of the graph the constants that no node reads and that are no output."""
    used = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
