"""Pictures, archives and graphs for the INT8 tests."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from PIL import Image

from gmf_edge.image import Preprocess
from gmf_edge.precision.recipe import Recipe

ASSETS = Path(__file__).resolve().parents[2] / "gmf_edge" / "assets"
PREPROCESS = Preprocess((64, 64))
# the layer that make_harder spoils for the tests of sensitivity and search, and the layers that those quantise
HARD = "groupmixformer_backbone.3.gma_stage.0.mlp.fc1/MatMul"
HARD_RECIPE = Recipe(method="minmax", bias_correction=True, keep=("*backbone.[01]*", "*.2.gma_stage.0*"))


def portable_session(graph: onnx_ir.Model, folder: Path, optimized: Path | None = None, integer: bool = True) -> Any:
    """A session of the graph with its bodies inlined; `optimized` is where ONNX Runtime writes what it made of it.

    Without `integer` Q/DQ are computed one by one in FP32, so that the numbers are the graph's and not those of this processor's
    integer kernels, of which some saturate.
    """
    import onnxruntime as ort

    from gmf_edge.rewrite.bodies import inline_bodies

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not integer:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    onnx_ir.save(inline_bodies(graph), folder / "portable.onnx")
    return ort.InferenceSession(str(folder / "portable.onnx"), options, providers=["CPUExecutionProvider"])


def make_harder(graph: onnx_ir.Model, layer: str, factor: float = 3000.0, channels: int = 3) -> None:
    """Scale some channels of a LayerNorm by `factor` and the rows of the Linear that reads them by its inverse: the same function.

    Per tensor, the step of INT8 is then wider than everything in the other channels.
    """
    from gmf_edge.precision.int8_layers import constant_array, replace_constant

    node = next(node for node in graph.graph if node.name == layer)
    norm = node.inputs[0].producer()
    assert norm.op_type == "LayerNormalization"
    factors = np.ones(constant_array(norm.inputs[1]).shape, np.float32)
    factors[:channels] = factor
    for index in (1, 2):
        replace_constant(graph, norm, index, constant_array(norm.inputs[index]) * factors, f"{layer}/harder/{index}")
    replace_constant(graph, node, 1, constant_array(node.inputs[1]) / factors[:, None], f"{layer}/harder/weight")


def write_zip(path: Path, pictures: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in pictures.items():
            archive.writestr(name, content)
    return path


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def drawing(seed: int, side: int = 32) -> NDArray[np.uint8]:
    """A smooth coloured picture, another one for each seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def noise(seed: int, side: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
