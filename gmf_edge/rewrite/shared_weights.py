"""Several graphs over one file of weights: each distinct tensor lies once in weights.bin, and the .onnx files refer to it.

ONNX calls this external data: loaders look for the file beside the graph, so trtexec, TensorRT's parser and ONNX Runtime find it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx_ir

WEIGHTS_FILE = "weights.bin"
# below it a tensor stays inside its graph: shapes, scales and small biases are nicer to look at in place
INLINE_BYTES = 1024
# the page size with which ONNX Runtime and others map external data
ALIGNMENT = 4096


def save_graphs(graphs: Mapping[str, onnx_ir.Model], folder: Path) -> None:
    """Write each graph under its file name, and weights.bin beside them.

    Args:
        graphs: file name -> graph; the graphs are left as they are.
        folder: exists.

    Raises:
        OSError: the folder cannot be written.
    """
    offsets: dict[tuple[str, bytes], tuple[int, int]] = {}
    with (folder / WEIGHTS_FILE).open("wb") as weights:
        for name, graph in graphs.items():
            shared = graph.clone()
            for value in shared.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < INLINE_BYTES:
                    continue
                content = tensor.tobytes()
                key = (str(tensor.dtype), hashlib.sha256(content).digest())
                if key not in offsets:
                    weights.write(b"\0" * (-weights.tell() % ALIGNMENT))
                    offsets[key] = (weights.tell(), len(content))
                    weights.write(content)
                offset, length = offsets[key]
                value.const_value = onnx_ir.ExternalTensor(
                    WEIGHTS_FILE, offset, length, tensor.dtype, name=str(value.name), shape=tensor.shape, base_dir=folder
                )
            onnx_ir.save(shared, folder / name)
