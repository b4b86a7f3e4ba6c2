"""A strongly typed runtime, emulated: each operator computes in the type of its inputs, as TensorRT 10 and 11 promise and no more.

ONNX Runtime cannot stand in for it: on a CPU it computes most FP16 operators in FP32 and honours LayerNormalization's stash_type, so
an FP16 graph looks better there than a GPU may make it. Here FP16 means

  one rounding for each output element of Add, Mul, Conv, MatMul, ... after an exact sum, the kindest that a kernel could be;
  LayerNormalization in steps, mean, difference, square, mean, sum with epsilon, square root, quotient, gain, bias, each rounded:
  the order of the kernel that TensorRT generates for it;
  sums of MatMul and Conv in FP16 too where `accumulation_block` says so, as GEMM kernels named ..._f16f16_f16f16_f16 do.

Values are PyTorch tensors of the graph's own types; operands of two floating-point types are an error, as they are to TensorRT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

TYPES = {
    onnx_ir.DataType.FLOAT: torch.float32,
    onnx_ir.DataType.FLOAT16: torch.float16,
    onnx_ir.DataType.BFLOAT16: torch.bfloat16,
    onnx_ir.DataType.INT8: torch.int8,
}


class StronglyTyped:
    """A portable graph as an engine: infer(images) -> logits, both float32.

    Args:
        graph: standard operators only.
        accumulation_block: None for exact sums; else so many products are summed exactly, and added to a sum that is rounded to the
            operands' type: 16 is what one tensor-core instruction of FP16 sums takes, 1 the worst order.
        exact: names of nodes whose sums are exact all the same.
    """

    def __init__(self, graph: onnx_ir.Model, accumulation_block: int | None = None, exact: frozenset[str] = frozenset()) -> None:
        self.graph = graph.graph
        self.accumulation_block = accumulation_block
        self.exact = exact
        self.constants = {str(name): _tensor(value) for name, value in self.graph.initializers.items()}

    def infer(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Logits [B, classes] of preprocessed images [B, 3, H, W]."""
        (source,), (target,) = self.graph.inputs, self.graph.outputs
        assert source.dtype is not None
        values: dict[str, Tensor] = {**self.constants, str(source.name): torch.from_numpy(images).to(TYPES[source.dtype])}
        with torch.inference_mode(), _one_thread():
            for node in self.graph:
                inputs = [None if value is None else values[str(value.name)] for value in node.inputs]
                results = self._run(node, inputs)
                for value, result in zip(node.outputs, results, strict=True):
                    assert value.dtype is None or TYPES[value.dtype] == result.dtype, f"{node.name} returns {result.dtype}"
                    values[str(value.name)] = result
        logits: NDArray[np.float32] = values[str(target.name)].float().numpy()
        return logits

    def _run(self, node: onnx_ir.Node, inputs: list[Tensor | None]) -> tuple[Tensor, ...]:
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        given = [value for value in inputs if value is not None]
        if node.op_type == "Cast":
            return (given[0].to(TYPES[onnx_ir.DataType(attributes["to"])]),)
        if node.op_type == "QuantizeLinear":
            return (_quantized(*given),)
        if node.op_type == "DequantizeLinear":
            return (_dequantized(given[0], given[1], attributes.get("axis", 1)),)
        floating = {value.dtype for value in given if value.is_floating_point()}
        assert len(floating) == 1, f"{node.name} ({node.op_type}) has operands of the types {floating}"
        (dtype,) = floating
        if node.op_type == "Split":
            return _parts(given, attributes.get("axis", 0), len(node.outputs))
        if node.op_type in MOVES:
            return (MOVES[node.op_type](given, attributes),)
        # exact arithmetic in the wide type, rounded where an operator ends: for + - * / sqrt that is IEEE's result in the narrow one
        wide = [value.float() if value.is_floating_point() else value for value in given]

        def rounded(value: Tensor) -> Tensor:
            return value.to(dtype).float()

        if node.op_type == "LayerNormalization":
            assert attributes.get("axis", -1) == -1
            return (_layer_normalization(rounded, *wide, epsilon=attributes.get("epsilon", 1e-5)).to(dtype),)
        block = self.accumulation_block if dtype == torch.float16 and node.name not in self.exact else None
        if node.op_type == "MatMul":
            return (_product(wide[0], wide[1], rounded, block).to(dtype),)
        if node.op_type == "Gemm":
            weight = wide[1].T if attributes.get("transB", 0) else wide[1]
            return (rounded(_product(wide[0], weight, rounded, block) + wide[2]).to(dtype),)
        if node.op_type == "Conv":
            return (_convolution(wide, attributes, rounded, block).to(dtype),)
        return (ELEMENTWISE[node.op_type](*wide, **_axis_of(attributes)).to(dtype),)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Some hundred small operators: threads would wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _layer_normalization(rounded: Callable[[Tensor], Tensor], x: Tensor, gain: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    centred = rounded(x - rounded(x.mean(-1, keepdim=True)))
    variance = rounded(rounded(centred * centred).mean(-1, keepdim=True))
    deviation = rounded(rounded(variance + rounded(torch.tensor(epsilon))).sqrt())
    return rounded(rounded(rounded(centred / deviation) * gain) + bias)


def _product(left: Tensor, right: Tensor, rounded: Callable[[Tensor], Tensor], block: int | None) -> Tensor:
    if block is None:
        return left @ right
    total = torch.zeros(())
    for start in range(0, left.shape[-1], block):
        part = slice(start, start + block)
        total = rounded(total + left[..., part] @ right[..., part, :])
    return total


def _convolution(
    inputs: list[Tensor], attributes: dict[str, Any], rounded: Callable[[Tensor], Tensor], block: int | None
) -> Tensor:
    x, weight = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    pads = list(attributes.get("pads", [0, 0, 0, 0]))
    strides = list(attributes.get("strides", [1, 1]))
    groups = attributes.get("group", 1)
    assert pads[:2] == pads[2:]
    if block is None:
        return functional.conv2d(x, weight, bias, strides, pads[:2], groups=groups)
    batch, _, height, width = x.shape
    kernel = weight.shape[-2:]
    columns = functional.unfold(x, kernel, padding=pads[:2], stride=strides)
    columns = columns.reshape(batch, groups, -1, columns.shape[-1])  # [B, groups, K, positions]
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)  # [groups, outputs, K]
    out = _product(rows, columns, rounded, block)
    size = [
        (side + 2 * pad - k) // stride + 1 for side, pad, k, stride in zip((height, width), pads, kernel, strides, strict=False)
    ]
    out = out.reshape(batch, weight.shape[0], *size)
    return out if bias is None else rounded(out + bias[:, None, None])


