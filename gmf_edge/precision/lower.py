"""2-fused.onnx -> 3-<precision>.onnx: the one place that turns a requested precision into graphs.

One precision may need more than one graph, because runtimes differ in who decides the types (gmf_edge.spec.Target.typing):

          strong (opset 20: TensorRT 10, 11)     weak (opset 17: TensorRT 8.6)           cpu (ONNX Runtime)
FP32      FP32                                   the same                                the same
FP16      FP16 with FP32 islands, casts round    the same without those casts,           as strong
          LayerNormalization                     builder flags on top
BF16      the same in BF16, opset 22             none: TensorRT 8.6 has no BF16          as strong; bf16.with_fp32_kernels
INT8      Q/DQ with FP16 scales, else as FP16    Q/DQ with FP32 scales, FP32 elsewhere:  as weak: FP16 has no kernels
                                                 builder flags make the rest FP16,       on a CPU; Linears as integer Gemm
                                                 casts there would part Q/DQ from GEMM

What the CPU gets of FP32 and INT8 is then laid out for its libraries, by gmf_edge.rewrite.channel_last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray

from gmf_edge.precision.bf16 import to_bf16
from gmf_edge.precision.fp16 import to_fp16, weight_reason, weights_beyond
from gmf_edge.precision.fp16_range import activation_ranges, advice_of, islands_for
from gmf_edge.precision.fp32_sums import sum_in_fp32
from gmf_edge.precision.half import head_islands
from gmf_edge.precision.int8 import insert_qdq
from gmf_edge.precision.int8_layers import chosen_layers, independent_copy
from gmf_edge.precision.integer_gemm import linears_as_gemm
from gmf_edge.precision.ranges import Ranges
from gmf_edge.precision.recipe import Recipe
from gmf_edge.precision.sensitivity import layer_snr
from gmf_edge.spec import Precision


@dataclass(frozen=True)
class Quantization:
    """What INT8 needs beside the graph: ranges, recipe, the layers to leave in higher precision and how they were found."""

    ranges: Ranges
    recipe: Recipe
    exceptions: frozenset[str] = frozenset()
    search: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the key of a stage."""
        return {
            "ranges": self.ranges.to_json(),
            "recipe": self.recipe.to_json(),
            "exceptions": sorted(self.exceptions),
            "search": self.search,
        }


@dataclass(frozen=True)
class Lowered:
    """Fused graphs for the three kinds of runtime, and what was found and done, for the manifest.

    facts has "ranges" (fp16_range.RangeReport), "advice" (sentences on which half precision suits these ranges), "islands",
    "fp32_statistics", and for FP16 and INT8 "overflowing_weights", "flushed_weights" (fp16.Fp16Report), "fp32_sums" (names of the
    MatMuls that the strong graph sums in FP32) and, for INT8, "int8": {"layers", "exceptions", "recipe", "calibration", "notes",
    "layer_snr", "search"}; all empty or absent for FP32. For BF16 `weak` is `strong`: no weakly typed runtime has BF16.
    """

    strong: onnx_ir.Model
    weak: onnx_ir.Model
    cpu: onnx_ir.Model
    facts: Mapping[str, Any]


def lower_precision(
    fused: onnx_ir.Model,
    precision: Precision,
    io_dtype: str,
    inline: Callable[[onnx_ir.Model], onnx_ir.Model],
    batches: Iterable[NDArray[np.float32]],
    quantization: Quantization | None = None,
    fp32_sums: Collection[str] = (),
) -> Lowered:
    """Lower a fused FP32 graph.

    Args:
        fused: with GmfGroupMixAttention nodes and their body; it may be changed.
        precision: of the heavy layers.
        io_dtype: "float32" or "float16", of input and output.
        inline: fused graph -> portable graph.
        batches: preprocessed images for the range check, float32 [B, 3, H, W].
        quantization: for INT8.
        fp32_sums: kinds of Linears (int8_layers.LINEAR_KINDS) whose FP16 products the strong graph sums in FP32; none by default,
            see fp32_sums.py for what that costs and gains.

    Raises:
        SpecError: an unknown kind of Linears.
        PrecisionError: activations or weights that are not finite, or a scale that FP16 cannot hold.
        CalibrationError: ranges of another graph.
    """
    if precision is Precision.FP32:
        if io_dtype == "float16":
            to_fp16(fused, {str(node.name): "FP32 was asked for" for node in fused.graph}, io_dtype)
        return Lowered(fused, fused, fused, {})
    seen = list(batches)
    ranges = activation_ranges(inline(fused), seen)
    if precision is Precision.BF16:
        advice = advice_of(ranges, weights_beyond(fused), precision)
        kept = to_bf16(fused, io_dtype=io_dtype)
        return Lowered(fused, fused, fused, {"ranges": ranges.to_json(), "advice": advice, **kept.to_json()})
    islands = islands_for(fused, ranges.beyond)
    advice = advice_of(ranges, weights_beyond(fused), precision)
    if precision is Precision.FP16:
        weak, strong = fused, independent_copy(fused)
        to_fp16(weak, islands, io_dtype, typing="weak")
        report = to_fp16(strong, islands, io_dtype)
        summed = sum_in_fp32(strong, fp32_sums)
        facts = {"ranges": ranges.to_json(), "advice": advice, **report.to_json(), "fp32_sums": summed}
        return Lowered(strong, weak, strong, facts)

    assert quantization is not None, "INT8 comes with its quantization"
    found, recipe = quantization.ranges, quantization.recipe
    # what FP16 cannot hold is no layer for INT8 either: TensorRT 8.6 would be told FP32 and INT8 of it at once
    unfit = {**{name: weight_reason(*weight) for name, weight in weights_beyond(fused).items()}, **islands}
    left_out = [layer.name for layer in chosen_layers(fused, recipe, quantization.exceptions) if layer.name in unfit]
    exceptions = quantization.exceptions | frozenset(left_out)
    layers = [layer.name for layer in chosen_layers(fused, recipe, exceptions)]
    weak = insert_qdq(fused, found, recipe, exceptions=exceptions, scales="float32")
    head = frozenset(head_islands(fused))
    strong = insert_qdq(fused, found, recipe, exceptions=exceptions, scales="float16", fp32_layers=head)
    report = to_fp16(strong, islands, io_dtype)
    summed = sum_in_fp32(strong, fp32_sums)
    if io_dtype == "float16":
        to_fp16(weak, {str(node.name): "FP32 beside Q/DQ" for node in weak.graph}, io_dtype)
    facts = {"ranges": ranges.to_json(), "advice": advice, **report.to_json(), "fp32_sums": summed}
    facts["islands"] = {name: reason for name, reason in report.islands.items() if name not in layers}
    facts["int8"] = {
        "layers": layers,
        "exceptions": sorted(exceptions),
        "recipe": recipe.to_json(),
        "calibration": {
            "images": found.provenance.images,
            "method": found.provenance.method,
            "seed": found.provenance.seed,
            "images_sha256": found.provenance.images_sha256,
        },
        "notes": [*found.notes, *(f"{name} is not quantised: {unfit[name]}" for name in left_out)],
        "layer_snr": [row.to_json() for row in layer_snr(fused, found, recipe, seen)],
        "search": None if quantization.search is None else dict(quantization.search),
    }
    return Lowered(strong, weak, linears_as_gemm(weak)[0], facts)
