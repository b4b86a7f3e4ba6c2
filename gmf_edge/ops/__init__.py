"""Fused operators: each file holds one operator's contract, its NumPy float64 reference and its ONNX function body."""
