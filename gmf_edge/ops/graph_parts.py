"""What rewriting and lowering put into a graph: constants, and the body of a fused operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx
    import onnx_ir


def new_constant(graph: onnx_ir.Model, array: NDArray[Any], name: str) -> onnx_ir.Value:
    """A new initializer of the graph, or the one of that name where there is one."""
    import onnx_ir

    known = graph.graph.initializers.get(name)
    if known is not None:
        return known
    tensor = onnx_ir.tensor(array, name=name)
    value = onnx_ir.Value(name=name, type=onnx_ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.graph.register_initializer(value)
    return value


def set_body(graph: onnx_ir.Model, body: onnx.FunctionProto) -> None:
    """Put a function body into the graph, in place of the one of that name where there is one."""
    import onnx_ir

    function = onnx_ir.from_proto(body)
    graph.functions[function.identifier()] = function
