"""The exported graph is PyTorch's function at every batch size; a batch size that is baked in is caught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from graph_tools import kinds, noise, relative_error, run
from torch import Tensor, nn

from gmf_edge.errors import ExportError
from gmf_edge.model import export
from gmf_edge.model.export import EXPORT_TOLERANCE, TRACED_BATCH, export_plain
from gmf_edge.model.groupmixformer import random_model
from gmf_edge.spec import ModelSpec


@pytest.fixture(scope="module")
def exact(odd_spec: Any) -> nn.Module:
    return random_model(ModelSpec.of("pico", odd_spec.num_classes, odd_spec.image_size), seed=odd_spec.seed)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_logits_are_pytorchs_at_every_batch_size(odd_pico: Any, exact: nn.Module, batch: int) -> None:
    images = noise(batch, 3, 96, 64, seed=batch)
    with torch.inference_mode():
        wanted = exact(torch.from_numpy(images)).numpy()
    assert relative_error(run(onnx_ir.load(odd_pico.plain), images), wanted) <= EXPORT_TOLERANCE


def test_each_image_has_its_own_logits_wherever_it_stands_in_the_batch(odd_pico: Any) -> None:
    graph = onnx_ir.load(odd_pico.plain)
    images = noise(3, 3, 96, 64)
    together = run(graph, images)
    assert np.abs(together - together.mean(axis=0)).max() > 0.01 * np.abs(together).max(), "all images look alike"
    alone = np.concatenate([run(graph, images[index : index + 1]) for index in range(3)])
    assert relative_error(together, alone) <= 1e-5
    assert relative_error(run(graph, images[::-1].copy())[::-1], together) <= 1e-5


def test_the_graph_is_plain_opset_20_with_a_free_batch(odd_pico: Any) -> None:
    onnx.checker.check_model(onnx.load(odd_pico.plain), full_check=True)
    graph = onnx_ir.load(odd_pico.plain)
    assert graph.opset_imports[""] == 20
    assert len(graph.functions) == 0
    (images,), (logits,) = graph.graph.inputs, graph.graph.outputs
    assert (images.name, logits.name) == ("images", "logits")
    assert images.shape is not None
    assert not isinstance(images.shape[0], int)
    assert list(images.shape[1:]) == [3, 96, 64]


def test_layer_normalization_is_one_op_in_its_place(odd_pico: Any) -> None:
    found = kinds(onnx_ir.load(odd_pico.plain))
    # two a block, and one in each block's aggregation
    assert found["LayerNormalization"] == 3 * 5
    assert (found["Softmax"], found["Gelu"], found["HardSwish"]) == (5, 5, 6 + 13 * 5)
    pieces = ("ReduceMean", "Pow", "Sqrt", "Erf", "HardSigmoid", "Sigmoid", "Shape", "Gather", "Expand", "Cast", "If", "Loop")
    # the head's mean is the only reduction
    assert [op for op in pieces if found[op] != (op == "ReduceMean")] == []


def test_nodes_are_named_after_their_modules_each_once(odd_pico: Any) -> None:
    names = [str(each.name) for each in onnx_ir.load(odd_pico.plain).graph]
    assert len(set(names)) == len(names)
    for layer in ("conv_stem.proj1/Conv", "groupmixformer_backbone.2.gma_stage.1.att.qkv/MatMul", "head/Gemm"):
        assert layer in names


# three values an image
THREE = ModelSpec.of("pico", 3, (32, 32))


class Baked(nn.Module):
    """Reshapes with the batch size that was traced."""

    spec = THREE

    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(TRACED_BATCH, -1, 32).mean(dim=2)


class Plain(nn.Module):
    """The mean of each channel."""

    spec = THREE

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def test_a_baked_in_batch_size_is_caught(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"at batch 1 .* shape \(2, "):
        export_plain(Baked().eval(), (32, 32), tmp_path / "plain.onnx")  # type: ignore[arg-type]


def test_logits_of_another_batch_size_are_not_compared_by_broadcasting(tmp_path: Path) -> None:
    # one row for every batch: equal numbers would pass where the shapes are not looked at
    class Constant(nn.Module):
        spec = THREE

        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(images.shape[0], 3) + 0.5

    graph = tidy_graph(tmp_path, reshape=(-1, 3, 1024), factor=0.0, summand=0.5, first_row_only=True)
    with pytest.raises(ExportError, match=r"at batch 2 .* shape \(1, 3\), PyTorch's \(2, 3\)"):
        export._prove_plain(Constant().eval(), (32, 32), graph)  # type: ignore[arg-type]


def test_a_graph_whose_batch_is_fixed_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = torch.onnx.export

    def fixed(*arguments: Any, **options: Any) -> Any:
        return traced(*arguments, **{**options, "dynamic_shapes": None})

    monkeypatch.setattr(torch.onnx, "export", fixed)
    with pytest.raises(ExportError, match="batch size is fixed at 2"):
        export_plain(Plain().eval(), (32, 32), tmp_path / "plain.onnx")  # type: ignore[arg-type]


def test_a_graph_that_fails_at_another_batch_is_refused_with_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tidy_graph(tmp_path, reshape=(TRACED_BATCH, 3, 1024))
    with pytest.raises(ExportError, match="fails at batch 1"):
        export._prove_plain(Plain().eval(), (32, 32), graph)  # type: ignore[arg-type]


def test_other_numbers_than_pytorchs_are_refused_with_the_batch(tmp_path: Path) -> None:
    graph = tidy_graph(tmp_path, reshape=(0, 3, 1024), factor=1.001)
    with pytest.raises(ExportError, match=r"at batch 1 .* differs from PyTorch's by"):
        export._prove_plain(Plain().eval(), (32, 32), graph)  # type: ignore[arg-type]


def test_logits_that_are_nan_are_refused(tmp_path: Path) -> None:
    graph = tidy_graph(tmp_path, reshape=(0, 3, 1024), factor=float("nan"))
    with pytest.raises(ExportError, match="differs from PyTorch's by nan"):
        export._prove_plain(Plain().eval(), (32, 32), graph)  # type: ignore[arg-type]


def test_the_right_graph_is_not_refused(tmp_path: Path) -> None:
    export._prove_plain(Plain().eval(), (32, 32), tidy_graph(tmp_path, reshape=(0, 3, 1024)))  # type: ignore[arg-type]


def tidy_graph(
    folder: Path, reshape: tuple[int, ...], factor: float = 1.0, summand: float = 0.0, first_row_only: bool = False
) -> Path:
    """Plain as a graph, reshaped on the way, scaled and shifted, of all images or of the first one alone."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Reshape", ["images", "shape"], ["flat"]),
        helper.make_node("ReduceMean", ["flat", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "summand"], ["shifted"]),
        helper.make_node("Slice", ["shifted", "start", "end", "batch_axis"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(np.array(reshape, np.int64), "shape"),
            numpy_helper.from_array(np.array([2], np.int64), "axes"),
            numpy_helper.from_array(np.float32(factor), "factor"),
            numpy_helper.from_array(np.float32(summand), "summand"),
            numpy_helper.from_array(np.array([0], np.int64), "start"),
            numpy_helper.from_array(np.array([1 if first_row_only else 2**31], np.int64), "end"),
            numpy_helper.from_array(np.array([0], np.int64), "batch_axis"),
        ],
    )
    path = folder / "plain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_a_model_that_cannot_be_traced_is_an_export_error(tmp_path: Path) -> None:
    class Untraceable(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("not today")

    with pytest.raises(ExportError, match="could not export the model") as refusal:
        export_plain(Untraceable().eval(), (32, 32), tmp_path / "plain.onnx")  # type: ignore[arg-type]
    assert "constraints.txt" in refusal.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_the_exporter_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_plain(Plain().eval(), (32, 32), tmp_path / "plain.onnx")  # type: ignore[arg-type]
    assert capfd.readouterr() == ("", "")
