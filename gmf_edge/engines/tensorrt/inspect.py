"""What a built engine is made of, read from TensorRT's engine inspector: layers, what they compute in, and their times.

The inspector's JSON up to 10.x: {"Layers": [...], "Bindings": ["images", "logits"]}, each tensor with one "Format/Datatype"
such as "Channel major FP16 format where channel % 8 == 0" or "Half". From 11: "I/O Tensors" with an object per tensor instead of
"Bindings", separate "Format" and "Datatype" (also written "DataType"), and "Constants" beside "Inputs". An engine built without
ProfilingVerbosity.DETAILED has plain strings as layers in all versions. "Metadata" names the ONNX nodes of a layer,
"[ONNX Layer: a]" with \x1e or \x1f between them. Sources: NVIDIA's migration guide of IEngineInspector, the engines recorded in
TensorRT's own repository (tools/experimental/trt-engine-explorer), and the dumps in NVIDIA/TensorRT#4397 (10.10), #3737 and #4020.

What a layer computes in, by what says it best: the operand types in its kernel's name (sm80_xmma_gemm_i8i8_i8i32_...), the type of its
weights (a convolution that reads FP16 and writes FP32 computes in FP16), else the lowest of its inputs, else of its outputs. A product
that reads one INT8 tensor beside floating ones, and whose kernel is not told, may multiply in either: "unknown". INT8 tensors
are arithmetic in matrix products and convolutions only: elsewhere they are Q and DQ, which compute in the floating type beside them.
TensorRT 8.6 tells nothing of the inside of a "Myelin" region but its outer tensors, which are never INT8: with FP16 among them
it counts as that, with FP32 alone it is "unknown".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gmf_edge.engines.protocol import LayerRecord
from gmf_edge.errors import EngineError

# TensorRT's spellings, in formats (8.x) and as plain types (10 and 11)
_SPELLINGS = (
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("bfloat16", "bf16"),
    ("bf16", "bf16"),
    ("fp16", "fp16"),
    ("half", "fp16"),
    ("fp32", "fp32"),
    ("float", "fp32"),
)
# integers and booleans are shapes and indices, no arithmetic of the model
_RANK = ("fp8", "int8", "fp16", "bf16", "fp32")
# layers that move or re-type data: their precision says nothing about the arithmetic
_MOVES = frozenset(
    {
        "reformat",
        "noop",
        "shuffle",
        "constant",
        "cast",
        "copy",
        "slice",
        "concatenation",
        "shape",
        "identity",
        "squeeze",
        "unsqueeze",
        "signal",
        "wait",
    }
)


def precision_of_type(text: str) -> str | None:
    """ "fp32", "fp16", "bf16", "fp8" or "int8" in one of TensorRT's spellings of a type or format, or None for any other type."""
    lowered = text.lower()
    # UINT8 holds pictures, not quantised arithmetic
    if "uint8" in lowered:
        return None
    for spelling, precision in _SPELLINGS:
        if spelling in lowered:
            return precision
    return None


# kernels that multiply matrices or convolve; TensorRT calls them so in the layer's type or in the kernel's name
_PRODUCT_KINDS = ("conv", "gemm", "matrixmultiply", "matrix_multiply", "fullyconnected")
_PRODUCT_TACTICS = ("gemm", "fprop", "conv", "_mha", "fmha")
# operand types in kernel names: "..._i8i8_i8i32_f32_..." (xmma), "h16816gemm" and "fp16_s1688" (cuBLAS and CUTLASS)
_OPERANDS = re.compile(r"(?<![a-z0-9])(bf16|tf32|f16|f32|i8|s8|u8|e4m3|e5m2)(?:bf16|tf32|f16|f32|i8|s8|u8|e4m3|e5m2)(?![a-z0-9])")
_OPERAND_PRECISION = {
    "bf16": "bf16",
    "tf32": "fp32",
    "f16": "fp16",
    "f32": "fp32",
    "i8": "int8",
    "s8": "int8",
    "u8": "int8",
    "e4m3": "fp8",
    "e5m2": "fp8",
}
_TACTIC_WORDS = (("int8", "int8"), ("imma", "int8"), ("fp16", "fp16"), ("h16816", "fp16"), ("h1688", "fp16"), ("bf16", "bf16"))


@dataclass(frozen=True)
class EngineLayer:
    """One layer as the inspector tells it.

    Attributes:
        name: TensorRT's, made of the ONNX nodes that were fused into it; several layers may have one name.
        kind: TensorRT's "LayerType", such as "CaskConvolution", "gemm" or "kgen".
        precision: of its arithmetic; "none" where it touches no floating or INT8 tensor, "unknown" where TensorRT does not tell.
        moves_data: it only moves or re-types data.
        is_product: it multiplies matrices or convolves: the arithmetic that a precision is asked for.
        is_opaque: a region whose inside TensorRT does not tell.
        inputs, outputs: precision per tensor, with "none" for integers.
        tensors: names of its inputs and outputs.
        tactic: the kernel's name, where TensorRT tells it.
        nodes: ONNX nodes that it was made of, where TensorRT tells them.
    """

    name: str
    kind: str
    precision: str
    moves_data: bool
    is_product: bool
    is_opaque: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: tuple[str, ...]
    tactic: str
    nodes: tuple[str, ...]

    def covers(self, node: str) -> bool:
        """Whether an ONNX node was fused into it: by its metadata, or by its name, in which 10 and later write "_" for "."."""
        if node in self.nodes:
            return True
        parts = re.split(r" \+ |\+", re.sub(r"_myl\d+_\d+$", "", self.name))
        return node in parts or _as_identifier(node) in map(_as_identifier, parts)


