"""Holds a graph against what TensorRT's ONNX parsers take (operators.py), without TensorRT: `unfit` names node, rule and version.

A graph that is fit can still fail where only a builder knows: this is the parser's side of the door.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir
from onnx_ir import DataType

from gmf_edge.ops.group_mix_attention import OP_TYPE
from gmf_edge.parsers.operators import FLOATS, IMPORTERS, PARSERS, PLUGIN_SOURCE, Importer, Parser

# nvinfer1::Dims::MAX_DIMS
MOST_DIMENSIONS = 8
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Unfit:
    """One thing that a parser refuses, or that nobody has read that it takes.

    Attributes:
        node: the node's name, or the initializer's or the graph's.
        rule: a short name of what does not hold.
        target: of PARSERS.
        problem: what is there.
        source: where the parser says so.
    """

    node: str
    rule: str
    target: str
    problem: str
    source: str

    def __str__(self) -> str:
        return f"TensorRT {PARSERS[self.target].version}: {self.node}: {self.problem} ({self.rule}; {self.source})"


Found = list[tuple[str, str]]
Rule = Callable[[onnx_ir.Model, onnx_ir.Node, Parser], "str | None"]


def unfit(model: onnx_ir.Model, target: str, plugins: frozenset[str] = frozenset([OP_TYPE])) -> tuple[Unfit, ...]:
    """What the parser of a version refuses of a graph; nothing where it takes all.

    Args:
        model: with the types of its values, as shape inference leaves it.
        target: of PARSERS.
        plugins: operators for which a plugin is there.
    """
    parser = PARSERS[target]
    opset = model.opset_imports.get("", 0)
    found: list[Unfit] = []

    def add(node: str, rule: str, problem: str | None, source: str) -> None:
        if problem is not None:
            found.append(Unfit(node, rule, target, problem, source))

    if not parser.opsets[0] <= opset <= parser.opsets[1]:
        problem = f"opset {opset} is outside {parser.opsets[0]} to {parser.opsets[1]}"
        add("the graph", "opset", problem, "docs/operators.md")
    for value in model.graph.inputs:
        if value.dtype not in parser.floats:
            add(str(value.name), "input type", f"input of type {_name(value.dtype)}", "ModelImporter.cpp importInput")
    for name, value in model.graph.initializers.items():
        add(name, "initializer", _initializer(value, parser), "convertOnnxWeights")
    for node in model.graph:
        name = node.name or str(node.outputs[0].name)
        importer = IMPORTERS.get(node.op_type)
        # built-in importers win by op_type alone, whatever the domain
        if importer is None or target not in importer.targets:
            for rule, problem in _plugin(model, node, parser, plugins):
                add(name, rule, problem, PLUGIN_SOURCE)
            continue
        for rule, problem in _builtin(model, node, parser, importer, opset):
            add(name, rule, problem, importer.source)
    return tuple(found)


def _builtin(model: onnx_ir.Model, node: onnx_ir.Node, parser: Parser, importer: Importer, opset: int) -> Found:
    if opset < importer.since:
        return [("operator", f"{node.op_type} came with opset {importer.since}, the graph has {opset}")]
    found: Found = []
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    if untyped := [str(value.name) for value in values if value.dtype is None]:
        return [("type", f"the type of {untyped[0]} is not known")]
    floats = {value.dtype for value in values if value.dtype in (*FLOATS, DataType.DOUBLE)}
    if wrong := sorted(_name(dtype) for dtype in floats if dtype not in parser.floats or dtype not in importer.floats):
        found.append(("element type", f"{node.op_type} of {wrong[0]}"))
    given = {value.dtype for value in node.inputs if value is not None and value.dtype in FLOATS}
    if parser.strong and importer.one_type and len(given) > 1:
        found.append(("one type", f"{node.op_type} of {' and '.join(sorted(map(_name, given)))} in a strongly typed network"))
    for index in importer.constants:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value.const_value is None:
            found.append(("initializer", f"input {index}, {value.name}, is no initializer"))
    for value in values:
        if value.shape is not None and len(value.shape) > MOST_DIMENSIONS:
            found.append(("rank", f"{value.name} has {len(value.shape)} dimensions, more than {MOST_DIMENSIONS}"))
    if any(
        value is not None and value.dtype == DataType.INT8 and value.is_initializer() for value in node.inputs[:1]
    ) and node.op_type not in ("DequantizeLinear",):
        found.append(("int8 constant", "an INT8 initializer goes to a DequantizeLinear only"))
    for rule in importer.rules:
        problem = RULES[rule](model, node, parser)
        if problem is not None:
            found.append((rule.replace("_", " "), problem))
    return found


def _plugin(model: onnx_ir.Model, node: onnx_ir.Node, parser: Parser, plugins: frozenset[str]) -> Found:
    functions = {name for _, name, _ in model.functions}
    if node.op_type in functions:
        if parser.expands_functions:
            return [("function", f"{node.op_type} is a function of the model: inline it, which is what was read")]
        return [("function", f"{node.op_type} is a function of the model, which this parser does not know")]
    if node.op_type not in plugins:
        return [("operator", f"{node.op_type} has no importer here and is no plugin of ours")]
    found: Found = []
    # from 10.7 on the attribute is what makes the parser look for a plugin first
    for name in ("plugin_version", "plugin_namespace"):
        if name not in node.attributes:
            found.append(("plugin lookup", f"no attribute {name}"))
    kinds = {attribute.type for attribute in node.attributes.values()}
    known = {onnx_ir.AttributeType.INT, onnx_ir.AttributeType.FLOAT, onnx_ir.AttributeType.STRING}
    if kinds - known:
        found.append(("plugin attribute", f"an attribute of kind {min(kind.name for kind in kinds - known)}"))
    if "kernels" in node.attributes:
        # what plugins/gma takes: one type, but for the packed vectors, which are FP32
        qkv, vectors, *others = [value.dtype for value in node.inputs if value is not None]
        packed = node.attributes["packed"].as_int() == 1 if "packed" in node.attributes else False
        rest = [*others, *([] if packed else [vectors]), node.outputs[0].dtype]
        converted = not parser.strong  # a weakly typed builder makes them one type
        if packed and vectors != DataType.FLOAT:
            found.append(("plugin types", f"packed vectors of {_name(vectors)}"))
        if not converted and any(dtype != qkv for dtype in rest):
            found.append(("plugin types", f"qkv of {_name(qkv)} beside {', '.join(sorted({_name(dtype) for dtype in rest}))}"))
    return found


def _initializer(value: onnx_ir.Value, parser: Parser) -> str | None:
    if value.dtype not in parser.initializers:
        return f"initializer of type {_name(value.dtype)}"
    if parser.narrow_int64 and value.dtype == DataType.INT64 and value.const_value is not None:
        numbers = value.const_value.numpy()
        if numbers.size and not (int(numbers.min()) >= INT32_MIN and int(numbers.max()) <= INT32_MAX):
            return "INT64 numbers that INT32 cannot hold"
    return None


def _name(dtype: DataType | None) -> str:
    return dtype.name if dtype is not None else "unknown type"


def _rank(value: onnx_ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _dims(value: onnx_ir.Value | None) -> list[int | None]:
    """Dimensions; None for one that is not fixed."""
    shape = () if value is None or value.shape is None else value.shape
    return [dim if isinstance(dim, int) else None for dim in shape]


def _int(node: onnx_ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _text(node: onnx_ir.Node, name: str, default: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else default


def same_or_broadcast(model: onnx_ir.Model, node: onnx_ir.Node, parser: Parser) -> str | None:
    """elementwiseHelper: shapes of one rank after leading ones, each dimension equal or one."""
    for left, right in zip(reversed(_dims(node.inputs[0])), reversed(_dims(node.inputs[1])), strict=False):
        if left is not None and right is not None and left != right and 1 not in (left, right):
            return f"shapes {_dims(node.inputs[0])} and {_dims(node.inputs[1])} do not broadcast"
    return None


def cast_target(model: onnx_ir.Model, node: onnx_ir.Node, parser: Parser) -> str | None:
    """convertDtype of the attribute `to`."""
    target = DataType(_int(node, "to", 0))
    return None if target in (*parser.floats, DataType.INT32, DataType.INT64, DataType.BOOL) else f"cast to {_name(target)}"


def axis_in_range(model: onnx_ir.Model, node: onnx_ir.Node, parser: Parser) -> str | None:
    """convertAxis: -rank <= axis < rank, Flatten's up to rank."""
    rank = _rank(node.inputs[0])
    axis = _int(node, "axis", {"Flatten": 1, "Split": 0}.get(node.op_type, -1))
    if rank is None:
        return "the rank of its input is not known"
    last = rank if node.op_type == "Flatten" else rank - 1
    return None if -rank <= axis <= last else f"axis {axis} of {rank} dimensions"


