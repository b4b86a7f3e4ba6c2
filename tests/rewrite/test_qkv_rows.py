"""The qkv Linear's columns: segment-major order, and segment 0's BatchNorm inside."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from graph_tools import noise

from gmf_edge.rewrite.qkv_rows import fused_qkv, segment_major_columns


@pytest.mark.parametrize("dim", [10, 40, 200])
def test_new_column_s_t_c_is_old_column_t_s_c(dim: int) -> None:
    segment = dim // 5
    columns = segment_major_columns(dim)
    assert sorted(columns) == list(range(3 * dim))
    for s in range(5):
        for t in range(3):
            for c in (0, segment - 1):
                assert columns[s * 3 * segment + t * segment + c] == t * dim + s * segment + c


def test_the_folded_linear_is_the_linear_then_segment_zeros_norm_then_the_order() -> None:
    dim, segment = 20, 4
    weight, bias, tokens = noise(dim, 3 * dim), noise(3 * dim, seed=1), noise(7, dim, seed=2).astype(np.float64)
    scale, shift = noise(segment, seed=3).astype(np.float64), noise(segment, seed=4).astype(np.float64)
    product = (tokens @ weight + bias).reshape(7, 3, 5, segment)
    product[:, :, 0] = product[:, :, 0] * scale + shift
    wanted = product.transpose(0, 2, 1, 3).reshape(7, -1)

    columns, offsets = fused_qkv(weight, bias, scale, shift)
    assert columns.dtype == offsets.dtype == np.float32
    assert columns.flags.c_contiguous
    assert np.abs(tokens @ columns + offsets - wanted).max() <= 1e-6 * np.abs(wanted).max()
