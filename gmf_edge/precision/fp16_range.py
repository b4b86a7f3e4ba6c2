"""Which activations come near or go beyond FP16's range, measured on images in the FP32 graph; and so whether FP16 or BF16 suits.

Every float tensor of the portable FP32 graph gets two nodes more, Abs and ReduceMax, so that only one number a tensor is kept and
memory stays that of one inference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir import DataType

from gmf_edge.errors import PrecisionError
from gmf_edge.precision.fp16 import FP16_MAX
from gmf_edge.scratch import scratch_folder
from gmf_edge.spec import Precision

# within a factor of two of the range: other images may pass it
NEAR = FP16_MAX / 2


@dataclass(frozen=True)
class RangeReport:
    """Largest magnitudes of activations on the images seen.

    Attributes:
        images: how many were seen.
        tensors: how many activations were watched.
        largest_tensor, largest: the activation with the largest magnitude, and that magnitude.
        near: activations beyond half of FP16's range but within it, name -> magnitude.
        beyond: activations beyond FP16's range, name -> magnitude.
    """

    images: int
    tensors: int
    largest_tensor: str
    largest: float
    near: Mapping[str, float]
    beyond: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a manifest."""
        return asdict(self)


def activation_ranges(portable: onnx_ir.Model, batches: Iterable[NDArray[np.float32]]) -> RangeReport:
    """Run images through the portable FP32 graph and keep each activation's largest magnitude.

    Args:
        portable: standard ops only, FP32.
        batches: preprocessed images, float32 [B, 3, H, W].

    Raises:
        PrecisionError: an activation is NaN or infinite in FP32 already.
    """
    import onnxruntime as ort

    graph = portable.clone()
    tensors = [value for node in graph.graph for value in node.outputs if value.dtype in (DataType.FLOAT, None) and value.uses()]
    graph.graph.outputs.clear()
    for value in tensors:
        magnitude = onnx_ir.node("Abs", [value])
        largest = onnx_ir.node("ReduceMax", magnitude.outputs, attributes={"keepdims": 0})
        largest.outputs[0].name, largest.outputs[0].dtype = f"{value.name}/largest", DataType.FLOAT
        largest.outputs[0].shape = onnx_ir.Shape([])
        # right behind the producer, so that the activation can go once it is used; see execution_order below
        producer = value.producer()
        assert producer is not None
        graph.graph.insert_after(producer, [magnitude, largest])
        graph.graph.outputs.append(largest.outputs[0])
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # in the graph's own order: by default it goes depth first from one output, and what the others are of stays until the end
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    with scratch_folder() as folder:
        path = folder / "ranges.onnx"
        onnx_ir.save(graph, path)
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [str(value.name) for value in tensors]
    seen, largest_seen = 0, np.zeros(len(names))
    for batch in batches:
        found = np.array(session.run(None, {session.get_inputs()[0].name: batch}), np.float64)
        if not np.isfinite(found).all():
            bad = [name for name, value in zip(names, found, strict=True) if not np.isfinite(value)]
            raise PrecisionError(
                f"activation {bad[0]} is not finite in FP32 already ({len(bad)} such activations)", "check the checkpoint's weights"
            )
        largest_seen = np.maximum(largest_seen, found)
        seen += len(batch)
    top = int(np.argmax(largest_seen))
    sizes = dict(zip(names, largest_seen.tolist(), strict=True))
    return RangeReport(
        images=seen,
        tensors=len(names),
        largest_tensor=names[top],
        largest=float(largest_seen[top]),
        near={name: size for name, size in sizes.items() if NEAR < size <= FP16_MAX},
        beyond={name: size for name, size in sizes.items() if not size <= FP16_MAX},
    )


def islands_for(fused: onnx_ir.Model, beyond: Mapping[str, float]) -> dict[str, str]:
    """The nodes of the fused graph that must stay in FP32 because of these activations, name -> reason.

    An activation inside a fused op's body (its name starts with the op's module) keeps the whole op in FP32; another keeps its producer
    and its consumers.
    """
    islands: dict[str, str] = {}
    values = {str(value.name): node for node in fused.graph for value in node.outputs}
    for tensor, size in beyond.items():
        reason = f"{tensor} reaches {size:.3g}, beyond FP16's {FP16_MAX:.0f}"
        producer = values.get(tensor)
        if producer is not None:
            users = [use.node for value in producer.outputs for use in value.uses()]
            islands.update({str(node.name): reason for node in (producer, *users)})
            continue
        module = tensor.rsplit("/", 1)[0]
        owners = [str(node.name) for node in fused.graph if node.domain and str(node.name).startswith(f"{module}/")]
        if not owners:
            raise PrecisionError(f"no layer of the fused graph owns activation {tensor}", "report this with the model's variant")
        islands.update(dict.fromkeys(owners, reason))
    return islands


def advice_of(ranges: RangeReport, weights_beyond: Mapping[str, Any], precision: Precision) -> list[str]:
    """Sentences on which of FP16 and BF16 these ranges call for; none where the choice that was made is the usual one.

    FP16 has 11 bits of mantissa and ends at 65504, BF16 has 8 and FP32's range: BF16 is better where the range is needed, and only there.

    Args:
        ranges: of activations.
        weights_beyond: layers with a weight beyond FP16's range.
        precision: that was asked for.
    """
    outside = len(ranges.beyond) + len(weights_beyond)
    largest = f"{ranges.largest_tensor} reaches {ranges.largest:.3g}"
    what = f"{len(ranges.beyond)} activations and {len(weights_beyond)} layers' weights are beyond FP16's range ({largest})"
    if precision is Precision.BF16:
        if outside:
            return [f"{what}: BF16 holds them all, where FP16 would leave their layers in FP32"]
        if ranges.near:
            return [
                f"{len(ranges.near)} activations are within a factor of two of FP16's range ({largest}): BF16 is the safer choice"
            ]
        return [
            f"nothing comes near FP16's range ({largest} of {FP16_MAX:.0f}): FP16 has three more bits of mantissa, and is the better choice"
        ]
    if outside:
        return [f"{what}, and their layers stay in FP32: --precision bf16 holds them all, with three bits of mantissa less"]
    if ranges.near:
        return [
            f"{len(ranges.near)} activations are within a factor of two of FP16's range ({largest}), and other images may pass it: "
            "--precision bf16 has the range, with three bits of mantissa less"
        ]
    return []
