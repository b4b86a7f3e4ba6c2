"""The GmfGroupMixAttention kernels on torch tensors: on a GPU, or on the CPU with TRITON_INTERPRET=1 set before the first import.

The operator's contract is in gmf_edge/ops/group_mix_attention.py; torch itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gmf_edge.errors import KernelError
from gmf_edge.kernels.layout import Geometry, Tiling, choose_tiling, plan
from gmf_edge.ops.group_mix_attention import INPUT_NAMES, LAYER_NORM_EPSILON, input_shapes, node_attributes


def packed_weights(inputs: Mapping[str, Any], geometry: Geometry, fill: float | None = None) -> tuple[Any, Any]:
    """`vectors` [VECTOR_ROWS, P] FP32 and `matrices` [6, P, P] of the operator's weights, by the kernel pack_weights.

    Args:
        inputs: contiguous tensors by INPUT_NAMES on one device.
        geometry: any of this width.
        fill: see group_mix_attention.
    """
    from gmf_edge.kernels import group_mix_attention as kernels

    qkv = inputs["qkv"]
    vectors = _float_empty(qkv, geometry.vectors_shape)
    matrices = qkv.new_empty(geometry.matrices_shape)
    if fill is not None:
        vectors.fill_(fill)
        matrices.fill_(fill)
    weights = [inputs[name] for name in INPUT_NAMES[1:]]
    kernels.pack_weights[geometry.pack_grid](*weights, vectors, matrices, S=geometry.segment_dim, P=geometry.padded_dim)
    return vectors, matrices


def group_mix_attention(
    inputs: Mapping[str, Any],
    height: int,
    width: int,
    *,
    epsilon: float = LAYER_NORM_EPSILON,
    multiprocessors: int | None = None,
    tiling: Tiling | None = None,
    packed: tuple[Any, Any] | None = None,
    fill: float | None = None,
) -> Any:
    """The operator by its kernels.

    Args:
        inputs: contiguous torch tensors of one type (FP16, BF16 or FP32) by INPUT_NAMES, shaped as op.input_shapes says.
        height, width: H, W of the feature map.
        epsilon: of the LayerNorm.
        multiprocessors: decides how far the tokens are split; None asks the device (1 on a CPU).
        tiling: how the work is cut; None for the compiled kernels' choice.
        packed: what `packed_weights` gave for these weights, to leave that launch out.
        fill: a value put into all memory that the kernels are to write, such as NaN in a test; None leaves it as it comes.

    Returns:
        [B, N, C] tensor of the type and on the device of qkv.

    Raises:
        KernelError: an input that is missing, has another shape, type or device, or is not contiguous.
        SpecError: a width that no GroupMixFormer can have.
    """
    from gmf_edge.kernels import group_mix_attention as kernels

    qkv = inputs["qkv"]
    batch, tokens, stacked = qkv.shape
    channels = stacked // 3
    _check_inputs(inputs, channels, batch, height * width)
    if multiprocessors is None:
        multiprocessors = _multiprocessors(qkv)
    if tiling is None:
        tiling = choose_tiling(batch, height, width, channels // 5, multiprocessors, "fp32" if qkv.element_size() == 4 else "fp16")
    geometry = plan(batch, height, width, channels // 5, tiling, multiprocessors)

    vectors, matrices = packed or packed_weights(inputs, geometry, fill)
    scratch = qkv.new_empty(geometry.scratch_shape)
    partials = _float_empty(qkv, geometry.partials_shape)
    output = qkv.new_empty((batch, tokens, channels))
    if fill is not None:
        for memory in (scratch, partials, output):
            memory.fill_(fill)
    kernels.aggregate[geometry.aggregate_grid](
        *(qkv, vectors, matrices, height, width, geometry.tiles_per_split, scratch, partials, output),
        EPSILON=epsilon,
        **tiling.constants_of("aggregate", geometry.segment_dim),
        **tiling.aggregate.options,
    )
    kernels.attend[geometry.attend_grid](
        *(vectors, matrices, scratch, partials, height, width, geometry.splits, output),
        SCALE=node_attributes(height, width, channels)["scale"],
        **tiling.constants_of("attend", geometry.segment_dim),
        **tiling.attend.options,
    )
    return output


def _float_empty(like: Any, shape: tuple[int, ...]) -> Any:
    """Uninitialised FP32 memory on the same device, without a kernel that casts it: converting no elements launches nothing."""
    return like.new_empty(0).float().new_empty(shape)


def _check_inputs(inputs: Mapping[str, Any], channels: int, batch: int, tokens: int) -> None:
    qkv = inputs["qkv"]
    for name, shape in input_shapes(channels, batch, tokens).items():
        tensor = inputs.get(name)
        if tensor is None:
            raise KernelError(f"input {name} is missing", f"give the {len(INPUT_NAMES)} inputs of INPUT_NAMES")
        if tuple(tensor.shape) != shape:
            raise KernelError(f"input {name} is {list(tensor.shape)}, expected {list(shape)}", "see ops/group_mix_attention.py")
        if tensor.dtype != qkv.dtype or tensor.device != qkv.device:
            raise KernelError(
                f"input {name} is {tensor.dtype} on {tensor.device}, qkv is {qkv.dtype} on {qkv.device}",
                "convert all inputs to one",
            )
        if not tensor.is_contiguous():
            raise KernelError(f"input {name} is not contiguous", "call .contiguous() on it")


def _multiprocessors(tensor: Any) -> int:
    if tensor.device.type != "cuda":
        return 1
    from triton.runtime import driver

    properties = driver.active.utils.get_device_properties(tensor.device.index or 0)
    return int(properties["multiprocessor_count"])