def convolution(model: onnx_ir.Model, node: onnx_ir.Node, parser: Parser) -> str | None:
    """2-D, kernel_shape as the weights, channels as the groups, a bias for every output."""
    x, weight = _dims(node.inputs[0]), _dims(node.inputs[1])
    if len(x) not in (3, 4, 5) or len(weight) != len(x):
        return f"input of {len(x)} dimensions, weights of {len(weight)}"
    kernel = list(node.attributes["kernel_shape"].as_ints()) if "kernel_shape" in node.attributes else weight[2:]
    if kernel != weight[2:]:
        return f"kernel_shape {kernel}, weights {weight}"
    if x[1] is not None and weight[1] is not None and weight[1] * _int(node, "group", 1) != x[1]:
        return f"{x[1]} channels, weights for {weight[1]} in each of {_int(node, 'group', 1)} groups"
    if len(node.inputs) > 2 and node.inputs[2] is not None and _dims(node.inputs[2]) != weight[:1]:
        return f"bias {_dims(node.inputs[2])} for {weight[0]} outputs"
    auto_pad = _text(node, "auto_pad", "NOTSET")
    return None if auto_pad in AUTO_PADS else f"auto_pad {auto_pad}"


def matrices(model: onnx_ir.Model, node: onnx_ir.Node, parser: Parser) -> str | None:
    """Gemm: two matrices. MatMul: inner dimensions equal, ranks made equal by leading ones."""
    a, b = _dims(node.inputs[0]), _dims(node.inputs[1])
    if node.op_type == "Gemm":
        return None if len(a) == len(b) == 2 else f"Gemm of {len(a)} and {len(b)} dimensions"
    if len(a) < 2 or len(b) < 2:
        return f"MatMul of {len(a)} and {len(b)} dimensions"
    equal = a[-1] == b[-2] or a[-1] is None or b[-2] is None
    return None if equal else f"MatMul of {a} and {b}"


