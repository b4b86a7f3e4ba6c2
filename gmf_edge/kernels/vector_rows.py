"""Rows of the tensor `vectors` as the kernels may read them: layout.py's numbers, wrapped for the compiler."""

from __future__ import annotations

import triton.language as tl

from gmf_edge.kernels import layout

AGGREGATE_1 = tl.constexpr(layout.DEPTHWISE_ROW[0])
AGGREGATE_2 = tl.constexpr(layout.DEPTHWISE_ROW[1])
AGGREGATE_3 = tl.constexpr(layout.DEPTHWISE_ROW[2])
BIAS = tl.constexpr(layout.BIAS_ROW)
LOCAL = tl.constexpr(layout.LOCAL_ROW)
NORM = tl.constexpr(layout.NORM_ROW)
CRPE_0 = tl.constexpr(layout.CRPE_ROW[0])
CRPE_1 = tl.constexpr(layout.CRPE_ROW[1])
CRPE_2 = tl.constexpr(layout.CRPE_ROW[2])
CRPE_3 = tl.constexpr(layout.CRPE_ROW[3])
CRPE_BIAS = tl.constexpr(layout.CRPE_BIAS_ROW)
VECTOR_ROWS = tl.constexpr(layout.VECTOR_ROWS)
