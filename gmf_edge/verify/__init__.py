"""Proof that an engine behaves like its FP32 PyTorch model: metrics of logits, golden data, and the parity report with its gate."""
