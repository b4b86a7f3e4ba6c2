"""FP16: what to_half does, and FP32 for the layers that FP16's range cannot hold.

weights beyond FP16's range            their layer, named in the report
activations beyond FP16's range        their producer and consumers, as gmf_edge.precision.fp16_range found on images
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir
from onnx_ir import DataType

from gmf_edge.precision.half import fp32_statistics, head_islands, node_name, to_half

FP16_MAX = 65504.0


@dataclass(frozen=True)
class Fp16Report:
    """What the lowering did.

    Attributes:
        islands: layers left in FP32, name -> reason.
        fp32_statistics: nodes that are no islands and still compute a mean, a variance or a softmax in FP32, or hold one that does.
        overflowing_weights: weight tensors beyond FP16's range, name -> largest magnitude; their layers are islands.
        flushed_weights: weight tensors of which more than 1 % of the non-zero values become zero, name -> share.
    """

    islands: Mapping[str, str] = field(default_factory=dict)
    fp32_statistics: tuple[str, ...] = ()
    overflowing_weights: Mapping[str, float] = field(default_factory=dict)
    flushed_weights: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return {
            "islands": dict(self.islands),
            "fp32_statistics": list(self.fp32_statistics),
            "overflowing_weights": dict(self.overflowing_weights),
            "flushed_weights": dict(self.flushed_weights),
        }


def to_fp16(
    graph: onnx_ir.Model, islands: Mapping[str, str] | None = None, io_dtype: str = "float32", typing: str = "strong"
) -> Fp16Report:
    """Lower a fused graph to FP16 in place.

    Args:
        graph: see half.to_half.
        islands: names of nodes to leave in FP32, each with the reason.
        io_dtype: "float32" or "float16", dtype of input and outputs.
        typing: of the runtime, "strong" or "weak".

    Raises:
        SpecError: an unknown typing.
    """
    kept = {**head_islands(graph), **(islands or {})}
    beyond = {name: found for name, found in weights_beyond(graph).items() if name not in kept}
    kept.update({name: weight_reason(*found) for name, found in beyond.items()})
    statistics = fp32_statistics(graph, kept)
    flushed = to_half(graph, DataType.FLOAT16, kept, io_dtype, typing)
    return Fp16Report(kept, statistics, dict(beyond.values()), flushed)


def weights_beyond(graph: onnx_ir.Model) -> dict[str, tuple[str, float]]:
    """Nodes with a weight that FP16 cannot hold: name -> (the first such weight, its largest magnitude)."""
    beyond: dict[str, tuple[str, float]] = {}
    for node in graph.graph:
        for value in node.inputs:
            if value is None or value.const_value is None or value.dtype != DataType.FLOAT:
                continue
            largest = float(np.abs(value.const_value.numpy()).max(initial=0.0))
            # so that NaN is beyond as well
            if not largest <= FP16_MAX:
                beyond.setdefault(node_name(node), (str(value.name), largest))
    return beyond


def weight_reason(weight: str, largest: float) -> str:
    """Why the layer of a weight that FP16 cannot hold is an island."""
    return f"weight {weight} reaches {largest:.3g}, beyond FP16's {FP16_MAX:.0f}"