def gelu_form(model: onnx_ir.Model, node: onnx_ir.Node, parser: Parser) -> str | None:
    """kGELU_ERF or kGELU_TANH."""
    form = _text(node, "approximate", "none")
    return None if form in ("none", "tanh") else f"approximate {form!r}"


def layer_normalization(model: onnx_ir.Model, node: onnx_ir.Node, parser: Parser) -> str | None:
    """One output; scale and bias of the normalised dimensions; with strong typing FP32, which nothing but the operands' type tells."""
    if len([value for value in node.outputs if value.uses() or value.is_graph_output()]) > 1 or len(node.outputs) > 1:
        return "more than one output"
    rank, axis = _rank(node.inputs[0]), _int(node, "axis", -1)
    if rank is None or not -rank <= axis < rank:
        return f"axis {axis} of {rank} dimensions"
    normalised = rank - (axis % rank)
    for value in node.inputs[1:]:
        if value is not None and (_rank(value) or 0) > normalised:
            return f"{value.name} of {_rank(value)} dimensions for {normalised} normalised ones"
    # stash_type 1 asks for FP32 statistics; setComputePrecision, which would tell them, is rejected in strongly typed networks
    x = node.inputs[0]
    if parser.strong and x is not None and x.dtype != DataType.FLOAT and _int(node, "stash_type", 1) == 1:
        return f"FP32 statistics are asked for and {_name(x.dtype)} is given: cast the input"
    return None


