"""What a built engine is made of, read from TensorRT's engine inspector: layers, their precision, and their share of the work.

The inspector's JSON up to 10.x: {"Layers": [...], "Bindings": ["images", "logits"]}, each tensor with one "Format/Datatype"
such as "Channel major FP16 format where channel % 8 == 0" or "Half". From 11: "I/O Tensors" with an object per tensor instead of
"Bindings", and separate "Format" and "Datatype" (also written "DataType"). An engine built without ProfilingVerbosity.DETAILED has
plain strings as layers in all versions, which proves nothing. Source: NVIDIA's migration guide of IEngineInspector, and the engines
recorded in TensorRT's own repository (tools/experimental/trt-engine-explorer).

A layer's precision is what its arithmetic reads: the type of its weights where it has any (a convolution that reads FP16 and
writes FP32 computes in FP16), else the lowest of its floating or INT8 inputs, and of its outputs where it has no such input.
TensorRT 8.6 tells nothing of the inside of a "Myelin" region but its outer tensors: with lower ones among them it counts as that,
with FP32 alone its precision is "unknown", neither a proof nor a failure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gmf_edge.engines.protocol import LayerRecord
from gmf_edge.errors import EngineError, PrecisionError
from gmf_edge.spec import Precision

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


@dataclass(frozen=True)
class EngineLayer:
    """One layer as the inspector tells it.

    Attributes:
        name: TensorRT's, made of the ONNX nodes that were fused into it.
        kind: TensorRT's "LayerType", such as "CaskConvolution" or "kgen".
        precision: of its arithmetic; "none" where it touches no floating or INT8 tensor, "unknown" where TensorRT does not tell.
        moves_data: it only moves or re-types data.
        inputs, outputs: precision per tensor, with "none" for integers.
        tactic: the kernel's name, where TensorRT tells it.
        weight_count: number of weights, 0 where it has none.
    """

    name: str
    kind: str
    precision: str
    moves_data: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tactic: str
    weight_count: int

    def record(self, times_ms: Mapping[str, float]) -> LayerRecord:
        """As the engine protocol wants it, with its time where it was measured."""
        return LayerRecord(self.name, self.kind, self.precision, times_ms.get(self.name))


@dataclass(frozen=True)
class InspectedEngine:
    """The inspector's answer, in one schema for all versions.

    Attributes:
        layers: in execution order.
        io_names: names of the engine's inputs and outputs.
    """

    layers: tuple[EngineLayer, ...]
    io_names: tuple[str, ...]


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
    inputs = tuple(precision_of_type(_tensor_type(tensor)) for tensor in layer.get("Inputs", ()))
    outputs = tuple(precision_of_type(_tensor_type(tensor)) for tensor in layer.get("Outputs", ()))
    weights = [value for key, value in layer.items() if key.endswith("Weights") and isinstance(value, dict)]
    weight_types = [precision_of_type(str(weight.get("Type", ""))) for weight in weights]
    kind = str(layer.get("LayerType", "unknown"))
    opaque = kind.lower() in ("myelin", "foreignnode")
    precision = "none"
    for types in ((*inputs, *outputs),) if opaque else (weight_types, inputs, outputs):
        found = [known for known in types if known]
        if found:
            precision = min(found, key=_RANK.index)
            break
    if opaque and precision == "fp32":
        precision = "unknown"
    return EngineLayer(
        name=str(layer.get("Name", "")),
        kind=kind,
        precision=precision,
        moves_data=kind.lower() in _MOVES,
        inputs=tuple(p or "none" for p in inputs),
        outputs=tuple(p or "none" for p in outputs),
        tactic=str(layer.get("TacticName", "")),
        weight_count=sum(int(weight.get("Count", 0)) for weight in weights),
    )


def precision_shares(layers: Iterable[EngineLayer], times_ms: Mapping[str, float]) -> dict[str, float]:
    """Share of the arithmetic per precision, sums to 1 (empty where there is no layer with arithmetic).

    By time where every such layer was timed, else by number of layers. Layers that only move or re-type data do not count.
    """
    computing = [layer for layer in layers if not layer.moves_data and layer.precision != "none"]
    timed = (
        bool(computing)
        and all(layer.name in times_ms for layer in computing)
        and sum(times_ms[layer.name] for layer in computing) > 0
    )
    weights = {layer.name: times_ms[layer.name] if timed else 1.0 for layer in computing}
    total = sum(weights.values())
    shares: dict[str, float] = {}
    for layer in computing:
        shares[layer.precision] = shares.get(layer.precision, 0.0) + weights[layer.name] / total
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def prove_precision(
    inspected: InspectedEngine, requested: Precision, max_fp32_share: float, times_ms: Mapping[str, float]
) -> dict[str, float]:
    """The shares per precision, if they honour the request.

    FP16 and INT8 requests may leave at most max_fp32_share in FP32, and must have some of the precision that was asked for.

    Raises:
        PrecisionError: the engine does not run the precision that was asked for; it lists the layers.
        EngineError: the inspector told the precision of no layer.
    """
    shares = precision_shares(inspected.layers, times_ms)
    if not shares:
        raise EngineError(
            "the engine inspector tells the precision of no layer", "report this with the output of 'gmf-edge inspect'"
        )
    if requested is Precision.FP32:
        low = [layer for layer in inspected.layers if not layer.moves_data and layer.precision not in ("fp32", "none", "unknown")]
        if low:
            raise PrecisionError(
                f"FP32 was asked for, but {len(low)} layers run lower: {_listed(low, times_ms)}",
                "build from a bundle of precision fp32",
            )
        return shares
    wrong = [layer for layer in inspected.layers if not layer.moves_data and layer.precision == "fp32"]
    name = requested.value
    if name not in shares:
        raise PrecisionError(
            f"{name} was asked for, but no layer of the engine runs in {name}: {_listed(wrong, times_ms)}",
            f"check with 'gmf-edge inspect' that the bundle was built with --precision {name}, and that this GPU has {name} units",
        )
    if not shares.get("fp32", 0.0) <= max_fp32_share:
        raise PrecisionError(
            f"{name} was asked for, but {shares['fp32']:.0%} of the work stayed in FP32 "
            f"(at most {max_fp32_share:.0%} is accepted): {_listed(wrong, times_ms)}",
            "see the layers with 'gmf-edge inspect', or accept it with max_fp32_share",
        )
    return shares


def _listed(layers: Iterable[EngineLayer], times_ms: Mapping[str, float], most: int = 20) -> str:
    """The slowest first where they were timed."""
    ordered = sorted(layers, key=lambda layer: -times_ms.get(layer.name, 0.0))
    names = [f"{layer.name} ({layer.kind}, {layer.precision})" for layer in ordered[:most]]
    rest = len(ordered) - most
    return "; ".join(names) + (f"; and {rest} more" if rest > 0 else "")
