"""The qkv Linear's columns, made ready for the fused op.

Before: column t * C + s * S + c holds channel c of segment s of t in (q, k, v). After, segment-major: s * 3S + t * S + c, so that q, k
and v of one segment lie side by side and run as the groups of one convolution. The BatchNorm of segment 0 has no convolution
before it, so it goes into these columns: a * (x @ w + b) + c = x @ (a * w) + (a * b + c).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmf_edge.spec import NUM_SEGMENTS


def segment_major_columns(dim: int) -> NDArray[np.intp]:
    """Old column of each new one, [3C]; C = dim."""
    segment_dim = dim // NUM_SEGMENTS
    old = np.arange(3 * dim).reshape(3, NUM_SEGMENTS, segment_dim)  # (t, s, c)
    return np.ascontiguousarray(old.transpose(1, 0, 2)).reshape(-1)


def fused_qkv(
    weight: NDArray[Any], bias: NDArray[Any], scale: NDArray[np.float64], shift: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight [C, 3C] and bias [3C] with segment 0's BatchNorm (x -> scale * x + shift, each [S]) folded in, segment-major."""
    dim = weight.shape[0]
    segment_dim = dim // NUM_SEGMENTS
    columns = weight.astype(np.float64)
    offsets = bias.astype(np.float64)
    for part in range(3):
        first = slice(part * dim, part * dim + segment_dim)
        columns[:, first] *= scale
        offsets[first] = offsets[first] * scale + shift
    order = segment_major_columns(dim)
    return np.ascontiguousarray(columns[:, order]).astype(np.float32), offsets[order].astype(np.float32)
