"""Engines: one protocol, one file or folder per backend, and the choice among them.

protocol   what every backend gives
trace      what some engines tell beyond results
choose     which backends come into question here
finding    what doctor says of one thing
onnxruntime, openvino, tensorrt   the backends
"""
