"""The two forms of a lowered graph: bodies inlined (portable) or dropped (plugin).

portable: standard ops only, for ONNX Runtime and for TensorRT without plugins. plugin: GmfGroupMixAttention nodes, for which a TensorRT
plugin of that name must be there; TensorRT's parser matches op_type, plugin_version and plugin_namespace.
"""

from __future__ import annotations

import onnx_ir
import onnx_ir.passes.common as onnx_passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter.rules.common import cast_cast_rule, no_op_cast_rule

from gmf_edge.errors import RewriteError
from gmf_edge.ops.group_mix_attention import OP_TYPE

PLUGIN_VERSION, PLUGIN_NAMESPACE = "1", ""
# large enough for every stacked weight: they are constants, not activations
FOLD_LIMIT = 1 << 28


def inline_bodies(fused: onnx_ir.Model) -> onnx_ir.Model:
    """The portable form: a copy with every function body in place of its call and all shape arithmetic folded."""
    graph = fused.clone()
    onnx_passes.InlinePass()(graph)
    _name_inlined(graph)
    onnx_passes.ShapeInferencePass()(graph)
    _resolve_cast_like(graph)
    # before the folding, which would give a weight under such a cast another name
    no_op_cast_rule.apply_to_model(graph)
    fold_constants(graph, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT, should_fold=_foldable)
    for rule in (cast_cast_rule, no_op_cast_rule):
        rule.apply_to_model(graph)
    for clean in (
        onnx_passes.IdentityEliminationPass(),
        onnx_passes.RemoveUnusedNodesPass(),
        onnx_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        onnx_passes.DeduplicateHashedInitializersPass(size_limit=1 << 40),
        onnx_passes.RemoveUnusedFunctionsPass(),
        onnx_passes.RemoveUnusedOpsetsPass(),
    ):
        clean(graph)
    return graph


def _foldable(node: onnx_ir.Node) -> bool | None:
    """False for a cast that says how a product is summed (precision.fp32_sums): folded, its FP16 weight would be an FP32 one."""
    value = node.inputs[0] if node.op_type == "Cast" else None
    if value is None or value.dtype != onnx_ir.DataType.FLOAT16 or node.outputs[0].dtype != onnx_ir.DataType.FLOAT:
        return None
    return not any(use.node.op_type == "MatMul" for use in node.outputs[0].uses())


def _name_inlined(graph: onnx_ir.Model) -> None:
    """Name a body's nodes and values after the attention that called it: the call's nodes stand where the call stood."""
    module = ""
    for node in graph.graph:
        name = node.name or ""
        if "/" in name:
            module = name.split(".qkv/")[0] if ".qkv/" in name else ""
        elif module:
            node.name = f"{module}/{node.outputs[0].name}"
            for value in node.outputs:
                value.name = f"{module}/{value.name}"


def _resolve_cast_like(graph: onnx_ir.Model) -> None:
    """CastLike of known types is a Cast: older TensorRT importers know no CastLike, and a Cast to the same type folds away."""
    for node in list(graph.graph):
        if node.op_type != "CastLike":
            continue
        value, like = node.inputs
        assert value is not None
        assert like is not None
        if like.dtype is None:
            raise RewriteError(f"{node.name}: the type of {like.name} is not known", "report this with the graph")
        cast = onnx_ir.node("Cast", [value], attributes={"to": like.dtype}, name=node.name)
        cast.outputs[0].dtype = like.dtype
        cast.outputs[0].shape = value.shape
        onnx_ir.convenience.replace_nodes_and_values(graph.graph, node, [node], [cast], node.outputs, cast.outputs)


def drop_bodies(fused: onnx_ir.Model) -> onnx_ir.Model:
    """The plugin form: a copy whose fused nodes carry the plugin's version and namespace, without their bodies."""
    graph = fused.clone()
    graph.functions.clear()
    for node in graph.graph:
        if node.op_type == OP_TYPE:
            node.attributes["plugin_version"] = onnx_ir.AttrString("plugin_version", PLUGIN_VERSION)
            node.attributes["plugin_namespace"] = onnx_ir.AttrString("plugin_namespace", PLUGIN_NAMESPACE)
    return graph
