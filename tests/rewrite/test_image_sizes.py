"""A graph of one image size made one of any: the same function as PyTorch at sizes it was never exported at, and valid ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from graph_tools import graph_of, kinds, node, noise, relative_error, session_of

from gmf_edge.errors import RewriteError
from gmf_edge.rewrite.bodies import inline_bodies
from gmf_edge.rewrite.image_sizes import with_any_size
from gmf_edge.rewrite.opset import for_target
from gmf_edge.spec import TARGETS, ModelSpec

# wider, higher, smaller, and the one it was exported at
SIZES = ((64, 128), (128, 32), (32, 32), (96, 64))


@pytest.fixture(scope="module")
def static(odd_pico: Any) -> onnx_ir.Model:
    """96 x 64 pixels, standard operators."""
    return inline_bodies(onnx_ir.load(odd_pico.fused))


def test_it_computes_what_pytorch_does_at_every_size_and_batch(odd_spec: Any, static: onnx_ir.Model) -> None:
    import torch

    from gmf_edge.model.groupmixformer import random_model

    model = random_model(ModelSpec.of("pico", odd_spec.num_classes, odd_spec.image_size), seed=odd_spec.seed)
    for opset, target in ((20, "onnxruntime"), (17, "tensorrt-8.6")):
        graph = for_target(with_any_size(static), TARGETS[target])
        onnx.checker.check_model(onnx_ir.to_proto(graph), full_check=True)
        assert graph.opset_imports[""] == opset
        session = session_of(graph, optimise=True)
        for batch, size in enumerate(SIZES, start=1):
            images = noise(batch, 3, *size, seed=batch)
            with torch.inference_mode():
                wanted = model(torch.from_numpy(images)).numpy()
            assert relative_error(session.run(None, {"images": images})[0], wanted) <= 1e-4, (opset, size)


def test_sizes_are_read_once_a_stage_and_nothing_else_changes(static: onnx_ir.Model) -> None:
    before = kinds(static)
    graph = with_any_size(static)
    assert kinds(static) == before, "the graph given is left as it was"
    after = kinds(graph)
    assert after["Shape"] == 4
    assert after["Slice"] == 12
    # Concat puts the targets together; reshapes of a map to itself are gone
    added = {kind: after[kind] - before[kind] for kind in after if after[kind] != before[kind]}
    assert set(added) == {"Shape", "Slice", "Concat", "Reshape"}
    assert added["Reshape"] <= 0
    assert str(graph.graph.inputs[0].shape) == "[batch,3,height,width]"


def test_a_reshape_of_another_kind_is_refused() -> None:
    graph = graph_of(
        [node("Conv", "x w", "a"), node("Reshape", "a shape", "b"), node("Reshape", "b back", "out")],
        {"w": np.ones((2, 3, 1, 1), np.float32), "shape": np.array([0, 4, 2, 2, 2]), "back": np.array([0, 32])},
        ["batch", 3, 4, 4],
    )
    with pytest.raises(RewriteError, match="which has no known size in it"):
        with_any_size(graph)
