"""1-plain.onnx -> 2-fused.onnx: the passes in their order, each proved equal on numbers whenever it runs.

A pass that changes the graph is followed by one inference of the changed graph; its outputs must equal the plain graph's. The aim is
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

from gmf_edge.engines.protocol import Progress, silent
from gmf_edge.errors import RewriteError
from gmf_edge.ops.graph_parts import set_body
from gmf_edge.ops.group_mix_attention import DOMAIN, DOMAIN_VERSION, OP_TYPE, function_body
from gmf_edge.rewrite import batchnorm_into_conv, cpe_identity, group_mix_attention, head, output_norm
from gmf_edge.scratch import scratch_folder
from gmf_edge.spec import NUM_STAGES

# largest difference of an output over its largest value; the folds are exact, so this is FP32's rounding over some 20 blocks
REWRITE_TOLERANCE = 5e-5
PROOF_BATCH = 2
# pixels of an image beyond which one is enough: an inference then takes seconds, after every pass
LARGE_PIXELS = 384 * 384


@dataclass(frozen=True)
class Places:
    """What a plain graph has of the things that the rules are about.

    Attributes:
        blocks: attention blocks.
        heads: classifiers, 1 or 0.
        output_norms: of a backbone's maps that are BatchNorms, 4 or 0.
    """

    blocks: int
    heads: int
    output_norms: int

    @classmethod
    def of(cls, graph: onnx_ir.Model) -> Places:
        """Counted before anything is rewritten."""
        kinds = [node.op_type for node in graph.graph]
        named = [value.producer() for value in graph.graph.outputs]
        norms = sum(node is not None and node.op_type == "BatchNormalization" for node in named)
        assert norms in (0, NUM_STAGES)
        return cls(kinds.count("Softmax"), kinds.count("Gemm"), norms)


@dataclass(frozen=True)
class Pass:
    """A rule with the number of times that it must fire, given what the graph has (None: whatever it finds)."""

    name: str
    rule: RewriteRule
    expected: Callable[[Places], int] | None = None


PASSES = (
    Pass("cancel transposes", transpose_transpose_rule),
    Pass("merge reshapes", reshape_reshape_rule),
    # the stem's two, four patch embeddings, and three segments of q, k and v in every block
    Pass("fold BatchNorm into convolutions", batchnorm_into_conv.RULE, lambda places: 6 + 9 * places.blocks),
    Pass("fold the identity beside CPE", cpe_identity.RULE, lambda places: places.blocks),
    Pass("fold BatchNorm into the head", head.RULE, lambda places: places.heads),
    Pass("make the maps' BatchNorms products and sums", output_norm.RULE, lambda places: places.output_norms),
    Pass("fuse group-mix attention", group_mix_attention.RULE, lambda places: places.blocks),
)


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Attributes:
        name: of the pass.
        fired: how often.
        relative_error: largest difference of an output over its largest value after it; 0 where it did not fire.
        nodes_before, nodes_after: of the graph, constants not counted.
    """

    name: str
    fired: int
    relative_error: float
    nodes_before: int
    nodes_after: int


def rewrite_onnx(plain: Path, out: Path, progress: Progress = silent) -> list[PassRecord]:
    """Rewrite a plain graph into the fused one.

    Args:
        plain: the graph that gmf_edge.model.export wrote.
        out: the .onnx file to write: GMA's core as GmfGroupMixAttention nodes, with the function body in the file.
        progress: told which pass was done.

    Returns:
        What each pass did, in order.

    Raises:
        RewriteError: a pass changed an output, or found another number of places than the model has.
    """
    graph = onnx_ir.load(plain)
    places = Places.of(graph)
    images = _proof_images(graph)
    expected = _outputs(graph, images)
    records = []
    for step in PASSES:
        nodes_before = len(graph.graph)
        fired = int(step.rule.apply_to_model(graph))
        if step.expected is not None and fired != step.expected(places):
            raise RewriteError(
                f"{plain.name}: '{step.name}' fired {fired} times, a model of {places.blocks} blocks has {step.expected(places)} places",
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
        error = _prove(graph, images, expected, step.name) if fired else 0.0
        records.append(PassRecord(step.name, fired, error, nodes_before, len(graph.graph)))
        progress(len(records) / len(PASSES), f"rewriting: {step.name}")
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
    set_body(graph, function_body(graph.opset_imports[""]))
    graph.opset_imports[DOMAIN] = DOMAIN_VERSION


def _proof_images(graph: onnx_ir.Model) -> NDArray[np.float32]:
    shape = graph.graph.inputs[0].shape
    assert shape is not None
    sides = [int(side) for side in shape[1:]]
    batch = PROOF_BATCH if sides[1] * sides[2] <= LARGE_PIXELS else 1
    return np.random.default_rng(0).standard_normal((batch, *sides)).astype(np.float32)


def _outputs(graph: onnx_ir.Model, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    # unoptimised: the graph itself is on trial, not ONNX Runtime's own rewriting of it
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with scratch_folder() as folder:
        path = folder / "proof.onnx"
        onnx_ir.save(graph, path)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: images}))


def _prove(graph: onnx_ir.Model, images: NDArray[np.float32], expected: list[NDArray[np.float32]], name: str) -> float:
    pairs = zip(_outputs(graph, images), expected, strict=True)
    errors = {
        str(value.name): float(np.abs(found - wanted).max() / np.abs(wanted).max())
        for value, (found, wanted) in zip(graph.graph.outputs, pairs, strict=True)
    }
    # so that NaN is the largest
    worst = max(errors, key=lambda output: errors[output] if errors[output] == errors[output] else np.inf)
    error = errors[worst]
    if not error <= REWRITE_TOLERANCE:
        raise RewriteError(
            f"the pass '{name}' changed {worst} by {error:.1e} of the largest (limit {REWRITE_TOLERANCE:.0e})",
            "report this with the checkpoint's variant and the versions that 'gmf-edge doctor' prints",
        )
    return error