@dataclass(frozen=True)
class InspectedEngine:
    """The inspector's answer, in one schema for all versions.

    Attributes:
        layers: in execution order.
        io_names: names of the engine's inputs and outputs.
    """

    layers: tuple[EngineLayer, ...]
    io_names: tuple[str, ...]


# (layer name, milliseconds) in execution order; a name may come several times
LayerTimes = Sequence[tuple[str, float]]


def times_of_layers(layers: Sequence[EngineLayer], times: LayerTimes) -> tuple[float | None, ...]:
    """The time of each layer in milliseconds, the n-th layer of a name by the n-th time of that name; None where it was not timed.

    The profiler reports in execution order, as the inspector does; trtexec matches the two in the same way.
    """
    by_name: dict[str, list[float]] = {}
    for name, ms in times:
        by_name.setdefault(name, []).append(ms)
    seen: Counter[str] = Counter()
    found: list[float | None] = []
    for layer in layers:
        own = by_name.get(layer.name, [])
        found.append(own[seen[layer.name]] if seen[layer.name] < len(own) else None)
        seen[layer.name] += 1
    return tuple(found)


def layer_records(layers: Sequence[EngineLayer], times: LayerTimes) -> tuple[LayerRecord, ...]:
    """The layers as the engine protocol wants them, each with its time where it was measured."""
    return tuple(
        LayerRecord(layer.name, layer.kind, layer.precision, ms)
        for layer, ms in zip(layers, times_of_layers(layers, times), strict=True)
    )


def read_inspector_json(text: str) -> InspectedEngine:
    """Parse EngineInspector.get_engine_information(JSON) of any supported version.

    Raises:
        EngineError: not the inspector's JSON, or without the details (built without ProfilingVerbosity.DETAILED).
    """
    remedy = "build it with 'gmf-edge deploy', which keeps the details (ProfilingVerbosity.DETAILED)"
    try:
        # layer names may hold control characters
        values = json.loads(text, strict=False)
        raw_layers = values["Layers"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise EngineError(f"the engine inspector's answer is not its JSON: {error}", remedy) from error
    if any(not isinstance(layer, dict) for layer in raw_layers):
        raise EngineError("the engine tells only the names of its layers", remedy)
    if "I/O Tensors" in values:
        names = tuple(str(tensor["Name"]) for tensor in values["I/O Tensors"])
    else:
        names = tuple(str(name) for name in values.get("Bindings", ()))
    return InspectedEngine(tuple(_layer(layer) for layer in raw_layers), names)


def _tensor_type(tensor: Mapping[str, Any]) -> str:
    """The text that tells a tensor's type: one key before 11, several from there."""
    for key in ("Format/Datatype", "Datatype", "DataType", "Format"):
        if isinstance(tensor.get(key), str):
            return str(tensor[key])
    return ""


def _layer(layer: Mapping[str, Any]) -> EngineLayer:
    kind, tactic = str(layer.get("LayerType", "unknown")), str(layer.get("TacticName", ""))
    tensors = [*layer.get("Inputs", ()), *layer.get("Outputs", ())]
    inputs = tuple(precision_of_type(_tensor_type(tensor)) for tensor in layer.get("Inputs", ()))
    outputs = tuple(precision_of_type(_tensor_type(tensor)) for tensor in layer.get("Outputs", ()))
    weights = [value for key, value in layer.items() if key.endswith("Weights") and isinstance(value, dict)]
    weight_types = tuple(
        precision_of_type(str(weight.get("Type") or weight.get("Datatype") or weight.get("DataType") or "")) for weight in weights
    )
    is_opaque = kind.lower() in ("myelin", "foreignnode")
    is_product = not is_opaque and (
        any(word in kind.lower() for word in _PRODUCT_KINDS) or any(word in tactic.lower() for word in _PRODUCT_TACTICS)
    )
    if is_opaque:
        precision = _lowest((*inputs, *outputs))
        precision = "unknown" if precision == "fp32" else precision
    elif is_product:
        precision = precision_of_tactic(tactic) or next(
            (found for found in (_lowest(weight_types), _of_operands(inputs), _lowest(outputs)) if found), None
        )
    else:
        floating = [tuple(p for p in types if p not in ("int8", "fp8")) for types in (inputs, outputs)]
        precision = next((found for found in map(_lowest, (*floating, inputs, outputs)) if found), None)
    return EngineLayer(
        name=str(layer.get("Name", "")),
        kind=kind,
        precision=precision or "none",
        moves_data=kind.lower() in _MOVES,
        is_product=is_product,
        is_opaque=is_opaque,
        inputs=tuple(p or "none" for p in inputs),
        outputs=tuple(p or "none" for p in outputs),
        tensors=tuple(str(tensor.get("Name", "")) for tensor in tensors),
        tactic=tactic,
        nodes=tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", str(layer.get("Metadata", "")))),
    )


def precision_of_tactic(tactic: str) -> str | None:
    """What a kernel multiplies, by its name: "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_..." -> "fp16"; None where the name does not tell.

    The first pair of types is that of the operands; what it accumulates in and writes comes after.
    """
    lowered = tactic.lower()
    found = _OPERANDS.search(lowered)
    if found:
        return _OPERAND_PRECISION[found[1]]
    return next((precision for word, precision in _TACTIC_WORDS if word in lowered), None)


def _lowest(types: Iterable[str | None]) -> str | None:
    known = [precision for precision in types if precision]
    return min(known, key=_RANK.index) if known else None


def _of_operands(inputs: Sequence[str | None]) -> str | None:
    """What a product multiplies by what it reads; INT8 weights beside floating activations, or a floating residual, leave it open."""
    known = [precision for precision in inputs if precision]
    if known.count("int8") == 1 and len(known) > 1:
        return "unknown"
    return _lowest(known)


def _as_identifier(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", name)
