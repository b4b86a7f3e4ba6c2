"""What the kernels are timed against: PyTorch in two memory formats, eager and compiled, and TensorRT without the plugin.

Every alternative gets its input in the layout that suits it, outside the time: channels-last is the token-major qkv itself, contiguous a
copy of it in NCHW order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

OPSET = 17
WORKSPACE_BYTES = 1 << 32


def attention_core(x: Mapping[str, Any]) -> Any:
    """The attention core in ordinary torch calls, q, k and v of a segment as the groups of one convolution.

    Args:
        x: weights by name and `maps` [B, 3C, H, W], in any memory format.

    Returns:
        [B, N, C].
    """
    import torch
    from torch.nn import functional as F

    maps = x["maps"]
    batch, stacked, height, width = maps.shape
    tokens, dim = height * width, stacked // 15
    segments = maps.split(3 * dim, 1)
    proxies = [F.hardswish(segments[0])]
    for i, window in ((1, 3), (2, 5), (3, 7)):
        weight = x[f"depthwise_{i}"].repeat(3, 1, 1, 1)
        spread = F.conv2d(segments[i], weight, padding=window // 2, groups=3 * dim)
        mixed = F.conv2d(spread, x[f"pointwise_{i}"].repeat(3, 1, 1, 1), x[f"bias_{i}"].repeat(3), groups=3)
        proxies.append(F.hardswish(mixed))
    q_map, k_map, v_map = (torch.cat([proxy.split(dim, 1)[t] for proxy in proxies], 1) for t in range(3))
    q, k, v = (m.reshape(batch, 8, dim // 2, tokens) for m in (q_map, k_map, v_map))
    context = v @ k.softmax(3).transpose(2, 3)
    parts = v_map.split([dim, 3 * dim // 2, 3 * dim // 2], 1)
    position = torch.cat(
        [
            F.conv2d(part, x[f"crpe_weight_{w}"], x[f"crpe_bias_{w}"], padding=w // 2, groups=part.shape[1])
            for part, w in zip(parts, (3, 5, 7), strict=True)
        ],
        1,
    ).reshape(q.shape)
    mixed = ((5 * dim / 8) ** -0.5 * (context @ q) + q * position).reshape(batch, 4 * dim, tokens).transpose(1, 2)
    local = F.conv2d(segments[4], x["depthwise_0"], padding=1, groups=3 * dim)
    local = F.conv2d(local, x["pointwise_0"]).flatten(2).transpose(1, 2)
    local = F.hardswish(F.layer_norm(local, (dim,), x["norm_weight"], x["norm_bias"], 1e-5))
    return torch.cat([mixed, local], 2)


def torch_inputs(x: Mapping[str, Any], height: int, width: int, channels_last: bool) -> dict[str, Any]:
    """attention_core's input from the operator's: qkv [B, N, 3C] as maps, and the windows in the same memory format."""
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    batch, _, stacked = x["qkv"].shape
    maps = x["qkv"].transpose(1, 2).reshape(batch, stacked, height, width).contiguous(memory_format=layout)
    weights = {name: value for name, value in x.items() if name != "qkv"}
    return {name: w.contiguous(memory_format=layout) if w.ndim == 4 else w for name, w in weights.items()} | {"maps": maps}


def stock_model(x: Mapping[str, Any], height: int, width: int) -> bytes:
    """The operator's body in standard operators, qkv as the input and the weights as constants: what TensorRT gets without the plugin."""
    import onnx
    from onnx import helper, inliner, numpy_helper

    from gmf_edge.ops import group_mix_attention as op

    names = list(op.INPUT_NAMES)
    arrays = {name: x[name].cpu().numpy() for name in names}
    batch, tokens, stacked = arrays["qkv"].shape
    kind = helper.np_dtype_to_tensor_dtype(arrays["qkv"].dtype)
    node = helper.make_node(
        op.OP_TYPE, names, [op.OUTPUT_NAME], domain=op.DOMAIN, **op.node_attributes(height, width, stacked // 3)
    )
    graph = helper.make_graph(
        [node],
        "stock",
        [helper.make_tensor_value_info("qkv", kind, (batch, tokens, stacked))],
        [helper.make_tensor_value_info(op.OUTPUT_NAME, kind, (batch, tokens, stacked // 3))],
        [numpy_helper.from_array(arrays[name], name) for name in names[1:]],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(op.DOMAIN, 1)]
    body = op.function_body(OPSET, norm_by_casts=False)
    model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=8)
    plain = inliner.inline_local_functions(model)
    onnx.checker.check_model(plain)
    return bytes(plain.SerializeToString())


def stock_tensorrt(model: bytes, fp16: bool) -> Callable[[Any, Any, int], None] | None:
    """An engine of TensorRT's own kernels as a call (qkv, output, stream); None where TensorRT is not installed.

    Raises:
        SystemExit: TensorRT is there and does not build it.
    """
    try:
        import tensorrt as trt
    except ImportError:
        return None
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flags = trt.NetworkDefinitionCreationFlag
    # 8.6 and older 10 want an explicit batch; where there is strong typing the graph's own types decide
    bits = 0
    if hasattr(flags, "EXPLICIT_BATCH"):
        bits |= 1 << int(flags.EXPLICIT_BATCH)
    strong = hasattr(flags, "STRONGLY_TYPED")
    if strong:
        bits |= 1 << int(flags.STRONGLY_TYPED)
    network = builder.create_network(bits)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise SystemExit(f"TensorRT does not read the stock graph: {parser.get_error(0)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if fp16 and not strong:
        config.set_flag(trt.BuilderFlag.FP16)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SystemExit("TensorRT does not build the stock graph; see its log above")
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    source, target = (engine.get_tensor_name(index) for index in range(2))

    def run(qkv: Any, output: Any, stream: int) -> None:
        context.set_tensor_address(source, qkv.data_ptr())
        context.set_tensor_address(target, output.data_ptr())
        if not context.execute_async_v3(stream):
            raise SystemExit("TensorRT did not run the stock engine; see its log above")

    # the context lives as long as the call, and so must what it came from
    run.owners = (logger, engine, context)  # type: ignore[attr-defined]
    return run
