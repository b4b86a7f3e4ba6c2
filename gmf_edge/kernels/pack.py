"""The weights of GmfGroupMixAttention as its kernels read them, in NumPy: what the kernel pack_weights computes on a GPU.

For plugin graphs, whose weights are constants, and as an independent check of that kernel. Layout: layout.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.kernels import layout


def packed_arrays(weights: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """`vectors` [VECTOR_ROWS, P] FP32 and `matrices` [6, P, P] of the weights' type.

    Args:
        weights: the operator's inputs by name, without qkv.
    """
    segment_dim = weights["bias_1"].shape[0]
    head_dim, padded = segment_dim // 2, layout.padded_dim(segment_dim)
    vectors = np.zeros((layout.VECTOR_ROWS, padded), np.float32)
    matrices = np.zeros((layout.MATRIX_COUNT, padded, padded), weights["pointwise_1"].dtype)

    def put(row: int, rows: NDArray[Any], first: int = 0) -> None:
        vectors[row : row + rows.shape[0], first : first + rows.shape[1]] = rows

    def taps(window: NDArray[Any], of: int | None = None) -> NDArray[Any]:
        """[channels, 1, k, k] -> [of * of, channels], the window centred."""
        margin = ((of or window.shape[-1]) - window.shape[-1]) // 2
        wide = np.pad(window[:, 0], ((0, 0), (margin, margin), (margin, margin)))
        return wide.reshape(len(wide), -1).T

    for i in (1, 2, 3):
        put(layout.DEPTHWISE_ROW[i - 1], taps(weights[f"depthwise_{i}"]))
        put(layout.BIAS_ROW + i - 1, weights[f"bias_{i}"][None])
        matrices[i - 1, :segment_dim, :segment_dim] = weights[f"pointwise_{i}"][:, :, 0, 0].T
    for t in range(3):
        part = slice(t * segment_dim, (t + 1) * segment_dim)
        put(layout.LOCAL_ROW + 9 * t, taps(weights["depthwise_0"][part]))
        matrices[3 + t, :segment_dim, :segment_dim] = weights["pointwise_0"][:, part, 0, 0].T
    put(layout.NORM_ROW, weights["norm_weight"][None])
    put(layout.NORM_ROW + 1, weights["norm_bias"][None])

    # CRPE by segment: 3 | 5 | head 4 with 5, head 5 with 7 | 7
    five, seven = weights["crpe_weight_5"], weights["crpe_weight_7"]
    put(layout.CRPE_ROW[0], taps(weights["crpe_weight_3"]))
    put(layout.CRPE_ROW[1], taps(five[:segment_dim]))
    put(layout.CRPE_ROW[2], taps(five[segment_dim:], of=7))
    put(layout.CRPE_ROW[2], taps(seven[:head_dim]), first=head_dim)
    put(layout.CRPE_ROW[3], taps(seven[head_dim:]))
    bias_5, bias_7 = weights["crpe_bias_5"], weights["crpe_bias_7"]
    joined = np.concatenate([bias_5[segment_dim:], bias_7[:head_dim]])
    for segment, bias in enumerate((weights["crpe_bias_3"], bias_5[:segment_dim], joined, bias_7[head_dim:])):
        put(layout.CRPE_BIAS_ROW + segment, bias[None])
    return vectors, matrices