def _quantized(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    assert x.dtype == scale.dtype, f"QuantizeLinear has an input of {x.dtype} and a scale of {scale.dtype}"
    assert not zero_point.any()
    return (x.float() / scale.float()).round().clamp(-128, 127).to(torch.int8)


def _dequantized(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    if scale.ndim:
        scale = scale.reshape([-1 if i == axis % codes.ndim else 1 for i in range(codes.ndim)])
    return (codes.float() * scale.float()).to(scale.dtype)


def _axis_of(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"axis": attributes["axis"]} if "axis" in attributes else {}


def _reshaped(x: Tensor, sizes: Tensor) -> Tensor:
    wanted = [int(size) for size in sizes]
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(wanted)])


def _parts(inputs: list[Tensor], axis: int, count: int) -> tuple[Tensor, ...]:
    return torch.split(inputs[0], inputs[1].tolist(), axis) if len(inputs) == 2 else torch.chunk(inputs[0], count, axis)


# operators that move values and compute none
MOVES: dict[str, Callable[[list[Tensor], dict[str, Any]], Tensor]] = {
    "Concat": lambda inputs, attributes: torch.cat(inputs, attributes["axis"]),
    "Flatten": lambda inputs, attributes: inputs[0].flatten(attributes.get("axis", 1)),
    "Reshape": lambda inputs, attributes: _reshaped(inputs[0], inputs[1]),
    "Transpose": lambda inputs, attributes: inputs[0].permute(*attributes["perm"]),
}
ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Mul": torch.mul,
    "Div": torch.div,
    "Erf": torch.erf,
    "Gelu": functional.gelu,
    "HardSwish": functional.hardswish,
    "Softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
}


def _tensor(value: onnx_ir.Value) -> Tensor:
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    if value.dtype == onnx_ir.DataType.BFLOAT16:
        # NumPy's BF16 is an extension that PyTorch does not read: by its bits
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
