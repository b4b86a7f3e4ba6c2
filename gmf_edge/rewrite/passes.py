"""1-plain.onnx -> 2-fused.onnx: the passes in their order, each proved equal on numbers whenever it runs.

A pass that changes the graph is followed by one inference of the changed graph; its logits must equal the plain graph's. The aim is
a graph whose only nodes are dense convolutions, Linears, LayerNormalizations, CPE and one GmfGroupMixAttention a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir
import onnx_ir.passes.common as onnx_passes
from numpy.typing import NDArray
from onnxscript.rewriter.pattern import RewriteRule
from onnxscript.rewriter.rules.common import reshape_reshape_rule, transpose_transpose_rule

from gmf_edge.errors import RewriteError
from gmf_edge.ops.group_mix_attention import DOMAIN, DOMAIN_VERSION, OP_TYPE, function_body
from gmf_edge.rewrite import batchnorm_into_conv, cpe_identity, group_mix_attention, head
from gmf_edge.scratch import scratch_folder

# largest difference of a logit over the largest logit; the folds are exact, so this is FP32's rounding over some 20 blocks
REWRITE_TOLERANCE = 5e-5
PROOF_BATCH = 2


@dataclass(frozen=True)
class Pass:
    """A rule with the number of times that it must fire, given the number of attention blocks (None: whatever it finds)."""

    name: str
    rule: RewriteRule
    expected: Callable[[int], int] | None = None


PASSES = (
    Pass("cancel transposes", transpose_transpose_rule),
    Pass("merge reshapes", reshape_reshape_rule),
    # the stem's two, four patch embeddings, and three segments of q, k and v in every block
    Pass("fold BatchNorm into convolutions", batchnorm_into_conv.RULE, lambda blocks: 6 + 9 * blocks),
    Pass("fold the identity beside CPE", cpe_identity.RULE, lambda blocks: blocks),
    Pass("fold BatchNorm into the head", head.RULE, lambda blocks: 1),
    Pass("fuse group-mix attention", group_mix_attention.RULE, lambda blocks: blocks),
)


@dataclass(frozen=True)
class PassRecord:
    """What one pass did: how often it fired, and the largest logit difference over the largest logit after it (0 where it did not)."""

    name: str
    fired: int
    relative_error: float


def rewrite_onnx(plain: Path, out: Path) -> list[PassRecord]:
    """Rewrite a plain graph into the fused one.

    Args:
        plain: the graph that gmf_edge.model.export wrote.
        out: the .onnx file to write: GMA's core as GmfGroupMixAttention nodes, with the function body in the file.

    Returns:
        What each pass did, in order.

    Raises:
        RewriteError: a pass changed the logits, or found another number of places than the model has.
    """
    graph = onnx_ir.load(plain)
    blocks = sum(node.op_type == "Softmax" for node in graph.graph)
    images = _proof_images(graph)
    expected = _logits(graph, images)
    records = []
    for step in PASSES:
        fired = int(step.rule.apply_to_model(graph))
        if step.expected is not None and fired != step.expected(blocks):
            raise RewriteError(
                f"{plain.name}: '{step.name}' fired {fired} times, a model of {blocks} blocks has {step.expected(blocks)} places",
                "export again with the torch and onnxscript versions that constraints.txt pins",
            )
        for clean in (
            onnx_passes.IdentityEliminationPass(),
            # without its size limit: q, k and v must share every folded weight again
            onnx_passes.DeduplicateHashedInitializersPass(size_limit=1 << 40),
            onnx_passes.RemoveUnusedNodesPass(),
        ):
            clean(graph)
        _add_body(graph)
        records.append(PassRecord(step.name, fired, _prove(graph, images, expected, step.name) if fired else 0.0))
    _type_values(graph)
    onnx_ir.save(graph, out)
    return records


def _type_values(graph: onnx_ir.Model) -> None:
    """Types and shapes of the values that the rules made: the lowering to another precision reads them."""
    onnx_passes.ShapeInferencePass()(graph)
    untyped = [value.name for node in graph.graph for value in node.outputs if value.dtype is None]
    if untyped:
        raise RewriteError(f"no type could be inferred for {untyped[0]} ({len(untyped)} such values)", "report this with the graph")


def _add_body(graph: onnx_ir.Model) -> None:
    """Put the fused op's body into the file, once there is a node that calls it."""
    uses = any(node.op_type == OP_TYPE for node in graph.graph)
    if not uses or (DOMAIN, OP_TYPE, "") in graph.functions:
        return
    function = onnx_ir.from_proto(function_body(graph.opset_imports[""]))
    graph.functions[function.identifier()] = function
    graph.opset_imports[DOMAIN] = DOMAIN_VERSION


def _proof_images(graph: onnx_ir.Model) -> NDArray[np.float32]:
    shape = graph.graph.inputs[0].shape
    assert shape is not None
    sides = [int(side) for side in shape[1:]]
    return np.random.default_rng(0).standard_normal((PROOF_BATCH, *sides)).astype(np.float32)


def _logits(graph: onnx_ir.Model, images: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # unoptimised: the graph itself is on trial, not ONNX Runtime's own rewriting of it
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with scratch_folder() as folder:
        path = folder / "proof.onnx"
        onnx_ir.save(graph, path)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    result: NDArray[np.float32] = logits
    return result


def _prove(graph: onnx_ir.Model, images: NDArray[np.float32], expected: NDArray[np.float32], name: str) -> float:
    error = float(np.abs(_logits(graph, images) - expected).max() / np.abs(expected).max())
    if not error <= REWRITE_TOLERANCE:
        raise RewriteError(
            f"the pass '{name}' changed the logits by {error:.1e} of the largest (limit {REWRITE_TOLERANCE:.0e})",
            "report this with the checkpoint's variant and the versions that 'gmf-edge doctor' prints",
        )
    return error