def quantization(model: onnx_ir.Model, node: onnx_ir.Node, parser: Parser) -> str | None:
    """Three inputs, positive scales of the right type, zero points of INT8 that are all zero, one scale or one a channel."""
    given = [value for value in node.inputs if value is not None]
    if len(given) != 3:
        return f"{len(given)} inputs: TensorRT takes UINT8 where no zero point says INT8"
    data, scale, zero = given
    if scale.const_value is None or zero.const_value is None:
        return None  # told by "initializer"
    if zero.dtype != DataType.INT8 or np.any(zero.const_value.numpy()):
        return "the zero point is not an INT8 zero"
    values = scale.const_value.numpy()
    if not (values.astype(np.float64) > 0).all():
        return "a scale is not positive"
    if zero.const_value.numpy().size != values.size:
        return f"{values.size} scales, {zero.const_value.numpy().size} zero points"
    if values.size > 1:
        dims, axis = _dims(data), _int(node, "axis", 1)
        if data.const_value is None:
            return "a scale a channel for what is no weight"
        if len(values.shape) != 1 or not -len(dims) <= axis < len(dims) or dims[axis] != values.size:
            return f"{values.size} scales for axis {axis} of {dims}"
    if scale.dtype not in (FLOATS if parser.q_scale != "float32" else (DataType.FLOAT,)):
        return f"scales of {_name(scale.dtype)}"
    wide = scale.dtype == DataType.FLOAT and parser.q_scale == "float32 or input"
    if node.op_type == "QuantizeLinear" and parser.strong and not wide and scale.dtype != data.dtype:
        return f"scale of {_name(scale.dtype)} for {_name(data.dtype)}"
    if node.op_type == "DequantizeLinear" and parser.strong and node.outputs[0].dtype != scale.dtype:
        return f"output of {_name(node.outputs[0].dtype)} by a scale of {_name(scale.dtype)}"
    if scale.dtype != DataType.FLOAT and model.opset_imports.get("", 0) < 19:
        return f"scales of {_name(scale.dtype)} below opset 19"
    return None


def reshape(model: onnx_ir.Model, node: onnx_ir.Node, parser: Parser) -> str | None:
    """addShuffle: at most one -1, no zero that means zero, and no zero for a dimension that is not there."""
    shape = node.inputs[1]
    if shape is None or shape.const_value is None:
        return None  # told by "initializer"
    dims = [int(dim) for dim in shape.const_value.numpy().ravel()]
    if len(dims) > MOST_DIMENSIONS or dims.count(-1) > 1 or min(dims, default=0) < -1:
        return f"shape {dims}"
    if 0 in dims and _int(node, "allowzero", 0):
        return f"shape {dims} with allowzero asks for no elements"
    x = _dims(node.inputs[0])
    if any(dim == 0 and index >= len(x) for index, dim in enumerate(dims)):
        return f"shape {dims} copies a dimension that {x} does not have"
    if None not in x and 0 not in dims and -1 not in dims and math.prod(dims) != math.prod(dim or 0 for dim in x):
        return f"shape {dims} for {x}"
    return None


def split(model: onnx_ir.Model, node: onnx_ir.Node, parser: Parser) -> str | None:
    """Sizes as an input or a number of equal parts, not both; num_outputs from opset 18 on."""
    opset, outputs = model.opset_imports.get("", 0), len(node.outputs)
    sizes = node.inputs[1] if len(node.inputs) > 1 else None
    if "num_outputs" in node.attributes:
        if opset < 18:
            return f"num_outputs came with opset 18, the graph has {opset}"
        if sizes is not None:
            return "both sizes and num_outputs"
        if _int(node, "num_outputs", 0) != outputs:
            return f"num_outputs {_int(node, 'num_outputs', 0)}, {outputs} outputs"
    dims, axis = _dims(node.inputs[0]), _int(node, "axis", 0)
    length = dims[axis] if -len(dims) <= axis < len(dims) else None
    if sizes is not None and sizes.const_value is not None:
        parts = [int(part) for part in sizes.const_value.numpy().ravel()]
        if len(parts) != outputs or (length is not None and sum(parts) != length):
            return f"sizes {parts} for {outputs} outputs of {length}"
    elif sizes is None and length is not None and length % outputs:
        # 8.6 rounds down and drops the rest, newer ones round up
        return f"{length} in {outputs} equal parts"
    return None


RULES: dict[str, Rule] = {
    function.__name__: function
    for function in (
        same_or_broadcast,
        cast_target,
        axis_in_range,
        convolution,
        matrices,
        gelu_form,
        layer_normalization,
        quantization,
        reshape,
        split,
    )
}
