"""Precision in the graph: FP16 and BF16 by casts, INT8 by Q/DQ, and the measurements that justify them.

lower               a requested precision -> graphs, the one place
half                what FP16 and BF16 have in common; fp16, bf16: what is their own
fp16_range          which activations FP16 cannot hold; fp32_sums: FP16 products summed in FP32
int8                Q/DQ (int8_layers: which nodes; integer_gemm: Linears for CPU kernels)
recipe              what is quantised and how (bias_correction, smoothing: what helps)
calibrate           pictures -> ranges (calibration_images -> activations -> thresholds -> ranges)
mixed_precision     the fewest exceptions that keep a gate (sensitivity: what each layer costs; search_state)
"""
