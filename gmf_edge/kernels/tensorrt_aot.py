"""The GMA kernels as TensorRT Python ahead-of-time plugins (TensorRT 10.13 and newer): their code travels inside the engine.

    model = split_for_aot(plugin_onnx, multiprocessors, batch)      each GmfGroupMixAttention -> Aggregate, Attend
    register_plugins(table, arch)                                   before the parser reads that model

Such a plugin is one kernel and one launch, without workspace: aggregate and attend are two nodes, and what passes between
them (v', partial sums, x_agg0) is three outputs of the first. Weights are constants, so they are packed here, in NumPy.
Sources: docstrings of tensorrt.plugin.register and aot_impl; NVIDIA/TensorRT#4849 (shape changes leak modules: build with
static shapes). None of this has run on a GPU yet; plugins/README.md says what was checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gmf_edge.errors import EnvironmentProblem, KernelError
from gmf_edge.kernels.archive import drop_unused_initializers, pack_node
from gmf_edge.kernels.compile import STATIC_SHARED_BYTES, KernelTable
from gmf_edge.kernels.layout import plan, tile_of
from gmf_edge.ops.group_mix_attention import OP_TYPE

if TYPE_CHECKING:
    import onnx

NAMESPACE = "gmf_edge"
AGGREGATE, ATTEND = "GmfGroupMixAggregate", "GmfGroupMixAttend"
INTEGERS = ("height", "width", "segment_dim", "splits", "tiles_per_split")


def split_for_aot(model: onnx.ModelProto, multiprocessors: int, batch: int) -> onnx.ModelProto:
    """A copy of plugin.onnx in which each fused node is an Aggregate and an Attend node with packed weights.

    Args:
        model: nodes OP_TYPE without function bodies, weights as initializers.
        multiprocessors: of the device; decides, with the batch, how far the tokens are split.
        batch: the batch size that the engine is tuned for; others are right too.

    Raises:
        KernelError: there is no fused node, or its weights are not initializers.
    """
    import onnx
    from onnx import helper

    split = onnx.ModelProto()
    split.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for node in split.graph.node:
        if node.op_type != OP_TYPE:
            nodes.append(node)
            continue
        prefix = node.output[0]
        packed = pack_node(split, node)
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        width = given["segment_dim"]
        geometry = plan(batch, given["height"] * given["width"], width, tile_of(width).tokens, multiprocessors)
        given |= {"splits": geometry.splits, "tiles_per_split": geometry.tiles_per_split}
        attributes = {name: given[name] for name in INTEGERS} | {"plugin_version": "1", "plugin_namespace": NAMESPACE}
        passed = [f"{prefix}/{name}" for name in ("scratch", "partials", "local")]
        inputs = [node.input[0], *packed]
        nodes.append(helper.make_node(AGGREGATE, inputs, passed, name=f"{node.name}/aggregate", domain=node.domain, **attributes))
        nodes.append(
            helper.make_node(
                ATTEND, [*inputs, *passed], list(node.output), name=f"{node.name}/attend", domain=node.domain, **attributes
            )
        )
    if len(nodes) == len(split.graph.node):
        raise KernelError(f"the graph has no {OP_TYPE} node", "give the fused graph without its function bodies (plugin.onnx)")
    del split.graph.node[:]
    split.graph.node.extend(nodes)
    drop_unused_initializers(split)
    return split


def register_plugins(table: KernelTable, arch: str, dtype: str = "fp16") -> None:
    """Registers Aggregate and Attend with TensorRT in this process, with the kernels of `table`.

    Args:
        table: of the form "node".
        arch: of the device, such as "sm_90".
        dtype: of qkv.

    Raises:
        KernelError: the table is of the other form, or a kernel needs more shared memory than such a plugin may have.
        EnvironmentProblem: this TensorRT has no ahead-of-time plugins.
    """
    images = [image for image in table.images if image.arch == arch and image.dtype == dtype]
    if not images or any(image.form != "node" for image in table.images):
        raise KernelError(f"{table.folder} has no kernels for {arch}, {dtype} in the form 'node'", "compile them with form='node'")
    for image in images:
        if image.shared_bytes > STATIC_SHARED_BYTES:
            raise KernelError(
                f"{image.kernel} for S={image.segment_dim} needs {image.shared_bytes} bytes of shared memory, more than "
                f"the {STATIC_SHARED_BYTES} of a Python plugin",
                "use the C++ plugin library for this width",
            )
    try:
        import tensorrt as trt
        import tensorrt.plugin as trtp

        _ = trtp.aot_impl
    except (ImportError, AttributeError) as error:
        raise EnvironmentProblem(
            "this TensorRT has no ahead-of-time Python plugins", "use TensorRT 10.13 or newer, or the C++ plugin library"
        ) from error

    def implementation(kernel: str, width: int) -> tuple[Any, str, Any]:
        image = table.image_of(kernel, arch, width, dtype)
        launch = trtp.KernelLaunchParams()
        launch.block_x = 32 * image.warps
        launch.shared_mem = image.shared_bytes
        return image, (table.folder / image.ptx).read_text(), launch

    def integers(*values: int) -> Any:
        expressions = trtp.SymIntExprs(len(values))
        for index, value in enumerate(values):
            expressions[index] = trtp.SymInt32(value)
        return expressions

    # TensorRT reads the annotations of these functions themselves, so they are set as objects, not as text
    def describe_aggregate(qkv, vectors, matrices, height, width, segment_dim, splits, tiles_per_split):  # type: ignore[no-untyped-def]
        scratch, partials, local = qkv.like(), qkv.like(), qkv.like()
        scratch.shape_expr[2] = 4 * segment_dim
        local.shape_expr[2] = segment_dim
        partials.dtype = trt.float32
        partials.shape_expr[1] = splits
        partials.shape_expr[2] = 4 * segment_dim * (2 + segment_dim // 2)
        return scratch, partials, local

    def aggregate(qkv, vectors, matrices, height, width, segment_dim, splits, tiles_per_split, outputs, tactic):  # type: ignore[no-untyped-def]
        image, ptx, launch = implementation("aggregate", segment_dim)
        launch.grid_x, launch.grid_y, launch.grid_z = splits, 5, qkv.shape_expr[0]
        return image.entry, ptx, launch, integers(height, width, tiles_per_split)

    def describe_attend(qkv, vectors, matrices, scratch, partials, local, height, width, segment_dim, splits, tiles_per_split):  # type: ignore[no-untyped-def]
        output = qkv.like()
        output.shape_expr[2] = 5 * segment_dim
        return output

    def attend(  # type: ignore[no-untyped-def]
        qkv, vectors, matrices, scratch, partials, local, height, width, segment_dim, splits, tiles_per_split, outputs, tactic
    ):
        image, ptx, launch = implementation("attend", segment_dim)
        tiles = -(-height * width // image.tile_tokens)
        # the fifth job copies x_agg0 into the output
        launch.grid_x, launch.grid_y, launch.grid_z = tiles, 5, qkv.shape_expr[0]
        return image.entry, ptx, launch, integers(height, width, splits)

    result = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    tensors = ("qkv", "vectors", "matrices")
    passed = ("scratch", "partials", "local")
    three = tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc]
    for name, names, describe, implement, returned in (
        (AGGREGATE, tensors, describe_aggregate, aggregate, three),
        (ATTEND, tensors + passed, describe_attend, attend, trtp.TensorDesc),
    ):
        typed = dict.fromkeys(names, trtp.TensorDesc) | dict.fromkeys(INTEGERS, int)
        describe.__annotations__ = typed | {"return": returned}
        implement.__annotations__ = typed | {"outputs": tuple[trtp.TensorDesc], "tactic": int, "return": result}
        trtp.register(f"{NAMESPACE}::{name}")(describe)
        trtp.aot_impl(f"{NAMESPACE}::{name}")(implement)
