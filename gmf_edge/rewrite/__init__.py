"""Graph rewriting, one rule per file: 1-plain.onnx -> 2-fused.onnx, each pass proved equal on numbers when it runs."""
