"""Fused operators: contract, NumPy float64 reference and ONNX function body.

group_mix_attention   the operator (aggregation, mixed_attention: the two parts of its reference)
channel_last_body     its body laid out for CPU libraries (body_nodes: what both bodies are built with)
graph_parts           constants and bodies, put into a graph
"""
