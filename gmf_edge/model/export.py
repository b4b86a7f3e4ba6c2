"""PyTorch model -> 1-plain.onnx: standard ops, dynamic batch, fixed H and W, BatchNorm and GMA still in pieces.

torch.onnx's dynamo exporter writes the graph; nothing is trusted about it: it is run in ONNX Runtime at batch sizes other than
the traced one, because a batch size baked into a reshape is a known trap, and compared with PyTorch.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir
import onnx_ir.passes.common as onnx_passes
import torch
from numpy.typing import NDArray
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter.rules.common import materialize_reshape_shape_rule, remove_optional_bias_from_conv_rule

from gmf_edge.errors import ExportError
from gmf_edge.model.groupmixformer import GroupMixFormer
from gmf_edge.spec import IMAGES, OPSET_NEW

BATCH_AXIS = "batch"
TRACED_BATCH = 2
PROVED_BATCHES = (1, 2, 3, 8)
# of images beyond LARGE_PIXELS, of which eight take minutes and gigabytes: still one and another than the traced batch
PROVED_BATCHES_LARGE, LARGE_PIXELS = (1, 3), 384 * 384
# of an output's largest magnitude; two FP32 implementations of some 20 blocks stay an order of magnitude below
EXPORT_TOLERANCE = 1e-4


def export_plain(model: GroupMixFormer, image_size: tuple[int, int], out: Path) -> None:
    """Write the model as a plain ONNX graph and prove it at several batch sizes, 1, 2, 3 and 8 where the images are not large.

    Args:
        model: in evaluation mode, FP32.
        image_size: (H, W) in pixels, multiples of 32.
        out: the .onnx file to write.

    Raises:
        ExportError: the exporter failed, baked the batch size in, or the graph's outputs differ from PyTorch's.
    """
    example = torch.zeros(TRACED_BATCH, 3, *image_size)
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=OPSET_NEW,
                dynamic_shapes=({0: torch.export.Dim(BATCH_AXIS)},),
                input_names=[IMAGES],
                output_names=list(model.spec.output_names),
                # its rewriter tries some hundred patterns, which is half of the export's time; _tidy runs the three that matter
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types; each means the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(
            f"torch.onnx could not export the model: {reason}", "install the torch version that constraints.txt pins"
        ) from error
    if program is None:
        raise ExportError("torch.onnx returned no graph", "install the torch version that constraints.txt pins")
    _tidy(program.model)
    onnx_ir.save(program.model, out)
    _prove_plain(model, image_size, out)


def _tidy(graph: onnx_ir.Model) -> None:
    """Constants folded, shape arithmetic made constant (-1 stands for the batch), zero biases and duplicates dropped, nodes named."""
    onnx_passes.InlinePass()(graph)
    fold_constants(graph)
    for rule in (materialize_reshape_shape_rule, remove_optional_bias_from_conv_rule):
        rule.apply_to_model(graph)
    onnx_passes.CommonSubexpressionEliminationPass()(graph)
    onnx_passes.RemoveUnusedNodesPass()(graph)
    onnx_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    _name_nodes(graph)
    onnx_passes.ClearMetadataAndDocStringPass()(graph)


def _name_nodes(graph: onnx_ir.Model) -> None:
    """Name each node after the module it came from, its weight matrix likewise: what reports and recipes speak of."""
    taken: Counter[str] = Counter()
    for node in graph.graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['']"))
        # the innermost entry is the traced call, the one before it the module
        module = scopes[-2] if len(scopes) > 1 else ""
        name = f"{module}/{node.op_type}" if module else node.op_type
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        if node.op_type == "MatMul" and len(node.inputs) == 2:
            weight = node.inputs[1]
            if weight is not None and weight.is_initializer() and len(weight.uses()) == 1:
                weight.name = f"{module}.weight"


def _prove_plain(model: GroupMixFormer, image_size: tuple[int, int], graph: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    if not isinstance(batch, str):
        raise ExportError(f"the exported graph's batch size is fixed at {batch}", "report this with the torch version in use")
    # noise, not pictures: this is about the graph being the same function, and noise reaches every channel
    batches = PROVED_BATCHES if image_size[0] * image_size[1] <= LARGE_PIXELS else PROVED_BATCHES_LARGE
    images = np.random.default_rng(0).standard_normal((max(batches), 3, *image_size)).astype(np.float32)
    with torch.inference_mode():
        given = model(torch.from_numpy(images))
    expected = [output.numpy() for output in (given if isinstance(given, tuple) else (given,))]
    for size in batches:
        try:
            found = session.run(None, {IMAGES: images[:size]})
        except Exception as error:  # onnxruntime raises several types of its own
            raise ExportError(
                f"the exported graph fails at batch {size}: {str(error).splitlines()[0]}",
                "report this with the torch version in use",
            ) from error
        for name, output, wanted in zip(model.spec.output_names, found, expected, strict=True):
            _prove_output(name, size, output, wanted[:size], float(np.abs(wanted).max()))


def _prove_output(name: str, size: int, output: NDArray[np.float32], wanted: NDArray[np.float32], scale: float) -> None:
    if output.shape != wanted.shape:
        raise ExportError(
            f"at batch {size} the exported graph's {name} has shape {output.shape}, PyTorch's {wanted.shape}",
            "the batch size was baked into the graph: report this with the torch version in use",
        )
    worst = float(np.abs(output - wanted).max())
    if not worst <= EXPORT_TOLERANCE * scale:
        raise ExportError(
            f"at batch {size} the exported graph's {name} differs from PyTorch's by {worst:.2e} (its largest value is {scale:.2e})",
            "report this with the torch and onnxruntime versions in use",
        )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's prints, its warnings about absent torchvision and its deprecation notes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
