"""What TensorRT's ONNX parsers take, by version, and whether a graph is within it; needs no TensorRT and no GPU.

operators   what was read in their source, a row an operator
check       a graph against it
"""
