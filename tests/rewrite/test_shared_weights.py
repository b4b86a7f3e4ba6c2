"""weights.bin: each distinct tensor once, and every graph of the folder loads from it, wherever the folder lies."""

from __future__ import annotations

import hashlib
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from graph_tools import graph_of, node, noise, run

from gmf_edge.rewrite.bodies import inline_bodies
from gmf_edge.rewrite.shared_weights import ALIGNMENT, INLINE_BYTES, WEIGHTS_FILE, save_graphs

GRAPHS = ("portable.onnx", "plugin.onnx", "portable-opset17.onnx", "plugin-opset17.onnx")


def placed(path: Path) -> dict[str, tuple[int, int]]:
    """Tensor name -> (offset, length) in weights.bin."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {each.key: each.value for each in tensor.external_data}
            assert entry["location"] == WEIGHTS_FILE
            found[tensor.name] = (int(entry["offset"]), int(entry["length"]))
        else:
            assert len(tensor.raw_data) < INLINE_BYTES
    return found


def test_each_distinct_tensor_lies_once_and_nothing_else(odd_pico: Any) -> None:
    content = (odd_pico.bundle / WEIGHTS_FILE).read_bytes()
    spans = {span for name in GRAPHS for span in placed(odd_pico.bundle / name).values()}
    assert len(spans) > 50
    digests = {hashlib.sha256(content[offset : offset + length]).digest() for offset, length in spans}
    assert len(digests) == len(spans), "a tensor lies twice"
    ordered = sorted(spans)
    assert ordered[0][0] == 0
    for (offset, length), (following, _) in pairwise(ordered):
        assert offset + length <= following < offset + length + ALIGNMENT
        assert following % ALIGNMENT == 0
    assert len(content) == sum(ordered[-1])


def test_the_graphs_share_their_weights(odd_pico: Any) -> None:
    portable, old = (set(placed(odd_pico.bundle / name).values()) for name in ("portable.onnx", "portable-opset17.onnx"))
    assert portable == old


def test_graphs_load_from_the_shared_file_and_give_the_graphs_logits(fused: onnx_ir.Model, tmp_path: Path) -> None:
    portable = inline_bodies(fused)
    images = noise(2, 3, 96, 64)
    wanted = run(portable, images)
    (tmp_path / "first").mkdir()
    save_graphs({"a.onnx": portable, "b.onnx": portable}, tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "moved")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name in ("a.onnx", "b.onnx"):
        session = ort.InferenceSession(str(tmp_path / "moved" / name), options, providers=["CPUExecutionProvider"])
        assert np.array_equal(session.run(None, {"images": images})[0], wanted)
    assert (tmp_path / "moved" / "a.onnx").stat().st_size < (tmp_path / "moved" / WEIGHTS_FILE).stat().st_size
    assert not any(value.const_value is None for value in portable.graph.initializers.values()), "the graph given was changed"


def test_equal_bytes_of_another_type_are_another_tensor(tmp_path: Path) -> None:
    floats = noise(16, 32)
    nodes = [node("Mul", "x floats", "scaled"), node("Cast", "ints", "as_float", to=1), node("Add", "scaled as_float", "out")]
    graph = graph_of(nodes, {"floats": floats, "ints": floats.view(np.int32)}, [16, 32])
    save_graphs({"a.onnx": graph}, tmp_path)
    spans = placed(tmp_path / "a.onnx")
    assert spans["floats"] != spans["ints"]
    x = noise(16, 32, seed=1)
    assert np.array_equal(run(onnx_ir.load(tmp_path / "a.onnx"), x), run(graph, x))


def test_without_the_weights_a_graph_does_not_load(odd_pico: Any, tmp_path: Path) -> None:
    shutil.copyfile(odd_pico.bundle / "portable.onnx", tmp_path / "portable.onnx")
    with pytest.raises(Exception, match=r"weights\.bin|external"):
        ort.InferenceSession(str(tmp_path / "portable.onnx"), providers=["CPUExecutionProvider"])
