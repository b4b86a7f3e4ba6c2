"""The two forms of a lowered graph: bodies inlined (portable) or dropped (plugin).

portable: standard ops only, for ONNX Runtime and for TensorRT without plugins. plugin: GmfGroupMixAttention nodes, for which a TensorRT
plugin of that name must be there; TensorRT's parser matches op_type, plugin_version and plugin_namespace.
"""

from __future__ import annotations

import onnx_ir
import onnx_ir.passes.common as onnx_passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter.rules.common import cast_cast_rule, no_op_cast_rule

from gmf_edge.ops.group_mix_attention import OP_TYPE

PLUGIN_VERSION, PLUGIN_NAMESPACE = "1", ""
# large enough for every stacked weight: they are constants, not activations
FOLD_LIMIT = 1 << 28


def inline_bodies(fused: onnx_ir.Model) -> onnx_ir.Model:
    """The portable form: a copy with every function body in place of its call and all shape arithmetic folded."""
    graph = fused.clone()
    onnx_passes.InlinePass()(graph)
    fold_constants(graph, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
    for rule in (cast_cast_rule, no_op_cast_rule):
        rule.apply_to_model(graph)
    for clean in (
        onnx_passes.IdentityEliminationPass(),
        onnx_passes.RemoveUnusedNodesPass(),
        onnx_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        onnx_passes.DeduplicateInitializersPass(),
        onnx_passes.RemoveUnusedFunctionsPass(),
        onnx_passes.RemoveUnusedOpsetsPass(),
    ):
        clean(graph)
    return graph


def drop_bodies(fused: onnx_ir.Model) -> onnx_ir.Model:
    """The plugin form: a copy whose fused nodes carry the plugin's version and namespace, without their bodies."""
    graph = fused.clone()
    graph.functions.clear()
    for node in graph.graph:
        if node.op_type == OP_TYPE:
            node.attributes["plugin_version"] = onnx_ir.AttrString("plugin_version", PLUGIN_VERSION)
            node.attributes["plugin_namespace"] = onnx_ir.AttrString("plugin_namespace", PLUGIN_NAMESPACE)
    return graph
